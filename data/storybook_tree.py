"""The storybook's grammar as a tree: what its readers walk through.

The decks of cards and the beats stand in storybook_grammar.py, as a person writes them. Here they
are compiled, once, into a tree of five kinds of node,

    str      these characters
    Slot     a form of the card that was dealt from a deck: the hero's name, "he", "the owl"
    Choice   one of several nodes, with probabilities
    Deal     cards are drawn: who the hero is, what is lost
    tuple    one node after another

and GRAMMAR is its root. A reader is one short recursion over it: see storybook.py and
storybook_checker.py.
"""

import math
import re
from itertools import accumulate
from typing import NamedTuple

from data import storybook_grammar as grammar

SEPARATOR = "<|endoftext|>"  # between two stories


class Slot(NamedTuple):
    """The given form of the card dealt from a deck, perhaps with a capital."""

    deck: str
    form: str
    capital: bool


class Choice(NamedTuple):
    """One of `options`; `nats` are their −log p, `edges` the running sums of p to draw by."""

    options: tuple
    nats: tuple
    edges: tuple


class Deal(NamedTuple):
    """A card is drawn from each of these decks."""

    decks: tuple


class Card(NamedTuple):
    """A card: its plain form, unique in its deck, and all its forms by name."""

    plain: str
    forms: dict


def _choice(options, weights=None):
    """A choice in proportion to the weights; a choice of one thing is that thing."""
    weights = weights or [1.0] * len(options)
    total = sum(weights)
    # The last edge, 1 up to rounding, is left out: bisect then always finds an option.
    edges = tuple(accumulate(w / total for w in weights))[:-1]
    return Choice(tuple(options), tuple(-math.log(w / total) for w in weights), edges)


def _one_or(options, weights=None):
    return options[0] if len(options) == 1 else _choice(options, weights)


def _build_decks():
    """{deck: {key: Choice of cards}}; the key is None unless the deck depends on another card."""
    decks = {}
    for deck, rows in grammar.DECKS.items():
        groups = rows if isinstance(rows, dict) else {None: rows}
        decks[deck] = {
            key: _choice([Card(c["*"], c) for c in group], [c["weight"] for c in group])
            for key, group in groups.items()
        }
    return decks


DECKS = _build_decks()


def _compile(template):
    """Turn a template into a node: `[a|b]` a Choice, `<deck.form>` a Slot, the rest as it is."""
    for name, phrase in grammar.PHRASES.items():
        template = template.replace("{" + name + "}", phrase)
    tokens = re.findall(r"<[^<>]*>|[\[\]|]|[^<>\[\]|]+|.", template)
    node = _alternatives(tokens)
    if tokens:
        raise ValueError(f"a stray ] in the template {template!r}")
    return node


def _alternatives(tokens):
    """Take `a|b|3:c` from the front of the tokens, up to a closing bracket or the end."""
    options, weights = [], []
    while not options or (tokens and tokens[0] == "|" and tokens.pop(0)):
        items, weight = [], 1.0
        if tokens and (number := re.match(r"(\d+):", tokens[0])):
            weight, tokens[0] = float(number[1]), tokens[0][number.end() :]
        while tokens and tokens[0] not in ("|", "]"):
            token = tokens.pop(0)
            if token == "[":
                items.append(_alternatives(tokens))
                if not tokens or tokens.pop(0) != "]":
                    raise ValueError("a [ in a template is never closed")
            else:
                items.append(_slot(token[1:-1]) if token.startswith("<") else token)
        options.append(items[0] if len(items) == 1 else tuple(items))
        weights.append(weight)
    return _one_or(options, weights)


def _slot(word):
    """`thing` the plain form, `thing.a` the form `a`, `Thing` with a capital, `he` = `name.he`."""
    deck, _, form = word.lower().partition(".")
    if deck in ("he", "him", "his"):
        deck, form = "name", deck
    for group in DECKS[deck].values():  # a misspelt template fails here, at import
        for card in group.options:
            card.forms[form or "*"]
    return Slot(deck, form or "*", word[0].isupper())


def show(slot, card):
    text = card.forms[slot.form]
    return text[0].upper() + text[1:] if slot.capital else text


# A sentence ends at . ! or ?, perhaps with a quotation mark, before a space and a capital or a
# quotation mark. Said of a text, and of a template, where capitals may hide in < > or [ ].
TEXT_BREAK = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))\s+(?=["A-Z])')
_TEMPLATE_BREAK = re.compile(
    r'(?:(?<=[.!?])|(?<=[.!?]")) (?=["A-Z]|<[A-Z]|\{when|\[(?:\d+:)?[A-Z])'
)


def _passage(template):
    """A passage: its sentences, each led by the space or the new line that parts it from others."""
    if not template:
        return ""
    lead = grammar.NEW if template.startswith(grammar.NEW) else " "
    sentences = [_compile(piece) for piece in _TEMPLATE_BREAK.split(template.strip())]
    SENTENCES.update(dict.fromkeys(sentences))
    leads = [lead] + [" "] * (len(sentences) - 1)
    return tuple(node for pair in zip(leads, sentences) for node in pair)


def _beats(beats):
    beats = [[re.fullmatch(r"(?:(\d+):)?(.*)", way, re.DOTALL) for way in beat] for beat in beats]
    return tuple(
        _one_or([_passage(way[2]) for way in beat], [float(way[1] or 1) for way in beat])
        for beat in beats
    )


SENTENCES = {}  # every sentence of the grammar (a dict keeps their order and drops doubles)
PLOTS = [(Deal(decks), *_beats(beats)) for decks, beats in grammar.PLOTS.values()]
GRAMMAR = (Deal(grammar.HERO), *_beats(grammar.OPENING), _choice(PLOTS))


def group_key(deck, cards):
    """Which group of a deck is played, given the cards dealt before."""
    parent, form = grammar.DEPENDS.get(deck, (None, None))
    return cards[parent].forms[form] if parent else None


def draws(deck, cards):
    """Every way to draw a card: (cards with it, −log p given its parent, −log p with its parent).

    A parent that has not been dealt yet is dealt first.
    """
    parent = grammar.DEPENDS.get(deck, (None,))[0]
    if parent and parent not in cards:
        ways = [(more, joint) for more, _, joint in draws(parent, cards)]
    else:
        ways = [(cards, 0.0)]
    for known, before in ways:
        group = DECKS[deck][group_key(deck, known)]
        for card, nats in zip(group.options, group.nats):
            yield {**known, deck: card}, nats, before + nats


def odds(deck):
    """(card, probability) of every card of a deck, whatever its parent was."""
    odds = {}
    for cards, _, joint in draws(deck, {}):
        card = cards[deck]
        odds.setdefault(card.plain, [card, 0.0])[1] += math.exp(-joint)
    return odds.values()
