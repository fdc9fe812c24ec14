"""From a text to batches: nothing is lost, nothing is seen twice, nothing depends on the past."""

import os
from collections import Counter

import numpy as np
import pytest

from npgpt import data
from npgpt.data import (
    check_length,
    document_starts,
    encode_documents,
    full_rows,
    get_batch,
    load_tokens,
    num_rows,
    read_text,
    save_tokens,
    split_documents,
    split_validation,
    tokens_sha256,
)
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

# Batches.


def epoch_rows(n, T, seed, epoch):
    """The inputs of one epoch over the tokens 0, 1, …, n − 1, where a token is its own place."""
    windows = num_rows(np.arange(n), T)
    rows = [get_batch(np.arange(n), seed, epoch * windows + i, 1, T)[0][0] for i in range(windows)]
    return np.array(rows)


@pytest.mark.parametrize("n, T", [(2, 1), (17, 16), (18, 16), (32, 16), (33, 16), (1000, 7)])
@pytest.mark.parametrize("seed", [0, 5])
def test_an_epoch_reads_every_token_once(n, T, seed):
    for epoch in range(3):
        rows = epoch_rows(n, T, seed, epoch)
        places = np.sort(rows.ravel())
        assert np.array_equal(places, np.arange(places[0], places[0] + rows.size)), "a gap, or two"
        assert n - 1 - rows.size < 2 * T  # no more than this is left out, at both ends together
        assert places[-1] <= n - 2  # the last token is a target only


def test_over_many_epochs_every_place_has_its_turn():
    seen = Counter()
    for epoch in range(200):
        seen.update(epoch_rows(50, 8, 1, epoch).ravel().tolist())
    assert set(seen) == set(range(49))


def test_targets_are_the_next_tokens():
    tokens = np.random.default_rng(0).integers(0, 500, 300).astype(np.uint16)
    ids, targets = get_batch(tokens, 3, 7, 5, 11)
    assert ids.shape == targets.shape == (5, 11)
    assert ids.dtype == targets.dtype == np.int64
    assert np.array_equal(ids[:, 1:], targets[:, :-1])
    text = tokens.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(text, 12)
    for row in np.concatenate([ids, targets[:, -1:]], axis=1):
        assert (windows == row).all(axis=1).any(), "not a piece of the text"


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = np.arange(400)
    alone = get_batch(tokens, 1, 60, 4, 16)[0]
    data._epoch.cache_clear()
    for step in (3, 99, 0):
        get_batch(tokens, 2, step, 4, 16)
    assert np.array_equal(get_batch(tokens, 1, 60, 4, 16)[0], alone)
    assert not np.array_equal(get_batch(tokens, 2, 60, 4, 16)[0], alone)
    assert not np.array_equal(get_batch(tokens, 1, 61, 4, 16)[0], alone)


def test_small_batches_are_the_rows_of_a_large_one():
    tokens = np.arange(300)  # 17 windows: the large batch crosses the end of an epoch
    for step in range(6):
        large = get_batch(tokens, 1, step, 8, 16)[0]
        small = [get_batch(tokens, 1, 4 * step + i, 2, 16)[0] for i in range(4)]
        assert np.array_equal(np.concatenate(small), large)


def test_epochs_differ_in_order_and_in_phase():
    first, second = epoch_rows(1000, 16, 1, 0), epoch_rows(1000, 16, 1, 1)
    assert not np.array_equal(first, second)
    phases = {int(epoch_rows(1000, 16, 1, e).min()) for e in range(30)}
    assert len(phases) > 12


def test_the_shortest_text_is_one_window():
    ids, targets = get_batch(np.arange(17), 1, 5, 3, 16)
    assert np.array_equal(ids, [np.arange(16)] * 3)
    assert np.array_equal(targets, [np.arange(1, 17)] * 3)


# Rows that begin with documents. In these texts, 0 is the end-of-text token.


def short_documents(count, longest, rng):
    """0 a a a 0 b b 0 …: each document is one number, repeated up to `longest` times."""
    pieces = [[0]] + [[i + 1] * int(rng.integers(1, longest + 1)) + [0] for i in range(count)]
    return np.concatenate(pieces)


def test_rows_begin_with_documents_that_fit():
    tokens = short_documents(40, 6, np.random.default_rng(0))
    starts = full_rows(document_starts(tokens, 0, 8), len(tokens), 8)
    assert len(starts) >= 40 - 8
    seen = []
    for step in range(len(starts)):
        ids, targets = get_batch(tokens, 1, step, 1, 8, starts)
        assert ids[0, 0] == 0 and np.array_equal(ids[0, 1:], targets[0, :-1])
        seen.append(int(ids[0, 1]))
    assert sorted(seen) == list(range(1, len(starts) + 1)), "an epoch is every document once"
    again = [int(get_batch(tokens, 1, len(starts) + i, 1, 8, starts)[0][0, 1]) for i in range(9)]
    assert again != seen[:9], "the next epoch has another order"


def test_long_documents_are_cut_like_one_text():
    tokens = short_documents(40, 6, np.random.default_rng(0))
    assert document_starts(tokens, 0, 4) is None
    assert document_starts(tokens, None, 8) is None
    assert document_starts(np.array([0, 1, 2, 0]), 0, 8) is None, "a single document"
    assert full_rows(None, 10, 4) is None


def test_one_long_document_in_a_hundred_is_cut():
    tokens = np.concatenate([short_documents(199, 6, np.random.default_rng(0)), [200] * 30, [0]])
    assert len(document_starts(tokens, 0, 8)) == 200


# Documents.


def test_end_of_text_stands_around_each_document():
    tok = CharTokenizer.train(["ab"], special_tokens=[END_OF_TEXT])
    done = []
    tokens = encode_documents(["ab", "b"], tok, progress=done.append)
    assert tokens.tolist() == [2, 0, 1, 2, 1, 2]
    assert tokens.dtype == np.uint16
    assert done == [1, 1]
    assert encode_documents([], tok).tolist() == [2]


def test_a_tokenizer_without_end_of_text_adds_none():
    assert encode_documents(["ab", "b"], CharTokenizer.train(["ab"])).tolist() == [0, 1, 1]


def test_large_vocabularies_need_wider_tokens():
    tok = CharTokenizer([chr(0x10000 + i) for i in range((1 << 16) + 1)])
    tokens = encode_documents([chr(0x10000 + (1 << 16))], tok)
    assert tokens.dtype == np.uint32 and tokens.tolist() == [1 << 16]


def test_tokens_decode_to_the_documents():
    documents = ["the owl sat.", "è 日本 \n\n x"]
    tok = BPETokenizer.train(documents, 260)
    text = tok.decode(encode_documents(documents, tok).tolist())
    assert text == END_OF_TEXT + "".join(d + END_OF_TEXT for d in documents)


def test_split_documents():
    text = f"{END_OF_TEXT}\n one\n{END_OF_TEXT}{END_OF_TEXT} \n two"
    assert split_documents(text) == ["one", "two"]
    assert split_documents(f" {END_OF_TEXT}\n") == []


@pytest.mark.parametrize("length", [2, 3, 10, 1000])
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.5, 0.999999])
def test_one_document_is_cut_in_two(length, fraction):
    document = "".join(chr(97 + i % 26) for i in range(length))
    (training,), (validation,) = split_validation([document], fraction)
    assert training + validation == document
    assert training and validation
    assert abs(len(validation) - fraction * length) <= 1


@pytest.mark.parametrize("count", [2, 3, 100])
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.5, 0.999999])
def test_of_many_documents_the_last_are_kept(count, fraction):
    documents = ["x" * (1 + i % 7) for i in range(count)]
    training, validation = split_validation(documents, fraction)
    assert training + validation == documents
    assert training and validation
    kept = sum(map(len, validation))
    assert len(training) == 1 or fraction * sum(map(len, documents)) <= kept
    assert len(validation) == 1 or kept - len(validation[0]) < fraction * sum(map(len, documents))


def test_too_short_a_text_is_refused():
    check_length(np.zeros(17), 16, "training")
    with pytest.raises(UserError, match="training text has 16 tokens, but one context needs 17"):
        check_length(np.zeros(16), 16, "training")


# Files.


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "there is no text at "),
        (b"", " is empty"),
        (b" \n\t \r\n", " is empty"),
        (b"\xef\xbb\xbf\n", " is empty"),
        (b"abc\xe9d", "is not UTF-8 text: byte 3 is 0xe9"),
        ("x".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_what_is_no_text(tmp_path, content, sentence):
    path = tmp_path / "a book.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_text(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_marks_and_line_ends_of_windows(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(tmp_path / "a") == "one\ntwo\n"


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.MD", "sub/c", "picture.png", ".DS_Store", "sub/.hidden.txt"):
        data = b"\xff" if "." in name and name[-3:] not in ("txt", ".MD") else name.encode()
        (tmp_path / name).write_bytes(data)
    assert split_documents(read_text(tmp_path)) == ["a.MD", "b.txt", "sub/c"]


def test_a_folder_without_texts(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds no text file"):
        read_text(tmp_path)


def test_a_text_given_in_place_of_its_path():
    with pytest.raises(UserError, match=r"cannot be read: .*[Nn]ame too long|no text at"):
        read_text("once upon a time " * 100)


def test_tokens_come_back_as_they_were(tmp_path):
    tokens = np.arange(1000, dtype=np.uint16)
    save_tokens(tmp_path / "train.npy", tokens)
    back = load_tokens(tmp_path / "train.npy", 1000)
    assert isinstance(back, np.memmap) and np.array_equal(back, tokens)
    assert tokens_sha256(back) == tokens_sha256(tokens) != tokens_sha256(tokens[::-1])
    assert os.listdir(tmp_path) == ["train.npy"]
    with pytest.raises(UserError, match="holds the id 999, but the vocabulary ends at 998"):
        load_tokens(tmp_path / "train.npy", 999)


@pytest.mark.parametrize("change", ["missing", "empty", "cut", "zip", "noise", "floats", "table"])
def test_a_damaged_token_file_is_a_sentence(tmp_path, change):
    path = tmp_path / "train.npy"
    save_tokens(path, np.arange(1000, dtype=np.uint16))
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[:-9], "zip": b"PK\3\4" + whole, "noise": b"x" * 99}
    if change == "missing":
        path.unlink()
    elif change in damaged:
        path.write_bytes(damaged[change])
    else:
        np.save(path, np.ones(9) if change == "floats" else np.ones((3, 3), np.uint16))
    with pytest.raises(UserError, match=r"train.npy cannot be read .* start a new run"):
        load_tokens(path, 1000)


def test_a_full_disk_leaves_no_tokens(tmp_path, monkeypatch):
    def full(path, tokens):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_tokens(tmp_path / "train.npy", np.arange(10, dtype=np.uint16))
    assert os.listdir(tmp_path) == []
