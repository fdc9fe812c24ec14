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

**One grammar, several readers.** The decks of cards and the beats stand in `storybook_grammar.py`,
and `storybook_tree.py` compiles them into a tree. Each reader is one short recursion over it. Two
are here: `_say` tells a story, `_expect` adds up the entropy. Two are in `storybook_checker.py`:
`_read` parses a text, and `_pattern` turns a sentence into a regular expression.

    python -m data.storybook                                        # three stories and the floor
    python -m data.storybook --words 1000000 --seed 1 --out train.txt
    python generate.py --num-samples 100 --out stories.txt
    python -m data.storybook --check stories.txt                    # how well does a model write?
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
from dataclasses import dataclass

from data.storybook_checker import check
from data.storybook_tree import (
    DECKS,
    GRAMMAR,
    SEPARATOR,
    TEXT_BREAK,
    Choice,
    Deal,
    Slot,
    draws,
    group_key,
    odds,
    show,
)
from npgpt.cli import main_with_errors
from npgpt.errors import UserError


@dataclass(frozen=True)
class Story:
    """One story and its exact surprise: −log p(text) in nats, its end included."""

    text: str
    nats: float


# --------------------------------------------------------------------------------------------
# First reader: tell a story.


def _say(node, cards, draw, out):
    """Append the node's text to `out`, drawing with `draw()` in [0, 1); return −log p."""
    kind = type(node)
    if kind is str:
        out.append(node)
        return 0.0
    if kind is Slot:
        out.append(show(node, cards[node.deck]))
        return 0.0
    if kind is Choice:
        i = bisect_right(node.edges, draw())
        return node.nats[i] + _say(node.options[i], cards, draw, out)
    nats = 0.0
    if kind is Deal:
        for deck in node.decks:
            group = DECKS[deck][group_key(deck, cards)]
            i = bisect_right(group.edges, draw())
            cards[deck] = group.options[i]
            nats += group.nats[i]
    else:
        for part in node:
            nats += _say(part, cards, draw, out)
    return nats


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
        shown = [(p, show(node, card)) for card, p in odds(node.deck)]
        return (0.0, *(sum(p * _expect(text)[i] for p, text in shown) for i in (1, 2)))
    if isinstance(node, Choice):
        parts = [(math.exp(-n), n, _expect(option)) for n, option in zip(node.nats, node.options)]
        return tuple(sum(p * (e[i] + (i == 0) * n) for p, n, e in parts) for i in range(3))
    if isinstance(node, Deal):
        # H(card | parent) = H(card, parent) − H(parent): −log p(card | parent) on average.
        return sum(n * math.exp(-m) for deck in node.decks for _, n, m in draws(deck, {})), 0, 0
    return tuple(sum(column) for column in zip((0.0, 0, 0), *map(_expect, node)))


# --------------------------------------------------------------------------------------------
# The command line.


def stats(told):
    """Counts over a list of stories, as a readable text."""
    lengths = [len(story.text.split()) for story in told]
    found = Counter(w for story in told for w in re.findall("[a-z]+", story.text.lower()))
    sentences = Counter(s for story in told for s in TEXT_BREAK.split(story.text))
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
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            with open(path, "w", encoding="utf-8", newline="\n") as device:  # /dev/null, or a pipe
                device.write(text)
            return
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
    return main_with_errors(_run, options)


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
