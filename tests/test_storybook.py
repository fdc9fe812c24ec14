"""The storybook's claims: the same everywhere, unambiguous, its entropy exact, its checker fair.

The two proofs come first. Sampling could only fail to find an ambiguity; these walk the whole
grammar: `test_no_text_has_two_paths` and `test_every_dealt_card_is_named` together say that a
text determines every choice that was made for it, so that −log p of the choices is −log p of
the text.
"""

import doctest
import hashlib
import math
import os
import re
import statistics
import time
from collections import Counter

import pytest

from data import storybook as sb
from data import storybook_checker as checker
from data import storybook_grammar as grammar
from data import storybook_tree as tree
from npgpt.errors import UserError


@pytest.fixture(scope="module")
def told():
    return sb.generate(200_000, seed=7)


# ------------------------------------------------------------------------------- the proofs


def _automaton():
    """The grammar as an automaton over characters, every mention of a card left free.

    A Slot becomes one path for each *distinct* text that it can show. Leaving it free only adds
    texts and paths, so an automaton without ambiguity proves a grammar without ambiguity.
    Returns chars, the character read at each position, and follow, the positions that may come
    next; the last position stands for the end of the story.
    """
    chars, follow = [], []

    def place(text, before):
        for ch in text:
            chars.append(ch)
            follow.append([])
            for state in before:
                follow[state].append(len(chars) - 1)
            before = [len(chars) - 1]
        return before

    def build(node, before):
        if isinstance(node, str):
            return place(node, before)
        if isinstance(node, tree.Slot):
            shown = dict.fromkeys(tree.show(node, card) for card, _ in tree.odds(node.deck))
            return [state for text in shown for state in place(text, before)]
        if isinstance(node, tree.Choice):
            return [state for option in node.options for state in build(option, before)]
        if not isinstance(node, tree.Deal):
            for part in node:
                before = build(part, before)
        return before

    start = place("^", [])
    place("$", build(tree.GRAMMAR, start))
    return chars, follow


def _ambiguity(chars, follow):
    """A text that two different paths can read, or None: walk all pairs of paths side by side."""
    for state, after in enumerate(follow):
        if len(set(after)) < len(after):
            return f"two empty ways from {chars[state]!r} at {state}"
    came_from = {}
    todo = []

    def visit(pair, previous):
        if pair not in came_from:
            came_from[pair] = previous
            todo.append(pair)

    def step(first, second, previous):
        by_char = {}
        for q in second:
            by_char.setdefault(chars[q], []).append(q)
        for p in first:
            for q in by_char.get(chars[p], ()):
                if p != q:
                    visit((min(p, q), max(p, q)), previous)
                elif previous is not None:  # two paths that differed meet again: same text
                    return p
        return None

    for after in follow:
        step(after, after, None)
    while todo:
        pair = todo.pop()
        met = step(follow[pair[0]], follow[pair[1]], pair)
        if met is not None:
            text = [chars[met]]
            while pair is not None:
                text.append(chars[pair[0]])
                pair = came_from[pair]
            return "".join(reversed(text))
    return None


def test_no_text_has_two_paths():
    assert _ambiguity(*_automaton()) is None


@pytest.mark.parametrize(
    "template", ["[a|a]", "[ab|a][c|bc]", "x[|y][|y]z", "[a|[a|b]]", "x[|]y", "[a|ab][b|]"]
)
def test_the_proof_finds_planted_ambiguities(template, monkeypatch):
    monkeypatch.setattr(tree, "GRAMMAR", tree._compile(template))
    assert _ambiguity(*_automaton()) is not None


def _named(node):
    """The decks whose card a node names for certain, by a form that no other card shares."""
    if isinstance(node, tree.Slot):
        shown = [tree.show(node, card) for card, _ in tree.odds(node.deck)]
        return {node.deck} if len(set(shown)) == len(shown) else set()
    if isinstance(node, tree.Choice):
        return set.intersection(*map(_named, node.options))
    if isinstance(node, str | tree.Deal):
        return set()
    return set().union(*map(_named, node))


def _used(node):
    if isinstance(node, tree.Slot):
        return {node.deck}
    if isinstance(node, str | tree.Deal):
        return set()
    parts = node.options if isinstance(node, tree.Choice) else node
    return set().union(*map(_used, parts))


def test_every_dealt_card_is_named():
    *opening, plots = tree.GRAMMAR
    hero = set(grammar.HERO)
    assert hero <= _named(tuple(opening))
    for deal, *beats in plots.options:
        assert set(deal.decks) <= _named(tuple(beats)), deal
        assert _used(tuple(beats)) <= hero | set(deal.decks), "a card is used but never dealt"
        assert not hero & set(deal.decks)


def test_names_of_heroes_are_distinct_from_friends():
    names = [card.plain for deck in ("name", "friend") for card, _ in tree.odds(deck)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", [grammar, checker])
def test_the_examples_in_the_text(module):
    result = doctest.testmod(module, extraglobs={"stories": sb.stories})
    assert result.attempted and not result.failed


# ------------------------------------------------------------------------------ probability


def test_each_story_has_one_derivation_of_the_told_probability(told):
    for story in told[:1500]:
        assert checker.readings(story.text) == pytest.approx([story.nats], abs=1e-9)
        assert checker.nats(story.text) == pytest.approx(story.nats, abs=1e-9)


def test_entropy_is_the_mean_of_minus_log_p():
    exact = sb.entropy()
    sample = [story for story, _ in zip(sb.stories(20), range(20_000))]
    for values, expected in [
        ([s.nats for s in sample], exact.nats_per_story),
        ([len(s.text.split()) for s in sample], exact.words_per_story),
        ([len(s.text) for s in sample], exact.chars_per_story),
    ]:
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert abs(statistics.fmean(values) - expected) < 3 * error
    assert exact.nats_per_word == pytest.approx(exact.nats_per_story / exact.words_per_story)
    assert "nats a story" in str(exact)


def _texts(node):
    """Every text of a node without slots, with its probability."""
    if isinstance(node, str):
        return {node: 1.0}
    if isinstance(node, tree.Choice):
        return {
            text: p * math.exp(-n)
            for n, option in zip(node.nats, node.options)
            for text, p in _texts(option).items()
        }
    found = {"": 1.0}
    for part in node:
        found = {a + b: p * q for a, p in found.items() for b, q in _texts(part).items()}
    return found


def test_entropy_against_enumeration():
    node = tree._compile("[2:so|yes, [no|3:never again]] we [go|5:|stay a while].")
    texts = _texts(node)
    assert sum(texts.values()) == pytest.approx(1)
    assert sb._expect(node) == pytest.approx(
        (
            -sum(p * math.log(p) for p in texts.values()),
            sum(p * text.count(" ") for text, p in texts.items()),
            sum(p * len(text) for text, p in texts.items()),
        )
    )


def test_entropy_is_that_of_the_texts(monkeypatch):
    """Of a story so short that all can be written down: cards that depend on others, and slots."""
    template = "[3:Once|One day], <name> the <kind> saw a [fox|goose] and <he> [ran|3:hid and ran]."
    story = (tree.Deal(("kind", "name")), " ", tree._compile(template))
    monkeypatch.setattr(sb, "GRAMMAR", story)
    texts = Counter()
    total = sum(card["weight"] for card in grammar.DECKS["kind"])
    for kind in grammar.DECKS["kind"]:
        names = grammar.DECKS["name"][kind["names"]]
        for name in names:
            p = kind["weight"] / total / len(names)
            for opening, q in ("Once", 3 / 4), ("One day", 1 / 4):
                for seen in ("fox", "goose"):
                    for end, r in ("ran", 1 / 4), ("hid and ran", 3 / 4):
                        text = f"{opening}, {name['*']} the {kind['*']} saw a {seen}"
                        texts[f"{text} and {name['he']} {end}."] += p * q * r / 2
    assert math.fsum(texts.values()) == pytest.approx(1)
    exact = sb.entropy()
    nats = -math.fsum(p * math.log(p) for p in texts.values())
    chars = math.fsum(p * len(text) for text, p in texts.items())
    assert exact.nats_per_story == pytest.approx(nats)
    assert exact.words_per_story == pytest.approx(
        math.fsum(p * len(text.split()) for text, p in texts.items())
    )
    assert exact.chars_per_story == pytest.approx(chars)
    assert exact.bits_per_char == pytest.approx(nats / chars / math.log(2))
    for told, _ in zip(sb.stories(3), range(200)):
        assert told.nats == pytest.approx(-math.log(texts[told.text]))


def test_probabilities_of_choices_sum_to_one():
    def walk(node):
        if isinstance(node, tree.Choice):
            assert math.fsum(math.exp(-n) for n in node.nats) == pytest.approx(1)
            assert len(node.edges) == len(node.options) - 1
        if not isinstance(node, str | tree.Slot | tree.Deal):
            for part in node.options if isinstance(node, tree.Choice) else node:
                walk(part)

    walk(tree.GRAMMAR)
    for deck in grammar.DECKS:
        assert math.fsum(p for _, p in tree.odds(deck)) == pytest.approx(1)


# --------------------------------------------------------------------------------- the corpus


# Changing a word of the grammar changes this, and with it every corpus ever written with a seed.
PINNED = "719125dc37ad531f75f42930e1ea421004e750105a133e0a1c2dc6c28fa3e0a4"


def test_the_same_seed_tells_the_same_stories():
    text = sb.corpus_text(sb.generate(5_000, seed=1))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == PINNED
    assert sb.corpus_text(sb.generate(5_000, seed=1)) == text
    assert sb.corpus_text(sb.generate(5_000, seed=2)) != text
    longer = sb.corpus_text(sb.generate(6_000, seed=1))
    assert longer.startswith(text)


def test_the_corpus_is_varied_and_of_the_promised_size(told):
    assert len({story.text for story in told}) == len(told)
    lengths = [len(story.text.split()) for story in told]
    assert 200_000 <= sum(lengths) < 200_000 + max(lengths)
    assert sb.generate(lengths[0], seed=7) == told[:1] and sb.generate(0, seed=7) == []
    assert 50 <= min(lengths) and max(lengths) <= 140
    vocabulary = {w for s in told for w in re.findall("[a-z]+", s.text.lower())}
    assert 400 <= len(vocabulary) <= 630
    assert 0.4 <= sb.entropy().nats_per_word <= 0.8


def test_the_text_is_tidy(told):
    for story in told[:1000]:
        assert story.text.isascii() and story.text == story.text.strip()
        for bad in ["  ", " .", " ,", " \n", "\n ", "\n\n", *"<[|{", "..", ",,", "?,", ",."]:
            assert bad not in story.text
        assert story.text.count('"') % 2 == 0
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", story.text)
        assert not re.search(r"\b(\w+) \1\b", story.text)
        assert all(s[0] in '"ABCDEFGHIJKLMNOPQRSTUVWXYZ' for s in tree.TEXT_BREAK.split(story.text))


# -------------------------------------------------------------------------------- the checker


def test_the_checker_accepts_every_told_story(told):
    some = told[:500]
    report = sb.check(sb.corpus_text(some))
    assert (report.stories, report.accepted, report.unfinished) == (500, 500, 0)
    assert report.valid_sentences == report.sentences > 3000
    assert report.consistent == report.ended == report.all_valid == 500
    assert not report.reasons and "100.0%" in str(report)


def test_every_sentence_is_valid_by_itself(told):
    for story in told[:60]:
        for piece in tree.TEXT_BREAK.split(story.text):
            looks, hands = checker._sentence(piece)
            assert looks and hands, piece


def _story(told, *needles):
    return next(s.text for s in told if all(needle in s.text for needle in needles))


def _swap_last(text, old, new):
    head, found, tail = text.rpartition(old)
    assert found
    return head + new + tail


def test_a_wrong_name_is_seen(told):
    text = _story(told, " girl named Lily", "Lily smiled and")
    verdict = checker.judge(_swap_last(text, "Lily smiled and", "Rosa smiled and"))
    assert verdict.fault == "hero" and not verdict.consistent
    assert verdict.valid == verdict.sentences
    assert "'Rosa smiled" in verdict.reason and "Lily" in verdict.reason


def test_a_wrong_pronoun_is_seen(told):
    text = _story(told, " girl named", "She worked")
    verdict = checker.judge(text.replace("She worked", "He worked", 1))
    assert verdict.fault == "hero" and not verdict.consistent


def test_a_pronoun_wrong_within_its_sentence_is_seen(told):
    text = _story(told, " boy named", " and his friend ")
    verdict = checker.judge(text.replace(" and his friend ", " and her friend ", 1))
    assert verdict.fault == "hero" and not verdict.consistent
    assert verdict.valid == verdict.sentences - 1


def test_a_wrong_wish_is_seen(told):
    text = _story(told, "bought the", " kite")
    changed = re.sub(r"(bought the \w+) kite", r"\1 ball", text)
    verdict = checker.judge(changed)
    assert verdict.fault == "hero" and "'kite'" in verdict.reason


def test_a_missing_ending_is_seen(told):
    for story in told[:50]:
        pieces = tree.TEXT_BREAK.split(story.text)
        verdict = checker.judge(story.text[: story.text.rindex(pieces[-1])])
        assert verdict.fault == "ending" and not verdict.ended and verdict.consistent
        verdict = checker.judge(story.text[:-9])
        assert verdict.fault == "ending"


def test_shuffled_sentences_are_seen(told):
    for story in told[:50]:
        first, second, *rest = tree.TEXT_BREAK.split(story.text)
        verdict = checker.judge(" ".join([first, *rest[::-1], second]))
        assert verdict.fault in ("order", "sentence", "ending", "hero")
        assert verdict.valid == verdict.sentences
    text = told[0].text
    assert checker.judge(text + " " + tree.TEXT_BREAK.split(text)[-1]).fault == "order"


def test_foreign_sentences_are_seen(told):
    text = told[3].text
    pieces = tree.TEXT_BREAK.split(text)
    verdict = checker.judge(text.replace(pieces[3], "The cat sat on the mat."))
    assert verdict.fault == "sentence" and verdict.valid == verdict.sentences - 1
    assert verdict.ended and "The cat sat on the mat." in verdict.reason


def test_the_offending_sentence_is_the_second_of_two_alike(told):
    pieces = tree.TEXT_BREAK.split(told[0].text)
    verdict = checker.judge(" ".join([*pieces[:3], *pieces[2:]]))
    assert verdict.fault == "order" and verdict.reason.startswith(f"sentence 4, {pieces[2]!r}")


def test_nothing_may_follow_the_end(told):
    assert checker.judge(told[0].text + "!").fault == "sentence"


def test_shares_are_of_stories_or_of_sentences(told):
    good, text = told[2].text, told[3].text
    bad = text.replace(tree.TEXT_BREAK.split(text)[3], "The cat sat on the mat.")
    report = sb.check(f"{good}{sb.SEPARATOR}{bad}{sb.SEPARATOR}")
    sentences = sum(len(tree.TEXT_BREAK.split(story)) for story in (good, bad))
    assert (report.sentences, report.valid_sentences) == (sentences, sentences - 1)
    assert report.share("valid_sentences") == (sentences - 1) / sentences
    assert report.share("accepted") == report.share("all_valid") == 1 / 2
    assert report.faults == {"sentence": 1} and report.share("ended") == 1


def test_any_text_at_all_is_judged(told):
    garbage = ["", " ", "\n", "x", '"', "\x00\ufffd☃", ". . . ! ?", "Once upon a time", "a" * 9999]
    garbage += ["Once upon a time, there was a " * 500, "Tom. " * 3000, '"No!" ' * 2000]
    for text in garbage:
        assert checker.judge(text).fault and checker.nats(text) is None
    assert checker.judge("").fault == "empty"
    assert checker.judge("Once upon a time").fault == "ending"
    assert checker.judge("Twice upon a time.").fault == "sentence"
    report = sb.check(sb.SEPARATOR.join(garbage))
    assert report.stories == len(garbage) - 2  # one has no beginning and one no end
    assert report.accepted == report.consistent == report.ended == 0 and report.unfinished == 1
    assert report.all_valid == 0, "nor has a story without a sentence only valid ones"
    assert report.faults["empty"] == 2 and len(report.reasons) == 5
    assert str(report)
    assert str(sb.check("")).startswith("0 stories")
    prompted = sb.check(sb.SEPARATOR + told[0].text + sb.SEPARATOR + "\n" + told[1].text)
    assert (prompted.stories, prompted.accepted, prompted.unfinished) == (1, 1, 1)


def test_the_checker_reads_what_generate_writes(told):
    """Each text behind its header is judged, the last one too, and one that was cut short."""
    texts = [told[0].text, told[1].text, told[2].text[:60], told[3].text]
    headed = (f"----- sample {i} of 4 -----\n{text}\n" for i, text in enumerate(texts, 1))
    report = sb.check("".join(headed))
    assert (report.stories, report.accepted, report.unfinished) == (4, 3, 0)
    assert report.faults["ending"] == 1


def test_of_too_many_hands_some_are_followed():
    hands = [{"name": number} for number in range(100)]
    assert checker._join([{}], hands, limit=64) == hands[:64]


def test_the_checker_is_fast_on_broken_stories(told):
    broken = [story.text.replace(" the ", " a ", 2) for story in told[:200]]
    start = time.perf_counter()
    sb.check(sb.corpus_text([sb.Story(text, 0.0) for text in broken]))
    assert time.perf_counter() - start < 5


# ---------------------------------------------------------------------------- the command line


def test_the_command_line(tmp_path, capsys):
    assert sb.main([]) == 0
    assert capsys.readouterr().out.count("−log p") == 3
    path = tmp_path / "corpus.txt"
    assert sb.main(["--words", "2000", "--seed", "5", "--out", str(path), "--stats"]) == 0
    assert path.read_bytes() == sb.corpus_text(sb.generate(2000, 5)).encode()
    assert list(tmp_path.iterdir()) == [path]
    assert sb.main(["--entropy"]) == 0
    assert sb.main(["--check", str(path)]) == 0
    assert "100.0%" in capsys.readouterr().out


def test_what_a_model_wrote_may_be_no_utf8(tmp_path, capsys):
    (tmp_path / "cut").write_bytes("é".encode()[:1] + b"<|endoftext|>")
    assert sb.main(["--check", str(tmp_path / "cut")]) == 0
    assert capsys.readouterr().out.startswith("1 stories, and 0 unfinished")


def test_a_file_that_fails_leaves_nothing(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert sb.main(["--words", "5", "--out", str(tmp_path / "folder")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write ")
    assert os.listdir(tmp_path) == ["folder"]


def test_what_is_counted():
    told = [sb.Story("Tom ran. Tom sat.", 2.0), sb.Story("Tom ran.", 5.0)]
    assert sb.stats(told) == (
        "stories    2, of them distinct 2\n"
        "words      6; a story has 2 to 4\n"
        "vocabulary 3 words; the rarest: tom 3, ran 2, sat 1\n"
        "sentences  3, of them distinct 2\n"
        "nats       3.5000 a story on average"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--check", "no/such/file"],
        ["--words", "5", "--out", "no/such/folder/x"],
        ["--words", "0"],
        ["--seed", "-1"],
    ],
)
def test_a_mistake_is_one_sentence(argv, capsys):
    assert sb.main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes with a name")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sb.write(tmp_path / "pipe", "a story")
    assert os.read(reader, 99) == b"a story"
    os.close(reader)


def test_seeds_are_not_negative():
    with pytest.raises(UserError, match="0 or more"):
        next(sb.stories(-1))
