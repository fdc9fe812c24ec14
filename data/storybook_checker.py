"""How well does a model tell the storybook's stories? Two more readers of the grammar's tree.

`readings` parses a whole story, and says how surprised the source itself would be by it. `judge`
looks for the first fault of a story that a model wrote, and `check` counts the faults of many.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from data.storybook_tree import (
    GRAMMAR,
    PLOTS,
    SENTENCES,
    SEPARATOR,
    TEXT_BREAK,
    Choice,
    Deal,
    Slot,
    draws,
    odds,
    show,
)

SAMPLE = re.compile("^----- sample [0-9]+ of [0-9]+ -----\n", re.MULTILINE)  # of generate.py

# --------------------------------------------------------------------------------------------
# One reader: parse a text.


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
            for more, _, cost in [(cards, 0, 0.0)] if known else draws(node.deck, cards):
                shown = show(node, more[node.deck])
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
# Another: find what is wrong with a text.


def _pattern(node):
    """The node as a regular expression in which every Slot may show any of its cards."""
    if isinstance(node, str):
        return re.escape(node)
    if isinstance(node, Slot):
        shown = dict.fromkeys(re.escape(show(node, card)) for card, _ in odds(node.deck))
        return f"(?:{'|'.join(shown)})"
    if isinstance(node, Choice):
        return f"(?:{'|'.join(map(_pattern, node.options))})"
    return "".join(map(_pattern, node))


@lru_cache(maxsize=1)
def _patterns():
    return [(node, re.compile(_pattern(node))) for node in SENTENCES]


@lru_cache(maxsize=1)
def _endings():
    closings = {way: None for *_, last in PLOTS for way in last.options}
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
    pieces = TEXT_BREAK.split(text)
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
    """Judge a text of stories: Report, with the first `keep` reasons.

    Stories are parted by `SEPARATOR`. What follows the last one is an unfinished story, counted
    apart and not judged. A separator at the very beginning, which models are often prompted with,
    opens no story. Or they are parted by generate.py's headers; each is judged then.
    """
    report = Report()
    if SAMPLE.match(text):
        pieces, rest = SAMPLE.split(text)[1:], ""
    else:
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
