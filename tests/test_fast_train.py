"""Compiled training against the lecture: the same words, the same merges, the same errors."""

import itertools
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from npgpt.backend import kernels_enabled
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, bpe

if not kernels_enabled():
    pytest.skip("Numba is not installed, or NPGPT_KERNELS=off", allow_module_level=True)

from npgpt.tokenizer import batches, fast_train, word_counts
from npgpt.tokenizer.count_table import CountTable, WordCounts, added, new_table, words_of
from npgpt.tokenizer.fast import FastBPETokenizer
from npgpt.tokenizer.unicode_classes import SPACE, class_table
from npgpt.tokenizer.word_table import LONG_WORD

ROOT = Path(__file__).resolve().parents[1]

PROSE = """The cat sat on the mat; the other cats weren't there. "Who's that?" said the rat.
\tOver there, 42 rats and 1,234 mice have eaten 98.6% of the oats!!!   They'll be back...\n\n
Ὁ λόγος ἦν πρὸς τὸν θεόν. Съешь ещё этих мягких булок, and antidisestablishmentarianism.
吾輩は猫である。名前はまだ無い。\u3000どこで生れたか頓と見当がつかぬ。 😀😀🏽 e\u0301é\u00a0\u2028x
"""
ALPHABETS = ["ab", "a", "aaab ", "abcdefgh  \n", "é字😀a ", "\u3000 \n\t'sre.", "01234 .", "<|x>"]
SPECIAL = ["<|x|>", "<|x", "a b", "\n"]


def random_texts(seed, how_many, longest):
    """Texts of few letters, in which pairs overlap and counts are equal, and of many scripts."""
    rng = random.Random(seed)
    for _ in range(how_many):
        letters = rng.choice(ALPHABETS)
        yield "".join(rng.choices(letters, k=rng.randrange(rng.choice([3, 30, longest]))))


def as_dict(words):
    """WordCounts as the lecture has them, no word twice."""
    raw = words.letters.tobytes()
    starts = [0, *words.ends.tolist()]
    spelled = [raw[start:end].decode() for start, end in itertools.pairwise(starts)]
    assert len(set(spelled)) == len(spelled)
    return dict(zip(spelled, words.counts.tolist()))


def as_words(counts):
    """A dict from word to count as WordCounts."""
    letters = [word.encode("utf-8") for word in counts]
    return WordCounts(
        np.frombuffer(b"".join(letters), np.uint8),
        np.cumsum([len(word) for word in letters], dtype=np.int64),
        np.array(list(counts.values()), np.int64),
    )


@pytest.fixture
def tight(monkeypatch):
    """Batches of some letters and tables of some words, so that all of them overflow."""
    monkeypatch.setattr(batches, "BATCH", 50)
    monkeypatch.setattr(word_counts, "FIRST_ROWS", 8)
    monkeypatch.setattr(word_counts, "MOST_ROWS", 32)
    monkeypatch.setattr(word_counts, "MOST_LETTERS", 200)


# Counting words


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_words_are_the_lectures(tight, threads):
    texts = [PROSE * 3, "", *random_texts(threads, 400, 300), "x" * 1000, " " * 1000, "\n" * 70]
    for special in ([], [END_OF_TEXT], SPECIAL):
        expected = bpe.count_words(texts, special)
        assert as_dict(word_counts.count_words(texts, special, threads)) == expected
        raw = (text.encode("utf-8") for text in texts)
        assert as_dict(word_counts.count_words(raw, special, threads)) == expected


def test_words_of_real_text(shared_data):
    text = (shared_data / "tinystories" / "train.txt").read_text("utf-8")[:1_000_000]
    expected = bpe.count_words([text], [END_OF_TEXT])
    assert as_dict(word_counts.count_words([text], [END_OF_TEXT], 2)) == expected


def test_words_of_up_to_a_million_letters():
    lengths = [1, 7, 8, 9, 14, 15, 16, 17, 24, 63, 64, 65, 1000, 65_535, 65_536, 1_000_000]
    words = ["a" * (length - 1) + last for length in lengths for last in "ab"]
    counts = Counter(dict(zip(words, range(1, 100))))
    texts = [" ".join([word] * min(n, 3)) for word, n in counts.items()]
    assert as_dict(word_counts.count_words(texts)) == bpe.count_words(texts, ())


def test_long_words_of_one_hash_are_told_apart():
    letters = np.frombuffer(b"a" * 16 + b"b" * 16 + b"a" * 17, np.uint8)
    rows = np.zeros((8, 3), np.uint64)
    rows[:3] = [(7, int(LONG_WORD) + number, 10 * number) for number in (1, 2, 3)]
    twins = CountTable(rows, letters, np.array([0, 16, 32, 49]), np.array([3, 3]))
    both = added(added(new_table(2), twins), twins)
    assert as_dict(words_of(both)) == {"a" * 16: 20, "b" * 16: 40, "a" * 17: 60}


@pytest.mark.parametrize("special", [[], ["<|x>"], ["a b", "<|"], [" ", "a\n"], ["字 "]])
def test_a_cut_text_has_the_same_words(special):
    alphabets = ["ab \n", "a'st \n  ", "字 \u3000\n\u00a0.\u2003", "<|x> \nb", "é ½1 \t.,\n\x1c"]
    rng = random.Random(repr(special))
    names = [name.encode("utf-8") for name in special]
    cuts = 0
    for letters in alphabets:
        for _ in range(100):
            text = "".join(rng.choices(letters, k=rng.randrange(200)))
            raw, at = text.encode("utf-8"), sorted(rng.choices(range(600), k=rng.randrange(40)))
            chunks = [raw[i:j] for i, j in zip([0, *at], [*at, 600]) if i < len(raw)]
            pieces = [bytes(piece) for piece in batches.cut(chunks, names)]
            assert b"".join(pieces) == raw
            counted = bpe.count_words([piece.decode("utf-8") for piece in pieces], special)
            assert counted == bpe.count_words([text], special)
            cuts += len(pieces) - 1
    assert cuts > 200


def test_no_cut_follows_white_space():
    """The blank behind it may not be the last of its gap, and then belongs to what is cut off."""
    classes = class_table()
    for point in (*range(0xD800), *range(0xE000, 0x3100), 0xFEFF, 0x1F600):
        found = batches.LAST_CUT.search(f"{chr(point)} ".encode())
        visible = classes[point] != SPACE and not (point < 0x20 or point == 0x7F)
        assert (found is not None) == visible, hex(point)


def test_files(tight, tmp_path):
    text = f"{PROSE}{END_OF_TEXT}" * 20
    one, two, empty = (tmp_path / name for name in ("one", "two", "empty"))
    one.write_text(text, "utf-8", newline="")
    two.write_text("the other cat", "utf-8")
    empty.touch()
    expected = bpe.count_words([text, "the other cat", "and me"], [END_OF_TEXT])
    counted = word_counts.count_words([one, two, empty, "and me"], [END_OF_TEXT], 2)
    assert as_dict(counted) == expected
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"^{path} cannot be read: "):
            word_counts.count_words([path])


def test_what_is_not_utf8(tight, tmp_path):
    def complaint(texts, threads=2):
        with pytest.raises(UserError, match=r"^the text is not UTF-8: byte ") as caught:
            word_counts.count_words(texts, (), threads)
        return str(caught.value).partition(" byte ")[2].partition(";")[0]

    good = "grün " * 30
    assert complaint([b"a\xffb"]) == "1 of document 0 is 0xff"
    assert complaint([good, good, b"", b"ab\xed\xa0\x80"]) == "2 of document 3 is 0xed"
    # Together these would be UTF-8, but the second document begins within a character.
    assert complaint([b"ab\xc3", b"\xbcber"]) == "0 of document 1 is 0xbc"
    raw = good.encode("utf-8") + b"\xc0" + good.encode("utf-8")
    assert complaint([good, raw]) == f"{len(good.encode('utf-8'))} of document 1 is 0xc0"
    path = tmp_path / "text"
    path.write_bytes(raw)
    assert complaint([good, path]) == f"{len(good.encode('utf-8'))} of {path} is 0xc0"
    with pytest.raises(UserError, match="surrogate"):
        word_counts.count_words(["\ud800"])


def test_what_is_no_text(tmp_path):
    for lone in ("text", b"text", tmp_path):
        with pytest.raises(TypeError, match="where an iterable of them is meant"):
            word_counts.count_words(lone)
    with pytest.raises(TypeError, match="must be str, bytes or a Path, not int"):
        word_counts.count_words([1])


def test_memory_is_bounded(monkeypatch, tmp_path):
    """32 MB as documents that nobody holds, and as one file, through a few hundred kilobytes."""
    monkeypatch.setattr(batches, "BATCH", 1 << 16)
    text = (PROSE * 80).encode("utf-8")
    times = (32 << 20) // len(text)
    path = tmp_path / "text"
    path.write_bytes(text * times)
    word_counts.count_words([text], (), 2)  # compiles
    for texts in (itertools.repeat(text, times), [path]):
        tracemalloc.start()
        counted = word_counts.count_words(texts, (), 2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert as_dict(counted)[" the"] == 80 * times * bpe.count_words([PROSE], ())[" the"]
        assert peak < 4 << 20


def test_letters_of_long_words_do_not_pile_up(tight, monkeypatch):
    """Where each word is another one, a table that kept them all would be as large as the text."""
    kept, count = [], word_counts.Counter.count

    def watched(counter, batch):
        n_bytes = count(counter, batch)
        kept.extend(table.long_letters for table in counter.idle)
        return n_bytes

    monkeypatch.setattr(word_counts.Counter, "count", watched)
    words = {"x" * 40 + a + b: 1 for a in "abcdefghij" for b in "abcdefghij"}
    assert as_dict(word_counts.count_words(list(words), (), 1)) == words
    assert 40 < max(kept) <= word_counts.MOST_LETTERS


# Learning merges


def assert_merges_equal(texts, n_merges, special=(), threads=1):
    counts = bpe.count_words(texts, special)
    words = word_counts.count_words(texts, special, threads)
    assert fast_train.learn_merges(words, n_merges) == bpe.learn_merges(counts, n_merges)


def test_merges_are_the_lectures():
    for seed in range(150):
        texts = list(random_texts(seed, 1 + seed % 4, 400))
        assert_merges_equal(texts, [0, 1, 7, 60, 1000][seed % 5], SPECIAL[: seed % 4], 1 + seed % 4)
    assert_merges_equal([PROSE], 1000)


def test_merges_of_real_text(shared_data):
    for name in ("tinyshakespeare/input.txt", "tinystories/valid.txt"):
        text = (shared_data / name).read_text("utf-8")[:200_000]
        assert_merges_equal([text], 700, [END_OF_TEXT], 2)


@pytest.mark.parametrize(
    "text",
    ["a" * n for n in (1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 1000)]
    + ["ab" * 50, "aab" * 50, "abaa" * 25, "a" * 9 + "b" + "a" * 9, "abcba" * 20]
    + ["aa aaa aaaa aaaaa", "abcdefghijklmnopqrstuvwxyz", "zyx xyz yzx", "ab ba ac ca bc cb"]
    + ["é" * 20, "\u00e9\u00ea" * 9, "字字字", " ", "      ", ""],
    ids=lambda text: f"{text[:8]}-{len(text)}",
)
def test_merges_of_awkward_text(text):
    assert_merges_equal([text], 1000)


def test_merges_of_a_word_of_200_000_letters():
    """Too much for the lecture, but it can tell what must come out: powers of two."""
    words = word_counts.count_words(["a" * 200_000])
    assert fast_train.learn_merges(words, 5) == [(b"a" * 2**k,) * 2 for k in range(5)]
    rng = random.Random(0)
    word = "".join(rng.choices("abcd", k=70_000))
    assert_merges_equal([word], 12)


def test_ties_are_broken_by_bytes():
    # As in test_tokenizer: (b, c) > (b, b) > (a, z); and (ab, x) > (a, y).
    train = FastBPETokenizer.train
    assert train(["az", "1bc", "2bb"], 258, ()).merges == [(b"b", b"c"), (b"b", b"b")]
    assert train(["zz", "é"], 257, ()).merges == [(b"\xc3", b"\xa9")]
    assert train([*["ab"] * 3, "abx", "ay"], 258, ()).merges == [(b"a", b"b"), (b"ab", b"x")]
    every_pair = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    assert_merges_equal(every_pair, 100)


def test_counts_are_of_64_bits():
    counts = {"ab": 1 << 61, "bc": 1 << 61, "xy": (1 << 62) + 1, "cab": 1 << 40, "b": 1}
    assert fast_train.learn_merges(as_words(counts), 10) == bpe.learn_merges(counts, 10)
    assert fast_train.learn_merges(as_words(counts), 1) == [(b"x", b"y")]


def test_room_for_pairs_grows(monkeypatch):
    letters = np.random.default_rng(0).integers(0, 256, 600_000).astype(np.uint8)
    ends = np.arange(6, 600_001, 6)
    words = WordCounts(letters, ends, np.ones(len(ends), np.int64))
    grown = []
    double = fast_train.doubled
    monkeypatch.setattr(fast_train, "doubled", lambda array: grown.append(1) or double(array))
    short = fast_train.learn_merges(words, 40)
    assert grown == [1, 1]  # pairs and heap, once each
    assert fast_train.learn_merges(words, 9000)[:40] == short


def test_a_billion_letters_are_refused(monkeypatch):
    monkeypatch.setattr(fast_train, "MOST_LETTERS", 300)
    with pytest.raises(UserError, match=r"have 301 letters together, .* at most 300: train on"):
        FastBPETokenizer.train(["x" * 45], 300)


# The tokenizer


def test_the_tokenizer_is_the_lectures():
    special = [END_OF_TEXT, "<|pad|>"]
    texts = [PROSE, f"{PROSE[:99]}<|pad|>{PROSE[99:]}", *random_texts(5, 30, 200)]
    tok = BPETokenizer.train(texts, 500, special)
    raw = [text.encode("utf-8") for text in texts]
    for threads in (None, 1, 2, 3, 4):
        fast = FastBPETokenizer.train(iter(raw), 500, special, threads=threads)
        assert type(fast) is FastBPETokenizer
        assert (fast.merges, fast.tokens, fast.special_tokens) == (
            tok.merges, tok.tokens, tok.special_tokens,
        )  # fmt: skip


@pytest.mark.parametrize(
    "texts, size, special",
    [
        (["abab", "aba"], 50_000, [END_OF_TEXT]),
        (["abab", "aba"], 10**15, [END_OF_TEXT]),
        ([], 258, [END_OF_TEXT]),
        (["a", "b"], 257, ()),
        (["x"], 256, [END_OF_TEXT]),
        ([PROSE], 100_000, [END_OF_TEXT]),
        (["x"], 300, ["<|a|>", "<|a|>"]),
        (["x"], 300, [""]),
        (["x"], 257, ["A"]),
    ],
)
def test_the_errors_are_the_lectures(texts, size, special):
    with pytest.raises(UserError) as expected:
        BPETokenizer.train(texts, size, special)
    with pytest.raises(UserError) as caught:
        FastBPETokenizer.train(texts, size, special)
    assert str(caught.value) == str(expected.value)


def test_the_largest_possible_vocabulary():
    assert FastBPETokenizer.train([], 257).merges == []
    tok = FastBPETokenizer.train(["abab", "aba"], 260)
    assert tok.merges == BPETokenizer.train(["abab", "aba"], 260).merges


def test_progress(monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 1000)
    merges, bytes_read = [], []
    tok = FastBPETokenizer.train(
        [PROSE] * 20,
        400,
        progress=lambda done, total: merges.append((done, total)),
        threads=2,
        reading=bytes_read.append,
    )
    total = len(tok.merges)
    assert merges[-1] == (total, total) and merges == sorted(set(merges))
    assert len(bytes_read) > 5 and bytes_read == sorted(bytes_read)
    assert bytes_read[-1] == 20 * len(PROSE.encode("utf-8"))


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process alone")
@pytest.mark.parametrize("where", ["reading", "progress"])
def test_ctrl_c(where):
    """Texts without an end, and a word from which there is too much to learn."""
    program = f"""
import itertools, random, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
from npgpt.tokenizer.fast import FastBPETokenizer
reading = itertools.repeat("again and again " * 1000)
progress = ["".join(random.Random(0).choices("abcdefgh", k=3_000_000))]
def tell(*_):
    print("now", flush=True)
try:
    FastBPETokenizer.train({where}, 1_000_000, threads=2, {where}=tell)
except KeyboardInterrupt:
    sys.exit(7)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "now\n"
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
            assert process.returncode == 7 and set(out) <= set("now\n")
        finally:
            process.kill()
