"""A storybook that knows its own entropy: children's stories drawn from a small grammar.

A language model's loss says how surprised it is by the next token. How low can the loss go?
For a text from the world nobody knows. For this one we do, because we wrote the dice as well as
the stories: every story is a sequence of random choices, so its probability is the product of
the probabilities of the choices, and

    −log p(story) = Σ −log p(choice)                       `Story.nats`, natural logarithms,
    H = E[−log p(story)] = Σ p(choice is met) · H(choice)  `entropy()`, by the chain rule.

**Why H(text) is exact.** The sum above is the entropy of the *choices*. It is the entropy of the
*text* only when the text gives every choice away: were two sequences of choices to end in the
same words, the text would have fewer nats than the dice. Two facts about the grammar rule that
out, and `tests/test_storybook.py` proves both for the whole language, not only for samples:
no text can be read along two different paths through the templates, and every card that is dealt
is named in the story by a form that no other card of its deck shares.

**What it means for a model.** No model that gives probabilities to texts, whatever its tokens,
has an expected loss below H per story: the difference is the Kullback–Leibler divergence, which
is never negative. Divide by tokens per story to get the floor on the usual loss. On *one*
validation text use the stories themselves: Σ nats / Σ tokens is what the true source would score
on that very text. The end-of-text token counts as a token, and costs the source nothing more:
whether a story ends here is one of the choices already counted. A model that sees less than the
whole story so far (a short context, a window that begins in mid-story) has a higher floor.

**One grammar, several readers.** The decks of cards and the beats stand in `storybook_grammar.py`.
Here they are compiled into a tree of five kinds of node,

    str      these characters
    Slot     a form of the card that was dealt from a deck: the hero's name, "he", "the owl"
    Choice   one of several nodes, with probabilities
    Deal     cards are drawn: who the hero is, what is lost
    tuple    one node after another

and each reader is one short recursion over that tree: `_say` tells a story, `_expect` adds up the
entropy, `_read` parses a text, `_pattern` turns a sentence into a regular expression.

    python -m data.storybook                                        # three stories and the floor
    python -m data.storybook --words 1000000 --seed 1 --out train.txt
    python -m data.storybook --check samples.txt                    # how well does a model write?
"""

import argparse
import math
import os
import random
import re
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from data import storybook_grammar as grammar
from npgpt.errors import UserError

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Story:
    """One story and its exact surprise: −log p(text) in nats, its end included."""

    text: str
    nats: float


# --------------------------------------------------------------------------------------------
# The tree, compiled from the tables of storybook_grammar.py.


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


_DECKS = _build_decks()


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
    for group in _DECKS[deck].values():  # a misspelt template fails here, at import
        for card in group.options:
            card.forms[form or "*"]
    return Slot(deck, form or "*", word[0].isupper())


def _show(slot, card):
    text = card.forms[slot.form]
    return text[0].upper() + text[1:] if slot.capital else text


# A sentence ends at . ! or ?, perhaps with a quotation mark, before a space and a capital or a
# quotation mark. Said of a text, and of a template, where capitals may hide in < > or [ ].
_TEXT_BREAK = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))\s+(?=["A-Z])')
_TEMPLATE_BREAK = re.compile(
    r'(?:(?<=[.!?])|(?<=[.!?]")) (?=["A-Z]|<[A-Z]|\{when|\[(?:\d+:)?[A-Z])'
)


def _passage(template):
    """A passage: its sentences, each led by the space or the new line that parts it from others."""
    if not template:
        return ""
    lead = grammar.NEW if template.startswith(grammar.NEW) else " "
    sentences = [_compile(piece) for piece in _TEMPLATE_BREAK.split(template.strip())]
    _SENTENCES.update(dict.fromkeys(sentences))
    leads = [lead] + [" "] * (len(sentences) - 1)
    return tuple(node for pair in zip(leads, sentences) for node in pair)


def _beats(beats):
    beats = [[re.fullmatch(r"(?:(\d+):)?(.*)", way, re.DOTALL) for way in beat] for beat in beats]
    return tuple(
        _one_or([_passage(way[2]) for way in beat], [float(way[1] or 1) for way in beat])
        for beat in beats
    )


_SENTENCES = {}  # every sentence of the grammar (a dict keeps their order and drops doubles)
_PLOTS = [(Deal(decks), *_beats(beats)) for decks, beats in grammar.PLOTS.values()]
GRAMMAR = (Deal(grammar.HERO), *_beats(grammar.OPENING), _choice(_PLOTS))


# --------------------------------------------------------------------------------------------
# First reader: tell a story.


def _say(node, cards, draw, out):
    """Append the node's text to `out`, drawing with `draw()` in [0, 1); return −log p."""
    kind = type(node)
    if kind is str:
        out.append(node)
        return 0.0
    if kind is Slot:
        out.append(_show(node, cards[node.deck]))
        return 0.0
    if kind is Choice:
        i = bisect_right(node.edges, draw())
        return node.nats[i] + _say(node.options[i], cards, draw, out)
    nats = 0.0
    if kind is Deal:
        for deck in node.decks:
            group = _DECKS[deck][_key(deck, cards)]
            i = bisect_right(group.edges, draw())
            cards[deck] = group.options[i]
            nats += group.nats[i]
    else:
        for part in node:
            nats += _say(part, cards, draw, out)
    return nats


def _key(deck, cards):
    """Which group of a deck is played, given the cards dealt before."""
    parent, form = grammar.DEPENDS.get(deck, (None, None))
    return cards[parent].forms[form] if parent else None


def stories(seed):
    """Stories without end, the same for the same seed on every machine.

    Args:    seed, an int ≥ 0. Python promises that `Random(seed).random()` never changes.
    Returns: an iterator of Story.
    """
    if seed < 0:
        raise UserError(f"a storybook's seed is 0 or more, not {seed}")
    draw = random.Random(int(seed)).random
    while True:
        out = []
        nats = _say(GRAMMAR, {}, draw, out)
        yield Story("".join(out)[1:], nats)  # without the space that leads every sentence


def told(num_words, seed):
    """Tell the first stories of a seed, one by one, until they have `num_words` words together."""
    count = 0
    for story in stories(seed):
        if count >= num_words:
            return
        yield story
        count += len(story.text.split())


def generate(num_words, seed):
    """The first stories of a seed that have at least `num_words` words together: list[Story]."""
    return list(told(num_words, seed))


def corpus_text(told):
    """The stories as one training text, each followed by the separator on a line of its own."""
    return "".join(f"{story.text}\n{SEPARATOR}\n" for story in told)


# --------------------------------------------------------------------------------------------
# Second reader: the exact entropy.


@dataclass(frozen=True)
class Entropy:
    """Expectations over the whole source, computed and not sampled."""

    nats_per_story: float
    words_per_story: float
    chars_per_story: float

    @property
    def nats_per_word(self):
        return self.nats_per_story / self.words_per_story

    @property
    def bits_per_char(self):
        return self.nats_per_story / self.chars_per_story / math.log(2)

    def __str__(self):
        return (
            f"entropy {self.nats_per_story:.4f} nats a story, exactly; "
            f"{self.words_per_story:.2f} words a story, {self.nats_per_word:.4f} nats a word, "
            f"{self.bits_per_char:.4f} bits a character"
        )


def entropy():
    """The exact entropy of the source and its expected lengths: Entropy.

    By linearity of expectation the tree is walked once. A Choice contributes its own entropy
    and the average of its options; a Deal the entropy of its decks; a Slot no entropy, because
    the card is known by then, and the average length of its form. That is exact since no
    choice in the tree depends on a card: a card decides only what a Slot shows.
    """
    nats, spaces, chars = _expect(GRAMMAR)
    return Entropy(nats, spaces, chars - 1)  # one space leads each word; the first is cut off


def _expect(node):
    """E[−log p], E[number of spaces and line ends], E[number of characters] of a node."""
    if isinstance(node, str):
        return 0.0, sum(ch.isspace() for ch in node), len(node)
    if isinstance(node, Slot):
        shown = [(p, _show(node, card)) for card, p in _odds(node.deck)]
        return (0.0, *(sum(p * _expect(text)[i] for p, text in shown) for i in (1, 2)))
    if isinstance(node, Choice):
        parts = [(math.exp(-n), n, _expect(option)) for n, option in zip(node.nats, node.options)]
        return tuple(sum(p * (e[i] + (i == 0) * n) for p, n, e in parts) for i in range(3))
    if isinstance(node, Deal):
        # H(card | parent) = H(card, parent) − H(parent): −log p(card | parent) on average.
        return sum(n * math.exp(-m) for deck in node.decks for _, n, m in _draws(deck, {})), 0, 0
    return tuple(sum(column) for column in zip((0.0, 0, 0), *map(_expect, node)))


def _draws(deck, cards):
    """Every way to draw a card: (cards with it, −log p given its parent, −log p with its parent).

    A parent that has not been dealt yet is dealt first.
    """
    parent = grammar.DEPENDS.get(deck, (None,))[0]
    if parent and parent not in cards:
        ways = [(more, joint) for more, _, joint in _draws(parent, cards)]
    else:
        ways = [(cards, 0.0)]
    for known, before in ways:
        group = _DECKS[deck][_key(deck, known)]
        for card, nats in zip(group.options, group.nats):
            yield {**known, deck: card}, nats, before + nats


def _odds(deck):
    """(card, probability) of every card of a deck, whatever its parent was."""
    odds = {}
    for cards, _, joint in _draws(deck, {}):
        card = cards[deck]
        odds.setdefault(card.plain, [card, 0.0])[1] += math.exp(-joint)
    return odds.values()


# --------------------------------------------------------------------------------------------
# Third reader: parse a text.


class _Farthest:
    """How far a reading got before it failed, and what would have let it go on."""

    def __init__(self):
        self.at, self.wanted = 0, []

    def fail(self, text, at, want):
        same = 0
        while same < len(want) and text[at + same : at + same + 1] == want[same]:
            same += 1
        if at + same > self.at:
            self.at, self.wanted = at + same, []
        if at + same == self.at:
            self.wanted.append(want[same:])


def _read(node, text, states, farthest=None):
    """Read the node from each state: [(position, cards known, −log p so far)] → the same.

    All readings go on side by side, so a text is read once from left to right. A card becomes
    known where it is first named; the Slot adds then what the Deal took when the story was told.
    """
    kind = type(node)
    if kind is str:
        after = []
        for at, cards, nats in states:
            if text.startswith(node, at):
                after.append((at + len(node), cards, nats))
            elif farthest:
                farthest.fail(text, at, node)
        return after
    if kind is Slot:
        after = []
        for at, cards, nats in states:
            known = node.deck in cards
            for more, _, cost in [(cards, 0, 0.0)] if known else _draws(node.deck, cards):
                shown = _show(node, more[node.deck])
                if text.startswith(shown, at):
                    after.append((at + len(shown), more, nats + cost))
                elif farthest:
                    farthest.fail(text, at, shown)
        return after
    if kind is Choice:
        after = []
        for cost, option in zip(node.nats, node.options):
            read = _read(option, text, states, farthest)
            after += [(at, cards, nats + cost) for at, cards, nats in read]
        return after
    if kind is not Deal:
        for part in node:
            states = _read(part, text, states, farthest)
            if not states:
                break
    return states


def readings(text):
    """−log p of every derivation of a story's text; the grammar is unambiguous, so 0 or 1 of them.

    >>> [len(readings(story.text)) for story, _ in zip(stories(0), range(3))]
    [1, 1, 1]
    """
    text = " " + text
    return [n for at, _, n in _read(GRAMMAR, text, [(0, {}, 0.0)]) if at == len(text)]


def nats(text):
    """−log p of one story's text, exactly, or None if the grammar cannot say it."""
    found = readings(text)
    return found[0] if found else None


# --------------------------------------------------------------------------------------------
# The checker: how well does a model write?


def _pattern(node):
    """The node as a regular expression in which every Slot may show any of its cards."""
    if isinstance(node, str):
        return re.escape(node)
    if isinstance(node, Slot):
        shown = dict.fromkeys(re.escape(_show(node, card)) for card, _ in _odds(node.deck))
        return f"(?:{'|'.join(shown)})"
    if isinstance(node, Choice):
        return f"(?:{'|'.join(map(_pattern, node.options))})"
    return "".join(map(_pattern, node))


@lru_cache(maxsize=1)
def _patterns():
    return [(node, re.compile(_pattern(node))) for node in _SENTENCES]


@lru_cache(maxsize=1)
def _endings():
    closings = {way: None for *_, last in _PLOTS for way in last.options}
    return re.compile("|".join(_pattern(sentence) for _, sentence in closings))


@lru_cache(maxsize=100_000)
def _sentence(text):
    """Read one sentence by itself: (looks like one, [the cards it may speak of]).

    It looks like one of the grammar's sentences when some template says it with any cards; it is
    one when the cards agree within it ("Tom lost his kite", not "Tom lost her kite").
    """
    looks = [node for node, pattern in _patterns() if pattern.fullmatch(text)]
    hands = {}
    for node in looks:
        for at, cards, _ in _read(node, text, [(0, {}, 0.0)]):
            if at == len(text):
                hand = {deck: card.plain for deck, card in cards.items()}
                hands[tuple(sorted(hand.items()))] = hand
    return bool(looks), list(hands.values())


@dataclass(frozen=True)
class Verdict:
    """What the checker says about one story; `fault` is None for an accepted one."""

    fault: str | None
    reason: str
    sentences: int
    valid: int
    consistent: bool
    ended: bool


FAULTS = {
    "empty": "empty",
    "sentence": "a sentence that the grammar cannot say",
    "hero": "someone or something changed on the way",
    "order": "sentences out of order",
    "ending": "stops before an ending",
}


def judge(text):
    """Judge one story: Verdict. Time is proportional to the text's length."""
    text = text.strip()
    if not text:
        return Verdict("empty", "the story is empty", 0, 0, False, False)
    pieces = _TEXT_BREAK.split(text)
    farthest = _Farthest()
    states = _read(GRAMMAR, " " + text, [(0, {}, 0.0)], farthest)
    if any(at == len(text) + 1 for at, _, _ in states):
        return Verdict(None, "", len(pieces), len(pieces), True, True)

    # The offending sentence is the one in which every reading had failed.
    if states and max(at for at, _, _ in states) >= farthest.at:
        farthest.at, farthest.wanted = max(at for at, _, _ in states), ["the end of the story"]
    stop = farthest.at - 1  # without the space in front
    valid, consistent, known, fault, start = 0, True, [{}], None, 0
    for i, piece in enumerate(pieces):
        start = text.index(piece, start)
        end = start + len(piece)
        looks, hands = _sentence(piece)
        valid += bool(hands)
        joined = _join(known, hands) if hands else known
        if looks and not (hands and joined):
            consistent = False
        if fault is None and (stop < end or i == len(pieces) - 1):
            if stop >= len(text):
                fault = "ending"
            elif not looks:
                fault = "sentence"
            else:
                fault = "order" if hands and joined else "hero"
            reason = _reason(i, piece, text[max(stop, 0) :], farthest.wanted)
        known = joined or known
        start = end
    ended = bool(_endings().fullmatch(pieces[-1]))
    return Verdict(fault, reason, len(pieces), valid, consistent and valid > 0, ended)


def _join(known, hands, limit=64):
    """The hands so far that agree with the new sentence's hands, put together."""
    joined = {}
    for old in known:
        for new in hands:
            if all(old.get(deck, card) == card for deck, card in new.items()):
                both = {**old, **new}
                joined[tuple(sorted(both.items()))] = both
                if len(joined) == limit:
                    return list(joined.values())
    return list(joined.values())


def _reason(i, piece, found, wanted):
    wanted = sorted(
        {w.strip() or "a new line or a space" for w in wanted}, key=lambda w: (len(w), w)
    )
    more = f" (or {len(wanted) - 3} others)" if len(wanted) > 3 else ""
    wanted = " or ".join(repr(w[:40]) for w in wanted[:3]) + more
    found = repr(found[:40]) if found else "the end"
    return f"sentence {i + 1}, {piece[:120]!r}: expected {wanted}, found {found}"


@dataclass
class Report:
    """What `check` counted. The shares are of finished stories, or of their sentences."""

    stories: int = 0
    accepted: int = 0
    sentences: int = 0
    valid_sentences: int = 0
    all_valid: int = 0
    consistent: int = 0
    ended: int = 0
    unfinished: int = 0
    faults: Counter = field(default_factory=Counter)
    reasons: list = field(default_factory=list)

    def share(self, name):
        """The share of `accepted`, `valid_sentences`, `all_valid`, `consistent` or `ended`."""
        whole = self.sentences if name == "valid_sentences" else self.stories
        return getattr(self, name) / whole if whole else 0.0

    def __str__(self):
        rows = [
            ("accepted by the grammar", "accepted", "stories"),
            ("with only valid sentences", "all_valid", "stories"),
            ("consistent throughout", "consistent", "stories"),
            ("ending reached", "ended", "stories"),
            ("valid", "valid_sentences", "sentences"),
        ]
        lines = [f"{self.stories} stories, and {self.unfinished} unfinished, which is not counted"]
        for label, name, of in rows:
            lines.append(f"  {of:9}  {label:26}{getattr(self, name):8}  {self.share(name):6.1%}")
        for fault, count in self.faults.most_common():
            lines.append(f"  {count} rejected: {FAULTS[fault]}")
        return "\n".join(lines + [f"  first: {reason}" for reason in self.reasons])


def check(text, keep=5):
    """Judge a text of stories parted by `SEPARATOR`: Report, with the first `keep` reasons.

    What follows the last separator is an unfinished story, counted apart and not judged. A
    separator at the very beginning, which models are often prompted with, opens no story.
    """
    report = Report()
    *pieces, rest = text.removeprefix(SEPARATOR).split(SEPARATOR)
    report.unfinished = int(bool(rest.strip()))
    for number, piece in enumerate(pieces, 1):
        verdict = judge(piece)
        report.stories += 1
        report.accepted += verdict.fault is None
        report.sentences += verdict.sentences
        report.valid_sentences += verdict.valid
        report.all_valid += verdict.valid == verdict.sentences > 0
        report.consistent += verdict.consistent
        report.ended += verdict.ended
        if verdict.fault:
            report.faults[verdict.fault] += 1
            if len(report.reasons) < keep:
                report.reasons.append(f"story {number}, {verdict.reason}")
    return report


# --------------------------------------------------------------------------------------------
# The command line.


def stats(told):
    """Counts over a list of stories, as a readable text."""
    lengths = [len(story.text.split()) for story in told]
    found = Counter(w for story in told for w in re.findall("[a-z]+", story.text.lower()))
    sentences = Counter(s for story in told for s in _TEXT_BREAK.split(story.text))
    distinct = len({story.text for story in told})
    return "\n".join(
        [
            f"stories    {len(told):,}, of them distinct {distinct:,}",
            f"words      {sum(lengths):,}; a story has {min(lengths)} to {max(lengths)}",
            f"vocabulary {len(found):,} words; the rarest: "
            + ", ".join(f"{w} {n}" for w, n in found.most_common()[-5:]),
            f"sentences  {sum(sentences.values()):,}, of them distinct {len(sentences):,}",
            f"nats       {sum(s.nats for s in told) / len(told):.4f} a story on average",
        ]
    )


def write(path, text):
    """Write a file so that it is there whole or not at all."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".storybook-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; is there such a folder?"
        ) from error


def main(argv=None):
    """`python -m data.storybook`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data.storybook",
        description="Tell small stories from a grammar whose entropy is known exactly, "
        "or check how well a model has learnt to tell them.",
        epilog="With no option: three stories, and the floor under every model's loss.",
    )
    parser.add_argument("--words", type=int, metavar="N", help="tell at least N words")
    parser.add_argument("--seed", type=int, default=0, help="which stories (default 0)")
    parser.add_argument("--out", metavar="FILE", help="write the stories to FILE, not the screen")
    parser.add_argument("--entropy", action="store_true", help="print the exact entropy only")
    parser.add_argument("--stats", action="store_true", help="count words and distinct sentences")
    parser.add_argument("--check", metavar="FILE", help="judge the stories in FILE")
    options = parser.parse_args(argv)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options):
    if options.check:
        try:
            with open(options.check, encoding="utf-8", errors="replace") as file:
                print(check(file.read()))
        except OSError as error:
            raise UserError(f"cannot read {options.check}: {error.strerror}") from error
        return
    if options.entropy:
        print(entropy())
        return
    if options.words is not None and options.words < 1:
        raise UserError(f"--words is a number of words, 1 or more, not {options.words}")
    if options.stats or options.words or options.out:
        told = generate(options.words or 1_000_000, options.seed)
        if options.out:
            write(options.out, corpus_text(told))
        elif not options.stats:
            sys.stdout.write(corpus_text(told))
        if options.stats:
            print(stats(told))
        if options.out:
            count = sum(len(story.text.split()) for story in told)
            print(f"wrote {len(told):,} stories, {count:,} words, to {options.out}")
        return
    for story, _ in zip(stories(options.seed), range(3)):
        print(f"{story.text}\n\n    −log p = {story.nats:.2f} nats\n")
    print(entropy())


if __name__ == "__main__":
    raise SystemExit(main())
