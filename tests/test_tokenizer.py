"""The tokenizers: against a textbook BPE, against GPT-2's ids, and against careless hands."""

import doctest
import json
import os
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


def test_vocab_size_limits():
    with pytest.raises(UserError, match=r"^vocab_size 256 is too small: .* alone are 257$"):
        BPETokenizer.train(["x"], 256)
    assert BPETokenizer.train([], 257).merges == []
    message = (
        "^vocab_size 50000 is larger than this text supports: after 3 merges every word "
        "is one token, so ask for at most 260$"
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


# Files


def trained(kind):
    special = [END_OF_TEXT, "<|naïve pad|>"]
    if kind == "bpe":
        return BPETokenizer.train([SAMPLE], 350, special)
    return CharTokenizer.train([SAMPLE], special)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_save_and_load(kind, tmp_path):
    tok = trained(kind)
    tok.save(str(tmp_path / "made" / "here"))
    again = load_tokenizer(str(tmp_path / "made" / "here"))
    assert isinstance(again, type(tok))
    assert again.tokens == tok.tokens and again.special_tokens == tok.special_tokens
    text = SAMPLE + END_OF_TEXT + "<|naïve pad|>" + SAMPLE
    ids = tok.encode(text, allowed_special="all")
    assert again.encode(text, allowed_special="all") == ids and again.decode(ids) == text
    again.save(tmp_path / "twice")
    for file in (tmp_path / "twice").iterdir():
        assert file.read_bytes() == (tmp_path / "made" / "here" / file.name).read_bytes()


def test_files_look_like_gpt2s(tmp_path):
    tok = BPETokenizer.train(["the the é\n"], 262)
    tok.save(tmp_path)
    names = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(os.listdir(tmp_path)) == names
    merges = "#version: 0.2\nt h\nth e\nÃ ©\nĠ Ã©\nĠ the\n"
    assert (tmp_path / "merges.txt").read_bytes().decode() == merges
    vocab = (tmp_path / "vocab.json").read_text()
    assert vocab.startswith('{"!": 0, "\\"": 1, "#": 2, ')
    assert vocab.endswith('"\\u0120the": 260, "<|endoftext|>": 261}')
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == {
        "kind": "bpe",
        "special_tokens": {END_OF_TEXT: 261},
        # What follows is read by Hugging Face's transformers.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
    }
    # Without the settings the two files are enough, also under the names GPT-2 was given.
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    assert load_tokenizer(tmp_path).special_tokens == {END_OF_TEXT: 261}
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    (tmp_path / "vocab.bpe").write_bytes(merges.replace("\n", "\r\n").encode())
    assert load_tokenizer(tmp_path).merges == tok.merges


def test_ids_in_another_order(tmp_path):
    # Other trainers put special tokens first: the ids of vocab.json are taken as they are.
    tok = BPETokenizer.train([SAMPLE], 300)
    tok.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    vocab = {name: (i + 1) % 300 for name, i in vocab.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    again = load_tokenizer(tmp_path)
    assert again.end_of_text == 0
    assert again.encode(SAMPLE) == [i + 1 for i in tok.encode(SAMPLE)]
    assert again.decode(again.encode(SAMPLE)) == SAMPLE


def test_the_last_save_counts(tmp_path):
    for kind in ("bpe", "char", "bpe"):
        trained(kind).save(tmp_path)
        assert load_tokenizer(tmp_path).kind == kind


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(kind, step, tmp_path, monkeypatch):
    tok = trained(kind)
    tok.save(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match=r"^.*json cannot be written: No space left on device$"):
        tok.save(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_saving_into_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"vocab\.json cannot be written"):
        trained("bpe").save(tmp_path / "taken")


def edit(path, change):
    path.write_text(change(path.read_text("utf-8")), "utf-8")


def edit_json(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


DAMAGES = {
    "no vocab": ("bpe", "vocab.json", Path.unlink, r"vocab\.json is missing"),
    "no merges": ("bpe", "merges.txt", Path.unlink, r"merges\.txt is missing"),
    "no chars": ("char", "chars.json", Path.unlink, r"chars\.json is missing"),
    "no settings": ("char", "tokenizer_config.json", Path.unlink, r"config\.json is missing or"),
    "binary": ("bpe", "merges.txt", lambda p: p.write_bytes(b"\xff"), "byte 0 is not UTF-8$"),
    "cut json": ("bpe", "vocab.json", lambda p: edit(p, lambda t: t[:-9]), "is damaged"),
    "cut settings": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t[:-9]),
        r"tokenizer_config\.json is damaged",
    ),
    "half a pair": ("char", "chars.json", lambda p: p.write_text('["\\ud800"]'), "is damaged"),
    "a list": ("bpe", "vocab.json", lambda p: p.write_text("[1]"), "is not a table from tokens"),
    "settings list": ("bpe", "tokenizer_config.json", lambda p: p.write_text("[]"), "not a table"),
    "float ids": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: v.update(t=1.5)),
        "is not a table from tokens to ids",
    ),
    "ids twice": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: v.update(t=1)),
        "each once",
    ),
    "no byte": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: {("t?" if k == "t" else k): i for k, i in v.items()}),
        r"vocab\.json has no token 't' for the byte b't'$",
    ),
    "no header": ("bpe", "merges.txt", lambda p: edit(p, lambda t: t[14:]), "does not begin with"),
    "three sides": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t.replace("\n", " e\n").replace(" e\n", "\n", 1)),
        r"merges\.txt, line 2: '\S+ \S+ e' is not two tokens",
    ),
    "a line lost": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: "\n".join(t.split("\n")[:2] + t.split("\n")[3:])),
        r"(vocab\.json: the token|merges\.txt, line)",
    ),
    "a merge too many": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t + "q q\n"),
        r"merges\.txt, line \d+: 'q q' makes a token that the vocabulary does not list$",
    ),
    "cut merges": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t[: len(t) // 2]),
        r"(vocab\.json: the token|merges\.txt, line)",
    ),
    "other special": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t.replace("endoftext", "endofword")),
        r"the token '<\|endof(text|word)\|>' is not made by merges\.txt",
    ),
    "special gone": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit_json(p, lambda s: {"kind": "bpe"}),
        "special_tokens is not a table",
    ),
    "unknown kind": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit_json(p, lambda s: s.update(kind="wordpiece")),
        "kind is 'wordpiece', and must be 'bpe' or 'char'$",
    ),
    "not characters": (
        "char",
        "chars.json",
        lambda p: p.write_text('["ab"]'),
        "is not a list of single characters",
    ),
    "chars out of order": (
        "char",
        "chars.json",
        lambda p: edit_json(p, lambda c: c[::-1]),
        "is empty or out of order",
    ),
    "special character": (
        "char",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t.replace(END_OF_TEXT, "t")),
        r"do not follow the \d+ characters of chars\.json",
    ),
    "a character lost": (
        "char",
        "chars.json",
        lambda p: edit_json(p, lambda c: c[1:]),
        r"do not follow the \d+ characters of chars\.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage, tmp_path):
    kind, file, change, message = DAMAGES[damage]
    trained(kind).save(tmp_path)
    change(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text and "\n" not in text and not text.endswith(".")


def test_cut_merges_without_settings(tmp_path):
    trained("bpe").save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    edit(tmp_path / "merges.txt", lambda t: "\n".join(t.split("\n")[:20]))
    with pytest.raises(UserError, match=r"vocab\.json: the token .* is not made by merges\.txt"):
        load_tokenizer(tmp_path)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match=r"^there is no tokenizer folder .*nowhere: "):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_random_damage_loads_or_says_so(kind, tmp_path):
    trained(kind).save(tmp_path)
    rng = random.Random(4)
    files = sorted(tmp_path.iterdir())
    for _ in range(150):
        file = rng.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            load_tokenizer(tmp_path).decode([0, 1, 2])
        except UserError:
            pass
        file.write_bytes(whole)


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
