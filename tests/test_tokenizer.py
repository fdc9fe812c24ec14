"""The tokenizers: against a textbook BPE, against GPT-2's ids, and against careless hands.

Their files on the disk are the business of test_tokenizer_files.py.
"""

import doctest
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import npgpt.tokenizer.bpe
import npgpt.tokenizer.char
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, load_tokenizer
from npgpt.tokenizer.bpe import BYTES, PATTERN, merge_word

GPT2 = Path(__file__).resolve().parents[1] / "../shared/data/gpt2"

SAMPLE = """The cat sat on the mat; the other cats weren't there. "Who's that?" said the rat.
\tOver there, 42 rats and 1,234 mice have eaten 98.6% of the oats!!!   They'll be back...\n\n
Ὁ λόγος ἦν πρὸς τὸν θεόν. Съешь ещё этих мягких булок.
吾輩は猫である。名前はまだ無い。 😀😀🏽 e\u0301é
"""

TEXTS = [
    "",
    " ",
    "   two  and   three   spaces   ",
    "tabs\tand\nlines\r\n\r\n\u2028\u00a0\u3000\x85\x1c\x1d\x00\x7f",
    "don't I'll we've they're she'd it's I'm DON'T ’s",
    "x=3.14159; y==-1e10 // ½ ²³ ٣٤٥ Ⅷ",
    "naïve café e\u0301 ﬁ İi̇ß",
    "שלום עולם مرحبا بالعالم नमस्ते สวัสดี",
    "日本語の文章。한국어 문장.",
    "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁳󠁣󠁴󠁿 \U0010ffff\ufffd\ufeff\ue000",
    "<|endoftext", "a" * 300, " " * 300, "\n" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([SAMPLE], 400)


@pytest.fixture(scope="module")
def gpt2():
    if not (GPT2 / "encoder.json").exists():
        pytest.skip(f"GPT-2's vocabulary is not at {GPT2}")
    return load_tokenizer(GPT2)


def random_text(rng, length):
    """Characters from all planes, with many that the pattern of GPT-2 has to tell apart."""
    ranges = [(0, 0x80), (0, 0x80), (0x80, 0x250), (0x370, 0x600), (0x2000, 0x2100)]
    ranges += [(0x3000, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00), (0x1F300, 0x1F700)]
    ranges += [(0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(length))


def textbook_merges(texts, n_merges):
    """BPE with nothing kept between steps: count all pairs, merge the best, repeat."""
    words = [[bytes([b]) for b in w.encode()] for text in texts for w in PATTERN.findall(text)]
    merges = []
    for _ in range(n_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        a, b = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append((a, b))
        for word in words:
            i = 0
            while i < len(word) - 1:
                if word[i] == a and word[i + 1] == b:
                    word[i : i + 2] = [a + b]
                i += 1
    return merges, words


# Round trips


@pytest.mark.parametrize("text", [*TEXTS, SAMPLE])
def test_bpe_round_trip(bpe, text):
    ids = bpe.encode(text)
    assert all(type(i) is int for i in ids)
    assert bpe.decode(ids) == text
    assert b"".join(bpe.token_bytes(i) for i in ids) == text.encode()
    assert bpe.encode(text) == ids  # now from the cache


def test_random_text_round_trips(bpe):
    rng = random.Random(0)
    for length in range(300):
        text = random_text(rng, length)
        assert bpe.decode(bpe.encode(text)) == text
        assert "".join(PATTERN.findall(text)) == text


def test_any_ids_decode(bpe):
    rng = random.Random(1)
    for length in range(100):
        ids = [rng.randrange(bpe.vocab_size) for _ in range(length)]
        expected = b"".join(bpe.token_bytes(i) for i in ids).decode("utf-8", errors="replace")
        assert bpe.decode(ids) == expected
        assert bpe.decode(np.array(ids, dtype=np.uint16)) == expected
    assert bpe.decode([BYTES.index(b"n"), BYTES.index(b"\xc3")]) == "n\ufffd"  # half an é
    assert bpe.decode([BYTES.index(b"\xff"), BYTES.index(b"a")]) == "\ufffda"


@pytest.mark.parametrize("place, unknown", [(0, 400), (2, -1), (1, 10**9)])
def test_unknown_id(bpe, place, unknown):
    ids = [0, 1, 2]
    ids[place] = unknown
    message = f"^id {unknown} at position {place} is unknown: ids run from 0 to 399$"
    with pytest.raises(ValueError, match=message):
        bpe.decode(ids)
    with pytest.raises(ValueError, match=f"^id {unknown} is unknown"):
        bpe.token_bytes(unknown)


@pytest.mark.parametrize("wrong", [1.0, "1", None, [1], np.float32(1)])
def test_what_is_no_id(bpe, wrong):
    with pytest.raises(ValueError, match=r"^id .* at position 2 is not a whole number$"):
        bpe.decode([0, 1, wrong, 2])
    with pytest.raises(ValueError, match=r"^id .* is not a whole number$"):
        bpe.token_bytes(wrong)


def test_sequences_of_ids(bpe):
    ids = bpe.encode(SAMPLE)
    for dtype in (np.uint16, np.int32, np.int64, np.uint64):
        assert bpe.decode(np.array(ids, dtype)) == SAMPLE
        assert bpe.decode(list(np.array(ids, dtype))) == SAMPLE
    assert bpe.decode(tuple(ids)) == bpe.decode(iter(ids)) == SAMPLE
    assert bpe.decode(np.array([], np.uint16)) == bpe.decode([]) == ""
    with pytest.raises(ValueError, match=r"^id 18446744073709551615 at position 1 is unknown"):
        bpe.decode(np.array([3, 2**64 - 1], np.uint64))
    with pytest.raises(ValueError, match=r"^id \[1, 2\] at position 0 is not a whole number$"):
        bpe.decode(np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"^id nan at position 0 is not a whole number$"):
        bpe.decode([float("nan"), -1])


def test_half_a_surrogate_pair(bpe):
    with pytest.raises(
        UserError, match=r"^the text has half a surrogate pair, U\+D83D, at posit.* 2"
    ):
        bpe.encode("ab\ud83d")
    with pytest.raises(UserError, match="surrogate"):
        BPETokenizer.train(["fine", "\udc80"], 300)


def test_text_must_be_str(bpe):
    with pytest.raises(TypeError, match=r"^text must be a str, not bytes$"):
        bpe.encode(b"bytes")
    for kind in (CharTokenizer, BPETokenizer):
        with pytest.raises(TypeError, match="pass \\[text\\]"):
            kind.train("a lone string", *([300] if kind is BPETokenizer else []))


# The lecture


def test_words_of_gpt2s_pattern():
    words = "We|'ve| seen| 1234|km|  | of| '|road|'...|\n\n|\t|DON|'|T| ½|é|\u0301| 日本|。"
    words = [*words.split("|"), "\u00a0 \n ", " x", " \t "]
    assert PATTERN.findall("".join(words)) == words


@pytest.mark.parametrize("module", [npgpt.tokenizer.bpe, npgpt.tokenizer.char])
def test_worked_examples_are_true(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted >= 3


def test_tie_goes_to_the_greatest_pair():
    # All pairs occur once. (b, c) > (b, b) > (a, z): the first side decides, then the second.
    tok = BPETokenizer.train(["az", "1bc", "2bb"], 258, special_tokens=())
    assert tok.merges == [(b"b", b"c"), (b"b", b"b")]
    # Bytes decide, not ids: "é" (C3 A9) is greater than any letter.
    assert BPETokenizer.train(["zz", "é"], 257, ()).merges == [(b"\xc3", b"\xa9")]
    # A longer side is greater than its own beginning: (ab, x) comes before (a, y).
    tok = BPETokenizer.train(["ab"] * 3 + ["abx", "ay"], 258, ())
    assert tok.merges == [(b"a", b"b"), (b"ab", b"x")]


def test_frequency_comes_before_alphabet():
    assert BPETokenizer.train(["zz aa aa"], 257, ()).merges == [(b"a", b"a")]


def test_merges_are_pinned():
    tok = BPETokenizer.train(["the other weather, the other mother"], 264, [END_OF_TEXT])
    assert tok.merges == [
        (b"t", b"h"),
        (b"th", b"e"),
        (b"the", b"r"),
        (b"o", b"ther"),
        (b" ", b"other"),
        (b"w", b"e"),
        (b"we", b"a"),
    ]
    assert [tok.token_bytes(i) for i in range(3)] == [b"!", b'"', b"#"]
    assert [tok.token_bytes(i) for i in (187, 188, 220, 255)] == [b"\xff", b"\0", b" ", b"\xad"]
    assert tok.tokens[:256] == BYTES and sorted(BYTES) == [bytes([b]) for b in range(256)]
    assert tok.tokens[256:] == [a + b for a, b in tok.merges] + [END_OF_TEXT.encode()]
    assert tok.encode(" other") == [260]
    assert (tok.kind, tok.vocab_size, tok.end_of_text) == ("bpe", 264, 263)


def test_training_equals_the_textbook():
    rng = random.Random(2)
    for case in range(60):
        letters = "ab" if case % 3 == 0 else "abcde é\n" if case % 3 == 1 else "aaab "
        texts = ["".join(rng.choices(letters, k=rng.randrange(1, 80))) for _ in range(3)]
        merges, words = textbook_merges(texts, 1000)
        tok = BPETokenizer.train(texts, 256 + len(merges), special_tokens=())
        assert tok.merges == merges
        assert len(set(tok.tokens)) == tok.vocab_size  # no two merges make the same token
        # Encoding replays training: after all merges, and after the first half of them.
        assert [w for t in texts for w in tok.encode(t)] == [tok._ids[t] for w in words for t in w]
        half, words = textbook_merges(texts, len(merges) // 2)
        tok = BPETokenizer.train(texts, 256 + len(half), special_tokens=())
        assert tok.merges == half
        assert [i for t in texts for i in tok.encode(t)] == [tok._ids[t] for w in words for t in w]


def test_training_equals_the_textbook_on_prose():
    merges, _ = textbook_merges([SAMPLE], 150)
    assert BPETokenizer.train([SAMPLE], 406, ()).merges == merges


def test_earliest_merge_first_not_longest_match():
    ranks = {(b"b", b"c"): 0, (b"a", b"b"): 1, (b"ab", b"c"): 2}
    assert merge_word([b"a", b"b", b"c"], ranks) == [b"a", b"bc"]


def test_texts_may_be_a_generator_and_words_do_not_join_across_them():
    tok = BPETokenizer.train((t for t in ["ab", "ab"]), 257, ())
    assert tok.merges == [(b"a", b"b")]
    with pytest.raises(UserError, match="after 0 merges"):
        BPETokenizer.train(["a", "b"], 257, ())


def test_progress():
    seen = []
    BPETokenizer.train([SAMPLE], 262, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_the_cache_has_an_end(monkeypatch):
    monkeypatch.setattr(npgpt.tokenizer.bpe, "CACHE_WORDS", 3)
    tok = BPETokenizer.train([SAMPLE], 300)
    fresh = [i for word in PATTERN.findall(SAMPLE) for i in tok._encode_plain(word, 0)]
    assert tok.encode(SAMPLE) == fresh and len(tok._cache) <= 3
    tok._cache.clear()
    tok.encode("one two three")
    assert set(tok._cache) == {"one", " two", " three"}


def test_vocab_size_limits():
    with pytest.raises(UserError, match=r"^vocab_size 256 is too small: .* alone are 257$"):
        BPETokenizer.train(["x"], 256)
    assert BPETokenizer.train([], 257).merges == []
    message = (
        "^vocab_size 50000 is larger than this text supports: after 3 merges every word "
        "is one token, so give --vocab-size 260, or less$"
    )
    with pytest.raises(UserError, match=message):
        BPETokenizer.train(["abab", "aba"], 50000)
    tok = BPETokenizer.train(["abab", "aba"], 260)
    assert len(tok.encode("abab")) == len(tok.encode("aba")) == 1


# Special tokens


def test_special_tokens_are_never_crossed_in_training():
    text = f"ab{END_OF_TEXT}ab{END_OF_TEXT}" * 50
    tok = BPETokenizer.train([text], 258)
    assert tok.merges == [(b"a", b"b")]  # not (b, <), not (<, |)
    with pytest.raises(UserError, match="after 1 merges"):
        BPETokenizer.train([text], 259)
    assert tok.encode(text, allowed_special="all") == [256, 257] * 100


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_special_tokens_in_text(kind):
    special = [END_OF_TEXT, "<|a|>", "<|a|><|b|>"]
    if kind == "bpe":
        tok = BPETokenizer.train([SAMPLE], 300, special)
    else:
        tok = CharTokenizer.train([SAMPLE + "".join(special), "<|endoftext|", ">"], special)
    end, a, ab = tok.vocab_size - 3, tok.vocab_size - 2, tok.vocab_size - 1
    assert tok.special_tokens == {END_OF_TEXT: end, "<|a|>": a, "<|a|><|b|>": ab}
    assert (tok.kind, tok.end_of_text) == (kind, end)
    text = f"{END_OF_TEXT}the<|a|><|b|> <|a|>{END_OF_TEXT}{END_OF_TEXT}"
    the, space = tok.encode("the"), tok.encode(" ")
    ids = [end, *the, ab, *space, a, end, end]
    assert tok.encode(text, allowed_special="all") == ids
    assert tok.encode(text, allowed_special=set(special)) == ids
    assert tok.decode(ids) == text
    assert tok.token_bytes(end) == END_OF_TEXT.encode()

    message = r"^the text contains the special token '<\|a\|>' at position 3: pass allowed_special="
    with pytest.raises(UserError, match=message):
        tok.encode(f"the<|a|>{END_OF_TEXT}")
    with pytest.raises(UserError, match="at position 8"):
        tok.encode(f"the<|a|>{END_OF_TEXT}", allowed_special={"<|a|>"})

    plain = tok.encode(text, disallowed_special=())
    assert tok.decode(plain) == text and not {end, a, ab} & set(plain)
    some = tok.encode(text, allowed_special=END_OF_TEXT, disallowed_special=())
    assert some.count(end) == 3 and not {a, ab} & set(some) and tok.decode(some) == text
    with pytest.raises(UserError, match="at position 13"):
        tok.encode(f"{END_OF_TEXT}<|a|>", disallowed_special={"<|a|>"})
    with pytest.raises(
        UserError, match=r"^the text contains 'he' at position 1: it is disallowed$"
    ):
        tok.encode("the", disallowed_special={"he"})


def test_special_tokens_as_in_tiktoken():
    """All that allowed_special and disallowed_special may be: the same ids, or both refuse."""
    tiktoken = pytest.importorskip("tiktoken")
    rng = random.Random(5)
    # None begins as another does: which of those is meant, tiktoken leaves to a hash table.
    special = [END_OF_TEXT, "<|a|>", "<|b|>", "aba", "bab", "\n", "|>|"]
    tok = BPETokenizer.train(["banana bandana <|ananas|> <|endoftext"], 280, special)
    ranks = {token: i for i, token in enumerate(tok.tokens[: -len(special)])}
    peer = tiktoken.Encoding(
        "t", pat_str=PATTERN.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens
    )
    pieces = [*special, "<|", "|>", "<", "endoftext", "ab", "a", "b", " ", "\n", "<|c|>", "banana"]
    names = [*special, "<|c|>", "nan", "a"]  # the last three are no special tokens
    outcomes = Counter()
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        allowed = rng.choice(["all", set(), set(rng.sample(names, rng.randrange(len(names))))])
        disallowed = rng.choice(["all", (), set(rng.sample(names, 1)), rng.sample(names, 2)])
        try:
            expected = peer.encode(text, allowed_special=allowed, disallowed_special=disallowed)
        except ValueError:
            with pytest.raises(UserError, match="the text contains "):
                tok.encode(text, allowed, disallowed)
            outcomes["refused"] += 1
        else:
            assert tok.encode(text, allowed, disallowed) == expected
            assert tok.decode(expected) == text
            outcomes[bool(set(expected) & set(tok.special_tokens.values()))] += 1
    assert min(outcomes["refused"], outcomes[True], outcomes[False]) > 200


def test_defaults_and_documented_cases_as_in_tiktoken():
    tok = BPETokenizer.train([SAMPLE], 300)
    plain, end = tok.encode(END_OF_TEXT, disallowed_special=()), [tok.end_of_text]
    assert len(plain) > 1
    assert tok.encode(END_OF_TEXT, allowed_special="all") == end
    assert tok.encode(END_OF_TEXT, allowed_special={END_OF_TEXT}) == end
    assert tok.encode(END_OF_TEXT, allowed_special=END_OF_TEXT) == end  # there, a TypeError
    for allowed, disallowed in [((), "all"), ("all", {END_OF_TEXT}), ({"<|c|>"}, "all")]:
        with pytest.raises(UserError, match="the text contains the special token"):
            tok.encode(END_OF_TEXT, allowed, disallowed)
    assert tok.encode(END_OF_TEXT, {"<|c|>"}, {"<|c|>"}) == plain
    assert tok.encode(END_OF_TEXT, disallowed_special={"<|c|>"}) == plain
    assert tok.encode("", disallowed_special={"<|c|>"}) == []


def test_no_special_tokens():
    tok = BPETokenizer.train([SAMPLE], 300, special_tokens=())
    assert tok.end_of_text is None and tok.special_tokens == {}
    assert tok.decode(tok.encode(END_OF_TEXT)) == END_OF_TEXT
    plain = tok.encode(END_OF_TEXT)
    assert tok.encode(END_OF_TEXT, allowed_special={END_OF_TEXT}) == plain


def test_a_special_token_with_the_bytes_of_an_ordinary_one(tmp_path):
    BPETokenizer.train(["a\nb"], 257, ["\n"]).save(tmp_path)
    tok = load_tokenizer(tmp_path)
    assert tok.encode("\n", allowed_special="all") == [256]
    assert tok.encode("\n", disallowed_special=()) == [BYTES.index(b"\n")]


@pytest.mark.parametrize(
    "special, message",
    [
        (["<|a|>", "<|a|>"], r"^the special token '<\|a\|>' is given twice"),
        ([""], "^a special token must not be empty"),
        (["A"], "^the special token 'A' is an ordinary token too"),
        (["\ud800"], r"^the text has half a surrogate pair, U\+D800, at position 0"),
    ],
)
def test_bad_special_tokens(special, message):
    with pytest.raises(UserError, match=message):
        BPETokenizer.train(["x"], 300 if "A" not in special else 257, special)


# Characters


def test_char():
    tok = CharTokenizer.train(["hello", "wörld"])
    assert tok.kind == "char" and tok.vocab_size == 8 and tok.end_of_text is None
    assert tok.characters == ["d", "e", "h", "l", "o", "r", "w", "ö"]
    assert tok.encode("höre") == [2, 7, 5, 1]
    assert tok.decode([2, 7, 5, 1]) == "höre"
    assert tok.token_bytes(7) == "ö".encode()
    with pytest.raises(ValueError, match=r"^id 8 at position 1 is unknown: ids run from 0 to 7$"):
        tok.decode([0, 8])
    with pytest.raises(
        UserError,
        match=r"^the character 'é' \(U\+00E9\) at position 2 was not in the training text: "
        r"this tokenizer knows 8 characters, 'dehlorwö'$",
    ):
        tok.encode("hdé")


def test_char_unseen_after_a_special_token():
    tok = CharTokenizer.train([SAMPLE, "абвгдежзийклмнопрстуфхцчшщъыьэюя"], [END_OF_TEXT])
    with pytest.raises(
        UserError, match=r"^the character '\\x07' \(U\+0007\) at position 16 .* more$"
    ):
        tok.encode(f"cat{END_OF_TEXT}\a", allowed_special="all")


def test_char_round_trip():
    rng = random.Random(3)
    for length in range(1, 50):
        text = random_text(rng, length)
        tok = CharTokenizer.train([text])
        assert tok.decode(tok.encode(text)) == text


def test_char_needs_characters():
    with pytest.raises(UserError, match=r"^the training text is empty"):
        CharTokenizer.train([""], [END_OF_TEXT])


# GPT-2


# The ids were made with OpenAI's tiktoken from the same two files.
KNOWN = {
    "Hello, world!": [15496, 11, 995, 0],
    " the cat's whiskers weren't there": [262, 3797, 338, 21060, 364, 6304, 470, 612],
    "  two  spaces \n\n and\ttabs  ": [220, 734, 220, 9029, 220, 628, 290, 197, 8658, 82, 220, 220],
    "3.14159 and 1,000,000": [18, 13, 1415, 19707, 290, 352, 11, 830, 11, 830],
    "naïve café": [2616, 38776, 40304],
    "Ὁ λόγος": [45495, 231, 7377, 119, 139, 234, 42063, 26517, 35558],
    "吾輩は猫である": [28938, 122, 164, 120, 102, 31676, 163, 234, 104, 30640, 40948, 25748],
    "😀": [47249, 222],
    " antidisestablishmentarianism": [1885, 29207, 44390, 3699, 1042],
    "a<|endoftext|>b": [64, 50256, 65],
}


def test_gpt2_ids(gpt2):
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.special_tokens == {END_OF_TEXT: 50256} and len(gpt2.merges) == 50000
    for text, ids in KNOWN.items():
        assert gpt2.encode(text, allowed_special="all") == ids
        assert gpt2.decode(ids) == text
    assert [gpt2.tokens[i] for i in range(256)] == BYTES


def test_gpt2_round_trips(gpt2, tmp_path):
    for text in [*TEXTS, SAMPLE]:
        assert gpt2.decode(gpt2.encode(text)) == text
    gpt2.save(tmp_path)
    assert (tmp_path / "vocab.json").read_bytes() == (GPT2 / "encoder.json").read_bytes()
    assert (tmp_path / "merges.txt").read_bytes() == (GPT2 / "vocab.bpe").read_bytes()
