"""From --data to tokens: every byte of the text is in them once, in a memory that stays small."""

import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npgpt.backend import kernels_enabled
from npgpt.cli import parse
from npgpt.corpus import tokenizing
from npgpt.corpus.prepare import prepare, ready_tokens
from npgpt.corpus.sources import GivenSource
from npgpt.corpus.tokenizing import Part, batched, encode_documents, find_split, short_texts
from npgpt.errors import UserError
from npgpt.folders import data_folder
from npgpt.settings import Settings, with_preset
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
BOOK = "The owl sat in the old tree, and the mouse ran home. What did the fox say? Nothing!\n"


def source(documents):
    return GivenSource("a test", lambda start=0: iter(documents[start:]), str(documents))


# Where the validation text begins.


@pytest.mark.parametrize("length", [2, 3, 10, 1000])
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.5, 0.999999])
def test_one_document_is_cut_in_two(length, fraction):
    document = bytes(97 + i % 26 for i in range(length))
    begin, end, sizes = find_split([document], fraction)
    (training,) = Part(source([document]), end=begin).documents()
    (validation,) = Part(source([document]), begin, end).documents()
    assert training + validation == document
    assert training and validation and sizes == (len(training), len(validation))
    assert abs(len(validation) - fraction * length) <= 1


@pytest.mark.parametrize("count", [2, 3, 100])
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.5, 0.999999])
def test_of_many_documents_the_last_are_kept(count, fraction):
    documents = [b"x" * (1 + i % 7) for i in range(count)]
    begin, end, sizes = find_split(documents, fraction)
    training = list(Part(source(documents), end=begin).documents())
    validation = list(Part(source(documents), begin, end).documents())
    assert training + validation == documents
    assert training and validation
    kept, wanted = sum(map(len, validation)), fraction * sum(map(len, documents))
    assert sizes == (sum(map(len, training)), kept)
    assert len(training) == 1 or wanted <= kept
    assert len(validation) == 1 or kept - len(validation[0]) < wanted


def test_no_more_is_kept_than_is_of_use(monkeypatch):
    monkeypatch.setattr(tokenizing, "VALID_MOST", 100)
    many = [b"x" * 30] * 1000
    assert find_split(many, 0.5) == ((996, 0), (1000, 0), (29_880, 120))
    begin, end, sizes = find_split([b"a" * 50, b"b" * 1000], 0.5)
    assert (begin, end) == ((1, 900), (2, 0)), "a long document is cut, as a single one is"
    assert sizes == (950, 100)
    assert list(Part(source([b"a", b"b" * 9]), (1, 7), end).documents()) == [b"bb"]


def test_no_character_is_cut():
    document = "日本語のテキスト".encode()
    for cut in range(3, len(document)):
        (training,) = Part(source([document]), end=(0, cut)).documents()
        (validation,) = Part(source([document]), begin=(0, cut)).documents()
        assert training.decode() + validation.decode() == document.decode()


def test_a_part_goes_on_where_it_was():
    documents = [bytes([97 + i]) * 10 for i in range(9)]
    for part in (
        Part(source(documents)),
        Part(source(documents), (2, 3), (7, 0)),
        Part(source(documents), (0, 4), (0, 7)),
        Part(source(documents), end=(8, 5)),
        Part(source(documents), most=35),
    ):
        whole = list(part.documents())
        for done in range(len(whole) + 1):
            assert list(part.documents(done, 10 * done)) == whole[done:]
    assert len(whole) == 4, "a document that has begun is not cut"
    assert list(Part(source(documents), most=30).documents()) == documents[:3]
    middle = Part(source(documents), (2, 3), (7, 4)).documents()
    assert list(middle) == [documents[2][3:], *documents[3:7], documents[7][:4]]


# Documents to ids.


def test_end_of_text_stands_behind_each_document():
    tok = CharTokenizer.train(["ab"], special_tokens=[END_OF_TEXT])
    ids = encode_documents([b"ab", b"b"], tok)
    assert ids.tolist() == [0, 1, 2, 1, 2] and ids.dtype == np.uint16
    assert encode_documents([], tok).tolist() == []
    assert encode_documents([b"ab", b"b"], CharTokenizer.train(["ab"])).tolist() == [0, 1, 1]


def test_what_reads_like_the_end_of_text_is_text():
    tok = BPETokenizer.train([BOOK], 270)
    ids = encode_documents([f"a{END_OF_TEXT}b".encode()], tok)
    assert np.sum(ids == tok.end_of_text) == 1
    assert tok.decode(ids.tolist()) == f"a{END_OF_TEXT}b{END_OF_TEXT}"


def test_large_vocabularies_need_wider_ids():
    tok = CharTokenizer([chr(0x10000 + i) for i in range((1 << 16) + 1)])
    ids = encode_documents([chr(0x10000 + (1 << 16)).encode()], tok)
    assert ids.dtype == np.uint32 and ids.tolist() == [1 << 16]


def test_a_long_text_is_cut_where_no_token_reaches_across():
    chance = random.Random(5)
    texts = ["".join(chance.choices("ab7'é日s \n\t\u3000\u00a0.,!", k=60)) for _ in range(300)]
    tok = BPETokenizer.train(texts, 600)
    cuts = 0
    for text in texts:
        pieces = list(short_texts(text, chance.randint(1, 20)))
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in tok.encode(piece)] == tok.encode(text)
        cuts += len(pieces) - 1
    assert cuts > 300


def test_pieces_are_not_much_longer_than_asked_for():
    assert max(map(len, short_texts(BOOK * 100, 200))) < 220


def test_batches_of_documents(monkeypatch):
    monkeypatch.setattr(tokenizing, "BATCH", 10)
    documents = [b"x" * n for n in (3, 9, 1, 30, 2, 2)]
    assert list(batched(documents)) == [documents[:2], documents[2:4], documents[4:]]
    assert list(batched([])) == []


# From --data to two files.


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test has a folder and a cache of its own."""
    monkeypatch.setenv("NPGPT_DATA", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def prepared(line):
    found, asked = parse(Settings, line.split())
    return prepare(with_preset(found, asked))


def text_of(file, tokenizer):
    return tokenizer.decode(file.tokens.tolist())


def folders():
    return sorted(path.name for path in data_folder("tokens").glob("*"))


def test_the_storybook_knows_its_entropy(capsys):
    data = prepared("--preset tiny --words 3000")
    from data import storybook

    # Seed 1 has the texts of 2 and 3, and the second is a twentieth of the first.
    read, told = storybook.generate(3000, seed=2), storybook.generate(150, seed=3)
    assert data.nats == sum(story.nats for story in told)
    assert text_of(data.valid, data.tokenizer) == END_OF_TEXT + "".join(
        story.text + END_OF_TEXT for story in told
    )
    assert data.train.tokens[0] == data.train.tokens[-1] == data.tokenizer.end_of_text
    assert data.valid.facts["text_bytes"] == sum(len(story.text) for story in told)
    assert re.fullmatch(
        r"reading the storybook ...\nlearning 400 tokens ...\nturning it into tokens, in \S+ ...\n"
        rf"  train.bin: {len(read)} documents, \d+ kB of text, [\d,]+ tokens(; .*/s)?\n"
        rf"  valid.bin: {len(told)} documents, \d+ k?B of text, [\d,]+ tokens\n",
        capsys.readouterr().out,
    )


def test_the_next_run_finds_the_tokens(capsys):
    first = prepared("--preset tiny --words 3000")
    before = first.train.path.stat().st_mtime_ns
    capsys.readouterr()
    again = prepared("--preset tiny --words 3000 --seed 1 --n-embd 64")
    assert "an earlier run has turned it into tokens, in" in capsys.readouterr().out
    assert again.train.path == first.train.path and again.nats == first.nats
    assert again.train.path.stat().st_mtime_ns == before
    assert np.array_equal(again.valid.tokens, first.valid.tokens)


@pytest.mark.parametrize(
    "change",
    [
        "--valid-fraction 0.2", "--vocab-size 290", "--tokenizer char", "--tokenizer-mb 1",
        "--data-mb 2", "--valid other.txt", "--tokenizer-from tok", "touched", "tokenizer/bpe.py",
        "corpus/sources.py", "corpus/parquet.py", "corpus/tokenizing.py",
    ],
)  # fmt: skip
def test_other_tokens_have_another_folder(change, monkeypatch):
    Path("book.txt").write_text(BOOK * 40)
    Path("other.txt").write_text(BOOK * 2)
    BPETokenizer.train([BOOK], 280).save("tok")
    prepared("--data book.txt --vocab-size 280")
    if change == "touched":
        os.utime("book.txt", (1, 1))
    elif change.endswith(".py"):
        for folder in ("tokenizer", "corpus"):
            shutil.copytree(ROOT / "npgpt" / folder, Path("npgpt", folder))
        Path("npgpt", change).write_text("another code")
        monkeypatch.setattr("npgpt.corpus.prepare.__file__", "npgpt/corpus/prepare.py")
    options = change if change.startswith("--") else ""
    size = "" if "--vocab" in options or "--tokenizer-from" in options else "--vocab-size 280"
    prepared(f"--data book.txt {size} {options}")
    assert len(folders()) == 2


def test_another_storybook_has_another_folder(monkeypatch):
    from data import storybook_grammar

    line = "--preset tiny --words 3000 --vocab-size 300"
    prepared(line)
    prepared(f"{line} --seed 7")
    Path("grammar.py").write_bytes(Path(storybook_grammar.__file__).read_bytes() + b"# changed")
    monkeypatch.setattr(storybook_grammar, "__file__", "grammar.py")
    prepared(line)
    assert len(folders()) == 3


def test_another_end_of_text_has_another_folder():
    """Of models with one vocabulary, one may end its documents with another mark than the other."""
    Path("book.txt").write_text(END_OF_TEXT.join([BOOK] * 9))
    tok = BPETokenizer.from_merges([], ["<|end|>", "<|stop|>"])
    for name in tok.special_tokens:
        tok.end_name = name
        tok.save("tok")
        tokens = prepared("--data book.txt --tokenizer-from tok").train.tokens
        assert tokens[0] == tokens[-1] == tok.end_of_text
    assert len(folders()) == 2


def test_a_book_is_cut_and_nothing_is_lost():
    Path("my book, 1st.txt").write_text(BOOK * 40)
    data = prepared_words("--data", "my book, 1st.txt", "--tokenizer", "char")
    training, validation = (text_of(f, data.tokenizer) for f in (data.train, data.valid))
    assert training + validation == (BOOK * 40).strip()
    assert len(validation) == pytest.approx(0.05 * len(BOOK) * 40, abs=1)
    assert data.tokenizer.end_of_text is None and data.nats is None
    assert folders()[0].startswith("my-book-1st.txt-")


def prepared_words(*words):
    return prepare(with_preset(*parse(Settings, words)))


def test_documents_of_many_kinds():
    Path("folder").mkdir()
    for i in range(30):
        Path(f"folder/{i:02}.txt").write_text(f"{BOOK}{i}")
    with open("folder/more.jsonl", "w") as file:
        for i in range(30, 40):
            file.write(json.dumps({"story": f"{BOOK}{i}"}) + "\n")
    Path("folder/packed.txt.xz").write_bytes(
        lzma.compress(f"{BOOK}40{END_OF_TEXT}{BOOK}41".encode())
    )
    data = prepared("--data folder --field story --vocab-size 270 --valid-fraction 0.1")
    documents = [f"{BOOK}{i}" for i in range(42)]
    for file, told in ((data.train, documents[:37]), (data.valid, documents[37:])):
        assert text_of(file, data.tokenizer) == END_OF_TEXT + "".join(d + END_OF_TEXT for d in told)


def test_the_tokenizer_does_not_see_the_validation_text():
    Path("book.txt").write_text(f"{BOOK * 3}{END_OF_TEXT}{'zyzyzyzy ' * 99}")
    data = prepared("--data book.txt --vocab-size 262")
    assert not any(b"zy" in token for token in data.tokenizer.tokens)


@pytest.mark.parametrize("limit", ["--tokenizer-mb 1", "--data-mb 1"])
def test_the_tokenizer_reads_the_beginning_of_a_large_text(limit, capsys):
    texts = ["ababab " * 100_000, "ababab " * 100_000, "cdcdcd " * 300_000]
    Path("book.txt").write_text(END_OF_TEXT.join(texts))
    Path("valid.txt").write_text("ab")
    data = prepared(f"--data book.txt --valid valid.txt --vocab-size 259 {limit}")
    assert not any(b"cd" in token for token in data.tokenizer.tokens)
    told = "  from the first 1.4 MB of the text: see --tokenizer-mb\n" in capsys.readouterr().out
    assert told == (limit == "--tokenizer-mb 1")


def test_no_more_than_asked_for_is_read():
    documents = [("x" if i < 24 else "\xff") * 99_999 for i in range(40)]
    Path("book.txt").write_text(END_OF_TEXT.join(documents))
    data = prepared("--data book.txt --data-mb 2 --tokenizer char --valid-fraction 0.1")
    read = data.train.facts["text_bytes"] + data.valid.facts["text_bytes"]
    assert 2e6 <= read < 2.2e6
    assert data.tokenizer.characters == ["x"]
    Path("valid.txt").write_text("yxxxx")
    data = prepared("--data book.txt --data-mb 2 --tokenizer char --valid valid.txt")
    assert data.train.facts["text_bytes"] == read


def test_a_tokenizer_that_is_there_is_not_learned_anew(capsys):
    Path("book.txt").write_text(BOOK * 40)
    tok = BPETokenizer.train([BOOK * 9], 290)
    tok.save("runs/a/tokenizer")
    data = prepared("--data book.txt --tokenizer-from runs/a")
    assert data.tokenizer.merges == tok.merges
    assert "learning" not in capsys.readouterr().out


# Tokens that are ready.


def nanogpt(folder, tok, valid="val"):
    """Files as nanoGPT's prepare.py leaves them: an end of text behind each document."""
    Path(folder).mkdir()
    for name, times in (("train", 40), (valid, 5)):
        encode_documents([BOOK.encode()] * times, tok).tofile(Path(folder, f"{name}.bin"))


@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
def test_nanogpts_files(capsys, valid):
    tok = BPETokenizer.train([BOOK], 290)
    nanogpt("theirs", tok, valid)
    tok.save("gpt2")
    for spec in ("theirs", "theirs/train.bin"):
        data = prepared(f"--data {spec} --tokenizer-from gpt2")
        out, err = capsys.readouterr()
        assert out.replace(os.sep, "/") == (
            f"taking the tokens of theirs/train.bin and theirs/{valid}.bin\n"
        )
        assert err.count("warning: nothing says which tokenizer made theirs") == 2
        assert text_of(data.train, tok) == (BOOK + END_OF_TEXT) * 40
        assert data.valid.facts["text_bytes"] == len(BOOK) * 5
    assert not folders()


def test_a_folder_of_ours_goes_elsewhere(capsys):
    first = prepared("--preset tiny --words 3000")
    os.rename(first.train.path.parent, "elsewhere")
    capsys.readouterr()
    data = prepared("--data elsewhere")
    assert capsys.readouterr().err == ""
    assert data.nats == first.nats and data.tokenizer.merges == first.tokenizer.merges
    assert np.array_equal(data.train.tokens, first.train.tokens)


def test_what_is_no_place_of_tokens():
    Path("train.bin").mkdir()
    Path("text").mkdir()
    for spec in ("none.bin", "text", "book.txt", ".", "train.bin"):
        assert ready_tokens(spec) is None


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--data theirs", "theirs/train.bin holds tokens, but there is no theirs/tokenizer to"),
        ("--data lone.bin --tokenizer-from tok", "lone.bin holds tokens, so --valid must name a"),
        ("--data lone.bin --valid book.txt --tokenizer-from tok", "so --valid must name a file of"),
        ("--data book.txt --valid lone.bin", "lone.bin holds tokens, so --data must hold tokens"),
        ("--data theirs --tokenizer-from none", "there is no tokenizer folder none"),
        ("--data theirs --tokenizer-from theirs", "theirs holds no tokenizer"),
        ("--data theirs --tokenizer-from small", "but the vocabulary ends at 259): give the"),
        ("--data ours --tokenizer-from small", "another tokenizer made it: its vocabulary is"),
        ("--data none.bin", "there is no text at none.bin: give --data a file or a folder, or one"),
        ("--data shakespear", "or one of storybook, tinystories, shakespeare, fineweb-edu"),
        ("--data book.txt --vocab-size 99999", "vocab_size 99999 is larger than this text"),
        ("--data tiny.txt --tokenizer char", "tiny.txt leaves 3 bytes to train on: give a longer"),
        ("--data-mb 0", "--data-mb is 0, but it must be 1 or more"),
        ("--tokenizer-mb 0", "--tokenizer-mb is 0, but it must be 1 or more"),
        ("--data book.txt --tokenizer-from tok --vocab-size 9", "leave out --vocab-size, or it"),
        ("--preset tinystories-4m", "let --data tinystories or shakespeare or fineweb-edu fetch"),
    ],
)
def test_a_mistake_is_one_sentence(line, sentence):
    tok = BPETokenizer.train([BOOK], 290)
    tok.save("tok")
    nanogpt("theirs", tok)
    Path("lone.bin").write_bytes(Path("theirs/train.bin").read_bytes())
    Path("book.txt").write_text(BOOK * 40)
    Path("tiny.txt").write_text("abcd")
    BPETokenizer.train([BOOK], 260).save("small")
    if "ours" in line:
        os.rename(prepared("--data book.txt --vocab-size 280").train.path.parent, "ours")
    with pytest.raises(UserError) as error:
        prepared(line)
    assert sentence in str(error.value).replace(os.sep, "/")
    assert "\n" not in str(error.value)
    assert not list(data_folder("tokens").glob("*/*.bin"))


def test_damaged_tokens_of_the_cache(capsys):
    data = prepared("--preset tiny --words 3000")
    raw = bytearray(data.valid.path.read_bytes())
    raw[7] ^= 1
    data.valid.path.write_bytes(raw)
    with pytest.raises(
        UserError, match=r"valid.bin cannot be used \(it has changed since"
    ) as error:
        prepared("--preset tiny --words 3000")
    assert str(error.value).endswith(
        f"delete the folder {data.valid.path.parent}, and the same command makes it anew"
    )


def test_a_cache_that_can_not_be_written(monkeypatch):
    Path("file").write_bytes(b"")
    monkeypatch.setenv("NPGPT_DATA", str(Path("file").resolve()))
    with pytest.raises(UserError, match=r"can't make the folder .*environment variable NPGPT_DATA"):
        prepared("--preset tiny --words 3000")


# Killed, and gone on with.

PROGRAM = """
import sys
from npgpt.corpus import token_writer, tokenizing
from npgpt.cli import parse
from npgpt.corpus.prepare import prepare
from npgpt.settings import Settings, with_preset
token_writer.NOTE_SECONDS, tokenizing.BATCH = 0.0, 1 << 16
prepare(with_preset(*parse(Settings, sys.argv[1:])))
from npgpt.plan import peak_memory_bytes
print("peak", peak_memory_bytes())
"""


def start(*argv, program=PROGRAM):
    return subprocess.Popen(
        [sys.executable, "-c", program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signal")
def test_killed_again_and_again(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    with open("book.txt", "w") as file:
        for i in range(20_000):
            file.write(f"{BOOK * int(rng.integers(1, 5))}{i}{END_OF_TEXT}\n")
    argv = ["--data", "book.txt", "--tokenizer", "char", "--valid-fraction", "0.1"]
    notes, kills = set(), 0
    while True:
        process = start(*argv)
        while kills < 4 and process.poll() is None:
            parts = list(data_folder("tokens").glob("*/*.part.json"))
            note = parts[0].read_bytes() if parts else b""
            if note and note not in notes and len(note) > 9:  # it has come further
                notes.add(note)
                process.kill()
                kills += 1
        out, err = process.communicate()
        assert err == ""
        if process.returncode == 0:
            break
    assert kills == 4
    assert re.search(r"train.bin: [\d,]+ documents done already", out), out
    killed = next(data_folder("tokens").glob("*"))
    assert not list(killed.glob("*.part*"))
    monkeypatch.setenv("NPGPT_DATA", str(tmp_path / "whole"))
    whole = prepared(" ".join(argv)).train.path.parent
    for name in ("train.bin", "valid.bin", "train.bin.json", "valid.bin.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("done", [0, 2])
def test_ctrl_c_says_how_to_go_on(done, monkeypatch, capsys):
    def interrupted(documents, tokenizer):
        batches.append(documents)
        if len(batches) > done:
            raise KeyboardInterrupt
        return encode_documents(documents, tokenizer)

    batches = []
    Path("book.txt").write_text((BOOK + END_OF_TEXT) * 100)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "BATCH", 20 * len(BOOK) - 20)
        patch.setattr(tokenizing, "encode_documents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared("--data book.txt --tokenizer char")
    told = f"\n  stopped after {20 * done} documents: the same command goes on\n"
    assert told in capsys.readouterr().out
    data = prepared("--data book.txt --tokenizer char")
    told = "  train.bin: 40 documents done already\n" in capsys.readouterr().out
    assert told == (done > 0)
    for file, documents in ((data.train, 95), (data.valid, 5)):
        text = END_OF_TEXT + (BOOK.strip() + END_OF_TEXT) * documents
        assert text_of(file, data.tokenizer) == text, "nothing twice, and no mark"


def test_two_at_once_make_them_once():
    Path("book.txt").write_text((BOOK * 3 + END_OF_TEXT) * 3000)
    argv = ["--data", "book.txt", "--tokenizer", "char"]
    processes = [start(*argv) for _ in range(2)]
    outs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    assert sum("learning the characters" in out for out, _ in outs) == 1
    assert sum("an earlier run has turned it into tokens" in out for out, _ in outs) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_a_large_text_takes_little_memory():
    """100 MB, of which any list of documents or of ids would be more than is allowed."""
    line = (BOOK * 20 + END_OF_TEXT).encode()
    with open("large.txt", "wb") as file:
        for _ in range(100_000_000 // len(line)):
            file.write(line)
    with open("lone.txt", "wb") as file:  # a single document: a book without an end of text
        for _ in range(60_000_000 // len(line)):
            file.write(BOOK.encode() * 20)
    Path("small.txt").write_bytes(line * 100)
    program = PROGRAM.replace("1 << 16", "1 << 20")
    kind = "--vocab-size=270" if kernels_enabled() else "--tokenizer=char"  # the quicker one
    peaks = []
    for name in ("small", "small", "large", "lone"):  # the first compiles what is not yet
        process = start("--data", f"{name}.txt", kind, program=program)
        out, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(int(out.split()[-1]))
        shutil.rmtree(data_folder("tokens"))
    assert peaks[2] - peaks[1] < 80e6
    assert peaks[3] - peaks[1] < 160e6
    assert max(peaks[2:]) < 500e6
