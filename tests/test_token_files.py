"""Token files: what comes back is what was written, or a sentence says why it can't be."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npgpt.corpus import token_files
from npgpt.corpus.token_files import (
    facts_path,
    link_tokens,
    open_tokens,
    token_dtype,
    vocabulary_sha256,
)
from npgpt.corpus.token_writer import TokenWriter
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

ADVICE = "ask for another"
LETTERS = "".join(map(chr, range(97, 123)))
TOK = CharTokenizer.train([LETTERS], special_tokens=[END_OF_TEXT])  # 26 letters, then the end
IDS = np.random.default_rng(0).integers(0, 27, 10_001).astype(np.uint16)


def write(path, ids=IDS, tokenizer=TOK):
    """A token file in several pieces, and what open_tokens finds in it."""
    with TokenWriter(path, tokenizer, "test") as writer:
        for piece in np.array_split(ids, 7):
            writer.append(piece, documents=1, text_bytes=int(np.sum(piece < 26)))
        writer.finish()
    return open_tokens(path, tokenizer, ADVICE)


def refused(path, tokenizer=TOK):
    with pytest.raises(UserError) as error:
        open_tokens(path, tokenizer, ADVICE)
    sentence = str(error.value)
    assert str(path) in sentence and sentence.endswith(ADVICE) and "\n" not in sentence
    return sentence


@pytest.fixture(params=[".bin", ".npy"])
def path(request, tmp_path):
    return tmp_path / f"train{request.param}"


# What was written comes back.


def test_tokens_come_back_as_they_were(path):
    found = write(path)
    assert np.array_equal(found.tokens, IDS) and found.tokens.dtype == np.uint16
    assert np.shares_memory(found.tokens, np.frombuffer(found.mapping, np.uint8))
    assert not found.tokens.flags.writeable
    found.expect_random_reads()
    assert np.array_equal(found.tokens, IDS)
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.json"]
    assert found.facts["count"] == len(IDS)
    assert found.facts["text_bytes"] == np.sum(IDS < 26)
    assert (found.facts["vocab_size"], found.facts["end_of_text"]) == (27, 26)


def test_others_read_what_we_write(tmp_path):
    write(tmp_path / "a.bin"), write(tmp_path / "b.npy")
    nano = np.memmap(tmp_path / "a.bin", dtype=np.uint16, mode="r")  # as nanoGPT's get_batch
    assert np.array_equal(nano, IDS)
    assert np.array_equal(np.load(tmp_path / "b.npy"), IDS)
    facts = [json.loads(facts_path(tmp_path / n).read_bytes()) for n in ("a.bin", "b.npy")]
    assert facts[0] == facts[1], "the same ids have the same fingerprint in either form"


def test_large_vocabularies_need_wider_tokens(path):
    tokenizer = CharTokenizer([chr(0x10000 + i) for i in range((1 << 16) + 1)])
    found = write(path, [1 << 16, 5], tokenizer)
    assert found.tokens.dtype == np.uint32 and found.tokens.tolist() == [1 << 16, 5]


def test_two_bytes_are_enough_for_65536_ids():
    assert [token_dtype(n).itemsize for n in (2, 1 << 16, (1 << 16) + 1)] == [2, 2, 4]


def test_without_the_check_only_the_length_is_looked_at(path):
    write(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    open_tokens(path, TOK, ADVICE, check=False)
    path.write_bytes(damaged[:-2])
    with pytest.raises(UserError, match=r"10,000 tokens, and 10,001 were saved|mmap length"):
        open_tokens(path, TOK, ADVICE, check=False)


# What others wrote.


def test_a_bare_file_is_read_with_a_warning(path, capsys):
    IDS.tofile(path) if path.suffix == ".bin" else np.save(path, IDS)
    found = open_tokens(path, TOK, ADVICE, check=False)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: nothing says which tokenizer made {path}")
    assert warning.count("\n") == 1
    written = write(path.with_stem("again"))
    assert np.array_equal(found.tokens, IDS) and found.facts == written.facts


def test_a_bare_file_of_a_large_vocabulary_has_four_bytes_an_id(tmp_path):
    tokenizer = CharTokenizer([chr(0x10000 + i) for i in range((1 << 16) + 1)])
    np.array([7, 1 << 16], "<u4").tofile(tmp_path / "train.bin")
    assert open_tokens(tmp_path / "train.bin", tokenizer, ADVICE).tokens.tolist() == [7, 1 << 16]


def test_an_id_beyond_the_vocabulary_is_found_wherever_it_is(path, monkeypatch):
    monkeypatch.setattr(token_files, "CHUNK", 64)
    for place in (0, 5000, 10_000):
        ids = IDS.copy()
        ids[place] = 27
        ids.tofile(path) if path.suffix == ".bin" else np.save(path, ids)
        assert f"token {place:,} is 27, but the vocabulary ends at 26" in refused(path)


# What is not right.


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("missing", "(No such file or directory)"),
        ("empty", "(it is empty)"),
        ("cut", "and 10,001 were saved)|announces 20,130)|mmap length is greater than file size)"),
        ("odd", "(20,001 bytes are no ids of 2 bytes each)|has 20,129 bytes, and|mmap length"),
        ("longer", "10,002 tokens, and 10,001 were saved)|has 20,132 bytes, and announces 20,130)"),
        ("flipped", "(it has changed since it was saved: its sha256 is another)"),
        ("turned round", "(it has changed since it was saved: its sha256 is another)"),
        ("facts cut", "json is damaged)"),
        ("facts without an end", "json is damaged)"),
        ("facts of a list", "is not of format 1, which this npgpt reads)"),
        ("facts without count", "json is damaged)"),
        ("newer facts", "is not of format 1, which this npgpt reads)"),
    ],
)
def test_damage_is_a_sentence(path, change, sentence):
    write(path)
    whole, facts = path.read_bytes(), json.loads(facts_path(path).read_bytes())
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "cut": whole[:-12],
        "odd": whole[:-1],
        "longer": whole + b"\0\0",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "turned round": whole[:128] + whole[128:][::-1],
    }
    facts_damaged = {
        "facts cut": json.dumps(facts)[:50],
        "facts without an end": "[" * 100_000,
        "facts of a list": "[1]",
        "facts without count": json.dumps({k: v for k, v in facts.items() if k != "count"}),
        "newer facts": json.dumps({**facts, "format": 2}),
    }
    if change == "missing":
        path.unlink()
    elif change in damaged:
        path.write_bytes(damaged[change])
    else:
        facts_path(path).write_text(facts_damaged[change])
    told = refused(path)
    assert any(part in told for part in sentence.split("|")), told


@pytest.mark.parametrize("content", ["zip", "noise", "floats", "table", "big", "objects", "none"])
def test_what_is_no_row_of_ids(tmp_path, content):
    path = tmp_path / "train.npy"
    arrays = {
        "floats": np.ones(9),
        "table": np.ones((3, 3), np.uint16),
        "big": np.ones(3, ">u2"),
        "objects": np.array([None, 1]),
        "none": np.ones(0, np.uint16),
    }
    if content in arrays:
        np.save(path, arrays[content])
    else:
        path.write_bytes({"zip": b"PK\3\4", "noise": b"x"}[content] * 99)
    assert "cannot be used (" in refused(path)


def test_what_follows_the_row_is_none_of_it(tmp_path):
    path = tmp_path / "train.npy"
    np.save(path, IDS)
    path.write_bytes(path.read_bytes() + bytes(2))
    assert "has 20,132 bytes, and announces 20,130" in refused(path)


def test_another_kind_of_name(tmp_path):
    IDS.tofile(tmp_path / "train.dat")
    assert "its name must end with .bin or .npy" in refused(tmp_path / "train.dat")


@pytest.mark.parametrize("letters", [LETTERS[1:], LETTERS[::-1]])
def test_another_tokenizer_is_refused(path, letters):
    write(path)
    other = CharTokenizer(list(letters), special_tokens=[END_OF_TEXT])
    sentence = refused(path, other)
    for tokenizer in (TOK, other):
        assert f"{vocabulary_sha256(tokenizer)[:8]}, {tokenizer.vocab_size} tokens" in sentence


def test_tokens_with_another_end_of_text_are_refused(path):
    tok = CharTokenizer(list(LETTERS), ["<|end|>", "<|stop|>"])
    tok.end_name = "<|end|>"
    write(path, IDS, tok)
    tok.end_name = "<|stop|>"
    assert "its documents end with token 26, and this tokenizer's with 27" in refused(path, tok)


def test_the_fingerprint_is_of_all_that_decides_the_ids():
    texts = ["she sells sea shells on the sea shore", "he sells shells"]
    tok = BPETokenizer.train(texts, 270)
    same = BPETokenizer(tok.tokens, tok.merges, tok.special_tokens)
    assert vocabulary_sha256(same) == vocabulary_sha256(tok)
    swapped = [tok.merges[1], tok.merges[0], *tok.merges[2:]]
    allowing = BPETokenizer(tok.tokens, tok.merges, tok.special_tokens)
    allowing.always_allowed = frozenset([END_OF_TEXT])
    others = [
        allowing,
        BPETokenizer.train(texts, 269),
        BPETokenizer.train(texts, 270, special_tokens=["<|end|>"]),
        BPETokenizer(tok.tokens, swapped, tok.special_tokens),
        BPETokenizer([*tok.tokens[1:], tok.tokens[0]], tok.merges, tok.special_tokens),
        CharTokenizer(list(LETTERS)),
        CharTokenizer(list(LETTERS), ["ab"]),
        CharTokenizer(list(LETTERS), ["a", "b"]),
        CharTokenizer(["ab", "c"]),
        CharTokenizer(["a", "bc"]),
    ]
    assert len({vocabulary_sha256(t) for t in [tok, *others]}) == 1 + len(others)


def test_a_file_is_on_the_disk_before_it_has_its_name(path, named_when_safe):
    write(path)
    assert named_when_safe == [f"{path.name}.json", path.name], "its facts come first"


# Writing goes on where it was.


class Stop(Exception):
    pass


def begin(path, pieces, identity="test"):
    """Write some of seven pieces, and leave."""
    with TokenWriter(path, TOK, identity) as writer:
        done = writer.documents
        for piece in np.array_split(IDS, 7)[done : done + pieces]:
            writer.append(piece, documents=1, text_bytes=int(np.sum(piece < 26)))
        if writer.documents == 7:
            writer.finish()
    return done


def test_an_interrupted_file_is_finished_to_the_same_bytes(path):
    whole = write(path.with_stem("whole"))
    for done in (0, 2, 4, 6):
        assert not path.exists()
        assert begin(path, 2) == done
    assert path.read_bytes() == whole.path.read_bytes()
    assert open_tokens(path, TOK, ADVICE).facts == whole.facts
    assert not list(path.parent.glob("*.part*"))


def test_what_came_after_the_last_note_is_cut_off(path):
    begin(path, 3)
    with open(f"{path}.part", "ab") as file:
        file.write(b"half a piece")
    assert begin(path, 7) == 3
    assert np.array_equal(open_tokens(path, TOK, ADVICE).tokens, IDS)


@pytest.mark.parametrize(
    "change", ["note", "nest", "part", "lost", "flipped", "identity", "vocabulary"]
)
def test_what_does_not_fit_is_begun_anew(path, change):
    begin(path, 3)
    part, note = Path(f"{path}.part"), Path(f"{path}.part.json")
    if change == "note":
        note.write_bytes(note.read_bytes()[:20])
    elif change == "nest":
        note.write_text("[" * 100_000)
    elif change == "part":
        part.unlink()
    elif change == "lost":  # a power cut: the note reached the disk, its bytes did not
        part.write_bytes(part.read_bytes()[:-2])
    elif change == "flipped":
        part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    elif change == "vocabulary":
        note.write_text(note.read_text().replace(vocabulary_sha256(TOK)[:8], "01234567"))
    assert begin(path, 7, "another" if change == "identity" else "test") == 0
    assert np.array_equal(open_tokens(path, TOK, ADVICE).tokens, IDS)


@pytest.mark.parametrize("more", ["", "more"])
def test_a_killed_process_leaves_a_note(tmp_path, more):
    """Killed at once, without a moment to say goodbye: the note of some time before must do."""
    program = (
        "import os, signal, sys\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "from npgpt.corpus import token_writer\n"
        "from test_token_files import *\n"
        "token_writer.NOTE_SECONDS = -1.0\n"
        "writer = TokenWriter('train.bin', TOK, 'test')\n"
        "for piece in np.array_split(IDS, 7)[:4]:\n"
        "    writer.append(piece, 1, int(np.sum(piece < 26)))\n"
        "token_writer.NOTE_SECONDS = 99.0\n"
        "if sys.argv[2]:\n"
        "    writer.append(IDS, 1, 3)\n"
        "    writer.file.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL if os.name == 'posix' else signal.SIGTERM)\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program, __file__, more], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode != 0 and not done.stderr
    assert sorted(os.listdir(tmp_path)) == ["train.bin.part", "train.bin.part.json"]
    assert begin(tmp_path / "train.bin", 7) == 4
    assert np.array_equal(open_tokens(tmp_path / "train.bin", TOK, ADVICE).tokens, IDS)


def test_killed_between_the_last_two_moves(path, monkeypatch):
    def replace(source, target):
        if target == path:
            raise Stop
        real(source, target)

    begin(path, 6)
    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Stop):
            begin(path, 1)
    assert facts_path(path).exists() and not path.exists()
    assert begin(path, 1) == 6
    assert np.array_equal(open_tokens(path, TOK, ADVICE).tokens, IDS)


def test_a_full_disk_keeps_what_is_done(path, monkeypatch):
    begin(path, 3)
    with pytest.raises(UserError) as error, TokenWriter(path, TOK, "test") as writer:

        def full(ids):
            raise OSError(errno.ENOSPC, "No space left on device")

        writer.file, real = type("Full", (), {"write": full, "closed": True}), writer.file
        real.close()
        writer.append(IDS)
    assert "(No space left on device)" in str(error.value)
    assert "make room there, and the same command goes on" in str(error.value)
    assert not path.exists()
    assert begin(path, 7) == 3
    assert np.array_equal(open_tokens(path, TOK, ADVICE).tokens, IDS)


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"could not write .*file.train.bin.part"):
        write(tmp_path / "file" / "train.bin")


# A second name.


@pytest.mark.parametrize("links", ["hard", "symbolic", "none", "small"])
def test_a_second_name(path, tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    found = write(path)
    if links != "hard":
        monkeypatch.setattr(os, "link", refuse)
    if links == "none":
        monkeypatch.setattr(os, "symlink", refuse)
    if links != "small":
        monkeypatch.setattr(token_files, "SMALL", 0)
    (tmp_path / "run").mkdir()
    second = tmp_path / "run" / f"tokens{path.suffix}"
    second.write_bytes(b"an attempt that was killed")
    linked = link_tokens(found, second.with_suffix(""))
    assert linked.path == second and linked.facts == found.facts
    assert second.is_symlink() == (links == "symbolic")
    assert os.path.samefile(second, path) == (links in ("hard", "symbolic"))
    assert np.array_equal(open_tokens(second, TOK, ADVICE).tokens, IDS)
    assert sorted(os.listdir(tmp_path / "run")) == [second.name, f"{second.name}.json"]
    link_tokens(linked, second.with_suffix("").with_name("third"))
    path.unlink()
    if links != "symbolic":
        assert np.array_equal(open_tokens(second, TOK, ADVICE).tokens, IDS)


def test_a_copy_that_does_not_fit(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = write(path)
    for owner, name in ((os, "link"), (os, "symlink"), (token_files.shutil, "copyfile")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(UserError, match=r"No space left on device.*it takes 20,\d\d\d bytes"):
        link_tokens(found, path.with_name("second"))
