"""Tokenizers that want each digit by itself, as SmolLM2's does: text, kernels and files."""

import random

import numpy as np
import pytest
import regex

from npgpt.corpus.token_files import vocabulary_sha256
from npgpt.errors import UserError
from npgpt.tokenizer import BPETokenizer, bpe_class, load_tokenizer
from npgpt.tokenizer.bpe import DIGITS, PATTERN, split_words

ALPHABET = "ab'st 12 \n\t½Ⅷ٣.!é日 \u3000\xa0'll're😀"
TOK = BPETokenizer.train(["in 1999 the 12 cats sat 日本 in the sun'll 12 12 "] * 3, vocab_size=280)


def texts(n, longest=20):
    rng = random.Random(7)
    for _ in range(n):
        yield "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(longest)))


def with_digits(tok):
    tok.words = "digits"
    return tok


SLOW = with_digits(BPETokenizer(TOK.tokens, TOK.merges, TOK.special_tokens))


def test_it_is_gpt2s_pattern_between_the_numbers():
    for text in texts(20_000):
        pieces = regex.findall(r"\p{N}|[^\p{N}]+", text)
        expected = [word for piece in pieces for word in PATTERN.findall(piece)]
        assert list(split_words(text, DIGITS)) == expected, repr(text)


def test_digits_are_never_merged():
    pieces = [SLOW.token_bytes(i) for i in SLOW.encode("in 1999 the 12")]
    assert [p for p in pieces if p.strip().isdigit()] == [b"1", b"9", b"9", b"9", b"1", b"2"]
    usual = [TOK.token_bytes(i) for i in TOK.encode("the 12")]
    assert usual == [b"the", b" 12"]


def test_the_compiled_encoder_does_the_same():
    pytest.importorskip("numba")
    fast = with_digits(bpe_class()(TOK.tokens, TOK.merges, TOK.special_tokens))
    fast._patience = 0  # or short texts go to the readable one
    for text in texts(2_000):
        assert fast.encode(text) == SLOW.encode(text), repr(text)
    documents = list(texts(300, longest=60))
    end = [fast.end_of_text]
    expected = [i for d in documents for i in SLOW.encode(d, disallowed_special=()) + end]
    np.testing.assert_array_equal(fast.encode_documents(documents), expected)
    whole = "".join(documents).encode()
    pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    ids = np.concatenate(list(fast.encode_pieces(pieces)))
    np.testing.assert_array_equal(ids, SLOW.encode(whole.decode()))


def test_the_files_say_so(tmp_path):
    SLOW.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tok = load_tokenizer(path)
        assert tok.words == "digits"
        assert tok.encode("in 1999") == SLOW.encode("in 1999")
    assert vocabulary_sha256(SLOW) != vocabulary_sha256(TOK)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"digits"', '"qwen2"'))
    with pytest.raises(UserError, match="words is 'qwen2', and must be one of gpt2, digits"):
        load_tokenizer(tmp_path)


def test_tokenizers_reads_it(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    SLOW.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(1_000):
        assert theirs.encode(text).ids == SLOW.encode(text), repr(text)


def test_bytes_without_a_token(tmp_path):
    """SmolLM2 has none for 21 bytes: what needs one is refused, and the rest is as ever."""
    lacking = {b"\x04", b"\xf5"}
    tokens = [t for t in TOK.tokens if t not in lacking]
    special = {name: tokens.index(name.encode()) for name in TOK.special_tokens}
    tok = BPETokenizer(tokens, TOK.merges, special)
    tok.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert again.tokens == tokens
        assert again.decode(again.encode("the sun")) == "the sun"
        for patience in (0, 2000):
            again._patience = patience
            with pytest.raises(UserError, match=r"no token b'\\x04', which this text needs"):
                again.encode("a\x04")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"04 f5"', '"04"'))
    with pytest.raises(UserError, match=r"has no token 'õ' for the byte b'\\xf5'"):
        load_tokenizer(tmp_path)
