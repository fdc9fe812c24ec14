"""The compiled tokenizer against the readable one, and both against other people's."""

import io
import itertools
import lzma

import numpy as np
import pytest
from tokenizer_helpers import random_texts

from npgpt.backend import kernels_enabled
from npgpt.corpus.token_files import token_dtype
from npgpt.errors import UserError
from npgpt.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    bpe,
    bpe_class,
    load_tokenizer,
)

if not kernels_enabled():
    pytest.skip("Numba is not installed, or NPGPT_KERNELS=off", allow_module_level=True)

from npgpt.backend.cpu.bits import pointer
from npgpt.backend.cpu.compile import kernel
from npgpt.tokenizer import encoder, fast_encode, scan, word_table
from npgpt.tokenizer.fast import PATIENCE, FastBPETokenizer
from npgpt.tokenizer.scan import as_bytes

parity = pytest.mark.parity

SPECIAL = [END_OF_TEXT, "<|a b|>", "<|a b|>c"]


def fast_twin(tok):
    """The compiled tokenizer with the same vocabulary, which does not wait for longer texts."""
    fast = FastBPETokenizer(tok.tokens, tok.merges, tok.special_tokens)
    fast._patience = 0
    return fast


@pytest.fixture(scope="module")
def readable():
    prose = "the other weather, the mother's, they'll gather; ababa aaaa   \n\n" * 30
    return BPETokenizer.train([prose, *random_texts(1, 300, 60)], 900, SPECIAL)


@pytest.fixture(scope="module")
def fast(readable):
    return fast_twin(readable)


@pytest.fixture(scope="module")
def gpt2(request):
    return load_tokenizer(request.getfixturevalue("shared_data") / "gpt2")


# Encoding


@parity
def test_ids_of_random_text(readable, fast):
    for text in random_texts(8, 1500, 120):
        ids = fast.encode(text, disallowed_special=())
        assert ids == readable.encode(text, disallowed_special=()), repr(text)
        assert all(type(i) is int for i in ids[:3])


@parity
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 66, 300])
def test_long_words(readable, fast, length):
    rng = np.random.default_rng(length)
    for letters in ["a", "the", "other", "aé", " ", "\n", ".-"]:
        for _ in range(3):
            word = "".join(rng.choice(list(letters), length))
            for text in (word, "x" + word, word + " x"):
                assert fast.encode(text) == readable.encode(text), repr(text)
                assert fast.encode(text) == readable.encode(text)  # now from the table


@parity
@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 63, 64, 65])
def test_words_that_differ_in_one_letter(readable, fast, length):
    """On both sides of every length at which they are kept in another way."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [f" {'t' * i}{c}{'t' * (length - 2 - i)}" for i in (0, length - 2) for c in letters]
    assert {len(word) for word in words} == {length}
    text = "".join(words * 2)
    assert fast.encode(text) == readable.encode(text)


def words_of_one_hash():
    """Two words of 16 letters for which word_table.long_key has the same number.

    It mixes the first eight bytes and only then adds the last eight: so for most beginnings there
    are ends that make up for the difference, and for one in 2¹⁶ they are letters.
    """
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
    pairs = {int(a ^ b): (a, b) for a in letters for b in letters}
    begins = np.random.default_rng(0).choice(letters, (1 << 20, 8))
    mixed = (np.uint64(16) ^ begins.view(np.uint64)[:, 0]) * word_table.SPREAD
    mixed ^= mixed >> word_table.FOLD
    differences = (mixed[::2] ^ mixed[1::2]).view(np.uint8).reshape(-1, 8)
    n = next(n for n, d in enumerate(differences) if d.max() < 64 and pairs.keys() >= {*d.tolist()})
    ends = np.array([pairs[d] for d in differences[n].tolist()], np.uint8).T
    return [(begins[2 * n + i].tobytes() + ends[i].tobytes()).decode() for i in (0, 1)]


def test_long_words_of_one_hash_are_told_apart(readable, fast):
    @kernel
    def key(data):
        return word_table.long_key(pointer(data), 0, len(data))

    one, other = words_of_one_hash()
    assert one != other and key(as_bytes(one.encode())) == key(as_bytes(other.encode()))
    text = f"{one}\n{other}\n" * 2
    assert fast.encode(text) == readable.encode(text)


def test_a_word_of_100_000_letters(fast):
    for text in ["a" * 100_000, "ab" * 50_000, "theother" * 12_500, " " * 100_000]:
        ids = fast.encode(text)
        assert fast.decode(ids) == text and len(ids) < 100_000
        assert scan.split_words(text) == [text]


@parity
def test_merges_in_any_order():
    """No training makes such lists, but the text has an answer for them, and so it is the same."""
    rng = np.random.default_rng(9)
    for _ in range(60):
        parts = [b"a", b"b", b"c"]
        for _ in range(8):
            parts.append(b"".join(parts[i] for i in rng.integers(len(parts), size=2)))
        parts = list(dict.fromkeys(parts))
        pairs = list(itertools.product(parts, parts))
        merges = [pairs[i] for i in rng.choice(len(pairs), min(40, len(pairs)), replace=False)]
        tokens = list(dict.fromkeys([*bpe.BYTES, *parts, *(a + b for a, b in merges)]))
        order = rng.permutation(len(tokens))
        tok = BPETokenizer([tokens[i] for i in order], merges, {})
        twin = fast_twin(tok)
        for length in (3, 8, 20, 70, 130):
            text = "".join(rng.choice(list("abc"), length))
            assert twin.encode(text) == tok.encode(text), (merges, text)


@parity
def test_special_tokens_anywhere_among_the_ids():
    tok = BPETokenizer.train(["the other weather, the mother " * 3], 270, SPECIAL)
    tokens = [*(s.encode() for s in SPECIAL), *tok.tokens[: -len(SPECIAL)]]
    tok = BPETokenizer(tokens, tok.merges, {s: i for i, s in enumerate(SPECIAL)})
    text = f"the other{END_OF_TEXT}<|a b|>cc<|a b|> the mother's"
    for allowed in (SPECIAL, [END_OF_TEXT]):
        ids = tok.encode(text, allowed, disallowed_special=())
        assert fast_twin(tok).encode(text, allowed, disallowed_special=()) == ids
    with pytest.raises(UserError, match="at position 9"):
        fast_twin(tok).encode(text)


def test_a_byte_that_is_no_token():
    tokens = [b for b in bpe.BYTES if b not in (b"q", b"u")] + [b"qu"]
    tok = BPETokenizer(tokens, [(b"q", b"u")], {})
    twin = fast_twin(tok)
    assert twin.encode("quiet") == tok.encode("quiet")  # the lecture has no quarrel with this
    with pytest.raises(UserError, match=r"^the vocabulary has no token b'q', which this text"):
        twin.encode("Iraq")


def test_a_vocabulary_too_large_to_number(monkeypatch):
    monkeypatch.setattr("npgpt.tokenizer.merging.SYMBOL_BITS", 8)
    with pytest.raises(
        UserError, match="too large for the compiled encoder: set NPGPT_KERNELS=off"
    ):
        fast_twin(BPETokenizer.train(["ab"], 257, ())).encode("ab")


@parity
def test_a_small_table_of_words(readable, monkeypatch):
    """Grown, and then emptied, in the middle of a text."""
    monkeypatch.setattr(word_table, "MOST_BITS", 7)
    full, kept = [], []

    def make_room(words):
        full.append(words)
        larger = word_table.make_room(words)
        kept.append((np.count_nonzero(larger.entries[1::4]), larger.used[0]))
        return larger

    monkeypatch.setattr(encoder, "make_room", make_room)
    fast = fast_twin(readable)
    text = "".join(random_texts(10, 200, 60))
    scratch = encoder.Scratch()
    scratch.words = word_table.new_words(5)
    fast.encoder.idle.append(scratch)
    assert fast.encode(text, disallowed_special=()) == readable.encode(text, disallowed_special=())
    assert len({id(w.entries) for w in full}) == 2 and len(full) > 5
    assert all(entered == used for entered, used in kept) and kept[0][1] > 0  # none is forgotten


@parity
def test_any_number_of_threads(readable, monkeypatch):
    monkeypatch.setattr(encoder, "PIECE", 1000)
    text = "".join(random_texts(11, 600, 60))
    expected = readable.encode(text, disallowed_special=())
    for threads in (1, 2, 3, 4):
        fast = fast_twin(readable)
        fast.encoder.threads = threads
        assert fast.encode(text, disallowed_special=()) == expected
        assert len(fast.encoder.idle) <= threads
    assert len(encoder.share_out(as_bytes(text.encode()), np.array([[0, len(text), -1]]))) > 5


def test_short_texts_need_no_kernels(readable):
    fast = FastBPETokenizer(readable.tokens, readable.merges, readable.special_tokens)
    assert fast.encode("the other") == readable.encode("the other")
    assert "encoder" not in vars(fast)
    for text in ("é", "a" * (PATIENCE + 1)):
        fast = FastBPETokenizer(readable.tokens, readable.merges, readable.special_tokens)
        fast.encode(text)
        assert "encoder" in vars(fast)
    fast = FastBPETokenizer(readable.tokens, readable.merges, readable.special_tokens)
    for _ in range(PATIENCE // 10 + 1):
        fast.encode("the others")
    assert "encoder" in vars(fast)


def test_which_class_is_loaded(readable, tmp_path, text_only):
    readable.save(tmp_path)
    assert type(load_tokenizer(tmp_path)) is bpe_class() is FastBPETokenizer
    with text_only():
        assert type(load_tokenizer(tmp_path)) is bpe_class() is BPETokenizer


# Documents and streams


@parity
def test_documents(readable, fast, monkeypatch):
    monkeypatch.setattr(fast_encode, "BATCH", 1000)
    documents = ["", *random_texts(12, 300, 40), "", END_OF_TEXT, "a" * 3000, ""]
    expected = []
    for document in documents:
        expected += [*readable.encode(document, disallowed_special=()), readable.end_of_text]
    ids = fast.encode_documents(documents)
    assert ids.dtype == np.uint16 and ids.tolist() == expected
    mixed = (d if i % 2 else d.encode() for i, d in enumerate(documents))
    assert fast.encode_documents(mixed).tolist() == expected
    assert fast.encode_documents([]).tolist() == []
    assert fast.encode_documents(iter([""])).tolist() == [readable.end_of_text]


@parity
def test_documents_with_special_tokens_that_are_always_allowed(readable):
    fast = fast_twin(readable)
    fast.always_allowed = frozenset(SPECIAL[1:])
    documents = ["<|a b|>the<|a b|>c", f"other<|a b|>{END_OF_TEXT}", "", "<|a b|"]
    expected = []
    for document in documents:
        expected += [*fast.encode(document, disallowed_special=()), fast.end_of_text]
    assert fast.encode_documents(documents).tolist() == expected
    assert {fast.special_tokens[name] for name in SPECIAL} <= set(expected)


def test_documents_of_many_pieces_have_one_end(fast, monkeypatch):
    monkeypatch.setattr(encoder, "PIECE", 50)
    documents = ["the other weather, " * 20, "", "they'll gather", " " * 200]
    expected = []
    for document in documents:
        expected += [*fast.encode(document), fast.end_of_text]
    assert fast.encode_documents(documents).tolist() == expected


def test_the_end_may_be_id_0():
    """It is in SmolLM2's vocabulary."""
    fast = fast_twin(BPETokenizer([END_OF_TEXT.encode(), *bpe.BYTES], [], {END_OF_TEXT: 0}))
    b = bpe.BYTES.index(b"b") + 1
    assert fast.encode_documents(["b", "", "bb"]).tolist() == [b, 0, 0, b, b, 0]
    ids = np.concatenate(list(fast.encode_pieces([f"b{END_OF_TEXT}b"], "all")))
    assert ids.tolist() == [b, 0, b]


def test_ids_are_as_wide_as_in_a_file_of_tokens():
    ids = {bytes([b]): b for b in range(256)}
    for n in (256, 1 << 16, (1 << 16) + 1):
        assert encoder.Encoder(ids, [], n).dtype == token_dtype(n)


def test_documents_without_an_end_of_text_and_with_many_ids():
    tokens = [*bpe.BYTES, *(f"token {i}".encode() for i in range(70_000))]
    fast = fast_twin(BPETokenizer(tokens, [], {}))
    ids = fast.encode_documents(["ab", "c"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [bpe.BYTES.index(b) for b in (b"a", b"b", b"c")]


@pytest.mark.parametrize(
    "documents, where",
    [
        (["é", b"\xc3"], r"byte 0 of document 1 is 0xc3"),
        (["é", b"aaa\xe2\x82", b"\x82b"], r"byte 0 of document 2 is 0x82"),
        ([b"x" * 2000, b"", b"\xa9"], r"byte 0 of document 2 is 0xa9"),
        ([b"x", b"\xc3", b"\xa9"], r"byte 0 of document 1 is 0xc3|byte 0 of document 2 is 0xa9"),
    ],
)
def test_documents_that_are_not_utf8(fast, documents, where, monkeypatch):
    monkeypatch.setattr(fast_encode, "BATCH", 1000)
    with pytest.raises(UserError, match=f"^the text is not UTF-8: ({where}); convert it first"):
        fast.encode_documents(documents)
    with pytest.raises(UserError, match="half a surrogate pair"):
        fast.encode_documents(["\ud800"])


@parity
@pytest.mark.parametrize("batch", [1, 8, 100])
def test_a_stream_may_be_cut_anywhere(readable, fast, batch, monkeypatch):
    """Within a character, a contraction, a special token, and a run of spaces."""
    monkeypatch.setattr(fast_encode, "BATCH", batch)
    rng = np.random.default_rng(batch)
    for text in random_texts(13, 60, 60):
        words = [text, "they'll ", END_OF_TEXT, "<|a b|>c", "<|a b|>", "   ", "<|endoftex", "é"]
        text = "".join(words[i] for i in rng.integers(len(words), size=12))
        expected = readable.encode(text, "all")
        raw = text.encode()
        for size in (1, 2, 3, 5, 17, 1000):
            pieces = (raw[i : i + size] for i in range(0, len(raw), size))
            ids = np.concatenate(list(fast.encode_pieces(pieces, "all")))
            assert ids.tolist() == expected, (text, size)
        lines = io.BytesIO(raw)  # a file is an iterable of its lines
        ids = np.concatenate(list(fast.encode_pieces(lines, [END_OF_TEXT], ())))
        assert ids.tolist() == readable.encode(text, [END_OF_TEXT], ())


def test_a_special_token_may_be_cut_anywhere(fast, monkeypatch):
    """Also where another one has ended already, and where a word of it ends."""
    monkeypatch.setattr(fast_encode, "BATCH", 1)
    tok = fast_twin(BPETokenizer.from_merges([], ["a b", "a b c"]))
    raw = b"xa b c, a b  a b d a b c"
    expected = tok.encode(raw.decode(), "all")
    assert sum(i >= 256 for i in expected) == 4
    for i, j in itertools.combinations(range(len(raw)), 2):
        pieces = [raw[:i], raw[i:j], raw[j:]]
        assert np.concatenate(list(tok.encode_pieces(pieces, "all"))).tolist() == expected
    raw = b"(<|endoftext|> and more"  # the first place to cut at is within the token
    for i, j in itertools.combinations(range(len(raw)), 2):
        with pytest.raises(UserError, match=r"'<\|endoftext\|>' at byte 1: "):
            list(fast.encode_pieces([raw[:i], raw[i:j], raw[j:]]))


def test_a_stream_is_not_held(fast, monkeypatch):
    monkeypatch.setattr(fast_encode, "BATCH", 1000)
    most = 0
    encode_share = fast.encoder._encode_share

    def watched(data, spans):
        nonlocal most
        most = max(most, len(data))
        return encode_share(data, spans)

    monkeypatch.setattr(fast.encoder, "_encode_share", watched)
    pieces = (b"the other, " * 7 for _ in range(1000))
    streamed = sum(len(ids) for ids in fast.encode_pieces(pieces))
    assert 500 < most < 1200
    assert streamed == len(fast.encode("the other, " * 7000))


def test_what_a_stream_refuses(fast, monkeypatch):
    monkeypatch.setattr(fast_encode, "BATCH", 10)
    pieces = [b"some text, ", b"and then <|endof", b"text|> more"]
    message = r"^the text contains '<\|endoftext\|>' at byte 20: pass allowed_special="
    with pytest.raises(UserError, match=message):
        list(fast.encode_pieces(pieces))
    for pieces in (
        [b"some text, \xff and more"],
        [b"some text, ", b"\xe2\x82"],
        [b"some text, ", b"\xe2a"],
    ):
        with pytest.raises(UserError, match=r"^the text is not UTF-8: byte 11 is 0x(ff|e2); "):
            list(fast.encode_pieces(pieces))
    with pytest.raises(TypeError, match="text must be a str, not int"):
        list(fast.encode_pieces([1]))
    assert [ids.tolist() for ids in fast.encode_pieces([])] == [[]]


# Real text, and other people's tokenizers


def real_texts(shared_data):
    """A few hundred kilobytes from each source; of the books, parts far from one another."""
    with lzma.open(shared_data / "books" / "books.txt.xz") as file:
        books = file.read(4_000_000)
    books = [books[i : i + 100_000].decode(errors="ignore") for i in (0, 2_000_000, 3_900_000)]
    stories = (shared_data / "tinystories" / "valid.txt").read_text("utf-8")
    plays = (shared_data / "tinyshakespeare" / "input.txt").read_text("utf-8")
    return {"books": "".join(books), "stories": stories[:200_000], "plays": plays[:300_000]}


def test_real_text(shared_data, readable, fast):
    for name, text in real_texts(shared_data).items():
        assert scan.split_words(text) == list(bpe.split_words(text)), name
        ids = fast.encode(text, "all")
        assert ids == readable.encode(text, "all"), name
        pieces = (text[i : i + 12_345] for i in range(0, len(text), 12_345))
        assert np.concatenate(list(fast.encode_pieces(pieces, "all"))).tolist() == ids


@pytest.fixture(scope="module")
def tiktoken_gpt2(gpt2):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: i for i, token in enumerate(gpt2.tokens) if i != gpt2.end_of_text}
    return tiktoken.Encoding(
        "gpt2-from-files",
        pat_str=bpe.PATTERN.pattern,
        mergeable_ranks=ranks,
        special_tokens=gpt2.special_tokens,
    )


@pytest.fixture(scope="module")
def hugging_face_gpt2(shared_data):
    tokenizers = pytest.importorskip("tokenizers")
    folder = shared_data / "gpt2"
    model = tokenizers.models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    peer = tokenizers.Tokenizer(model)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return peer


def test_gpt2_as_tiktoken(shared_data, gpt2, tiktoken_gpt2):
    texts = [
        *real_texts(shared_data).values(),
        *random_texts(14, 500, 150),
        "a" * 100_000,
        " " * 999,
    ]
    for text in texts:
        ids = gpt2.encode(text, "all")
        assert ids == tiktoken_gpt2.encode(text, allowed_special="all"), repr(text[:1000])
    assert type(gpt2) is FastBPETokenizer and "encoder" in vars(gpt2)


def test_gpt2_as_hugging_face(shared_data, gpt2, hugging_face_gpt2):
    for text in [*real_texts(shared_data).values(), *random_texts(15, 300, 150)]:
        text = text[:100_000].replace(END_OF_TEXT, "")
        assert gpt2.encode(text) == hugging_face_gpt2.encode(text).ids, repr(text[:1000])


def test_gpt2_as_the_readable_text(gpt2):
    readable = BPETokenizer(gpt2.tokens, gpt2.merges, gpt2.special_tokens)
    for text in random_texts(16, 200, 100):
        assert gpt2.encode(text, disallowed_special=()) == readable.encode(
            text, disallowed_special=()
        )
