"""Documents from files of every kind: none is lost, none is torn, and a mistake has its place."""

import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.corpus import sources
from npgpt.corpus.sources import FileSource, GivenSource, Source, open_source, text_documents
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT

ROOT = Path(__file__).resolve().parents[1]
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def write(path, content, packed=""):
    """Write a file, packed if that is wanted; returns its path."""
    path = path.with_name(path.name + packed)
    path.write_bytes(PACK[packed](content))
    return path


def read(path, field=None, start=0):
    """The documents of a path, as str."""
    return [d.decode() for d in open_source(path, field).documents(start)]


def refused(path, field=None):
    """The sentence with which reading ends."""
    with pytest.raises(UserError) as error:
        read(path, field)
    assert "\n" not in str(error.value)
    return str(error.value)


# Kinds of files.

TEXT = f"\ufeff one\r\n1 {END_OF_TEXT}\n{END_OF_TEXT} \t{END_OF_TEXT}zwei è 日本\n\n x".encode()
LINES = b"""\xef\xbb\xbf{"text": " one\\r\\n1 ", "id": 1}

{"id": 2, "text": null}
{"text": " \\u00a0", "id": [3]}
{"text": "zwei \\u00e8 \\u65e5\xe6\x9c\xac\\n\\n x"}"""
DOCUMENTS = ["one\n1", "zwei è 日本\n\n x"]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.rst", "a.TXT"])
def test_text(tmp_path, name, packed):
    assert read(write(tmp_path / name, TEXT, packed)) == DOCUMENTS


@pytest.mark.parametrize("text", ["\u3000a b", "a b\u00a0", "\n\u2003 a b\t", "\u00a0a b\u2028"])
def test_white_space_that_ascii_has_not_is_stripped_too(text):
    assert sources.clean(text.encode()) == b"a b"


@pytest.mark.parametrize("packed", PACK)
def test_lines_of_json(tmp_path, packed):
    path = write(tmp_path / "a.jsonl", LINES, packed)
    assert read(path) == DOCUMENTS
    path = write(tmp_path / "b.jsonl", LINES.replace(b'"text"', b'"story"'), packed)
    assert read(path, "story") == DOCUMENTS


def test_tables(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="reading .parquet needs pyarrow")
    import pyarrow as pa

    values = [" one\r\n1 ", None, "", "zwei è 日本\n\n x", " \u3000"]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"id": range(5), "text": pa.array(values, kind)})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        assert read(tmp_path / "a.parquet") == DOCUMENTS
        assert read(tmp_path / "a.parquet", start=1) == DOCUMENTS[1:]
    assert "has no column 'story'; the columns there are: 'id', 'text'" in refused(
        tmp_path / "a.parquet", "story"
    )
    assert "holds no text, but int64" in refused(tmp_path / "a.parquet", "id")
    write(tmp_path / "b.parquet", b"\xff", ".gz")  # of a folder, only tables that are not packed
    assert read(tmp_path) == DOCUMENTS


def test_damaged_tables(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="reading .parquet needs pyarrow")
    import pyarrow as pa

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 100, "b" * 50]}), path, use_dictionary=False)
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"PAR1", whole[:4] + bytes(30) + whole[34:]):
        path.write_bytes(damaged)
        assert "a.parquet is damaged" in refused(path)


def test_tables_need_a_library(tmp_path):
    write(tmp_path / "a.parquet", b"PAR1")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from npgpt.errors import UserError\n"
        "from npgpt.corpus.sources import open_source\n"
        "try: next(open_source(sys.argv[1]).documents())\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, tmp_path / "a.parquet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "read with the library pyarrow: python -m pip install pyarrow" in done.stdout


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.MD", "sub/c", "sub.txt", "picture.png", ".DS_Store", "sub/.x.txt"):
        write(tmp_path / name, b"\xff" if "." in name[0] or "png" in name else name.encode())
    write(tmp_path / "sub" / ".x.txt", b"\xff")
    write(tmp_path / "d.jsonl", b'{"text": "d"}', ".xz")
    write(tmp_path / "e.txt", b"e1<|endoftext|>e2", ".gz")
    write(tmp_path / "f.tar", b"\xff", ".gz")
    write(tmp_path / "blank.txt", b" \n")
    source = open_source(tmp_path)
    expected = ["a.MD", "b.txt", "d", "e1", "e2", "sub/c", "sub.txt"]
    assert [d.decode() for d in source.documents()] == expected
    assert [d.decode() for d in source.documents(4)] == expected[4:]
    assert source.name == str(tmp_path)


def test_a_source_is_taken_as_it_is():
    source = GivenSource("mine", lambda start: iter([b"a", b"b"][start:]), "1")
    assert open_source(source) is source
    assert list(source.documents(1)) == [b"b"]
    assert source.size_bytes is None and source.position() == 0 and isinstance(source, Source)


def test_as_the_real_texts_are(shared_data):
    """A few megabytes of stories, against the plainest way to cut them."""
    for name in ("train.txt", "valid.txt"):
        path = shared_data / "tinystories" / name
        text = path.read_text("utf-8")
        assert read(path) == [d for d in map(str.strip, text.split(END_OF_TEXT)) if d]


# Cuts and their independence of how much is read at a time.

PIECES = ["a", " ", "\n", "\r\n", "é", "日", "<", "<|endoftext|", END_OF_TEXT, END_OF_TEXT, "bc"]


def random_texts(count):
    """Texts of few and many separators, and of what may be taken for one."""
    rng = random.Random(0)
    for _ in range(count):
        yield "".join(rng.choices(PIECES, k=rng.randrange(30))), rng


def test_the_size_of_a_read_decides_nothing(monkeypatch):
    for text, rng in random_texts(500):
        expected = [d.replace("\r\n", "\n").strip() for d in text.split(END_OF_TEXT)]
        monkeypatch.setattr(sources, "CHUNK", rng.randint(1, 40))
        documents = text_documents(io.BytesIO(text.encode()), "a.txt")
        assert [d.decode() for d in documents] == expected, text


def test_long_documents_are_cut_alike_wherever_a_read_ended(monkeypatch):
    for text, rng in random_texts(500):
        longest, cuts = rng.randint(4, 30), []
        for size in (rng.randint(1, 40), 10_000):
            monkeypatch.setattr(sources, "CHUNK", size)
            cuts.append(list(text_documents(io.BytesIO(text.encode()), "a.txt", longest)))
        assert cuts[0] == cuts[1], text
        assert all(len(d) <= longest for d in cuts[0])
        kept, bare = b"".join(cuts[0]).decode(), text.replace(END_OF_TEXT, "")
        assert "".join(kept.split()) == "".join(bare.split()), "only white space may get lost"


def test_a_long_document_is_cut_at_the_end_of_a_line_or_else_a_word():
    def cut(text, longest):
        return [d.decode() for d in text_documents(io.BytesIO(text.encode()), "a.txt", longest)]

    assert cut("one two\nthree four\n", 16) == ["one two", "three four"]
    assert cut("one two three", 9) == ["one two", "three"]
    assert cut("ééééé", 5) == ["éé", "éé", "é"]


def test_memory_is_bounded_however_large_the_file(tmp_path):
    """200 MB without one separator, and as many with some, in 100 MB."""
    code = (
        "import resource, sys\n"
        "from npgpt.corpus import sources\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "class Sea:\n"
        "    left = 200 << 20\n"
        "    def read(self, size):\n"
        "        size = min(size, self.left)\n"
        "        self.left -= size\n"
        "        return unit * (size // len(unit))\n"
        "for unit in (b'the sea was blue.\\n', b'the sea was blue. ' * 50 + b'<|endoftext|>'):\n"
        "    total = sum(len(d) for d in sources.text_documents(Sea(), 'x', 8 << 20))\n"
        "    assert total > 110 << 20, total\n"
        "print(peak() - before)"
    )
    if sys.platform != "linux":
        pytest.skip("ru_maxrss has other units elsewhere")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


# Where one is.


@pytest.mark.parametrize("packed", PACK)
def test_the_position_reaches_the_size(tmp_path, packed):
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, f"story {END_OF_TEXT} ".encode() * 500, packed)
    source = open_source(tmp_path)
    assert source.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert source.position() == 0
    places = [source.position() for _ in source.documents()]
    assert len(places) == 1000 and places == sorted(places) and places[499] < places[500]
    assert 0 < places[0] < source.size_bytes and source.position() == source.size_bytes
    next(source.documents())
    assert source.position() == places[0], "a new reading begins anew"


def test_start_beyond_the_end_is_the_end(tmp_path):
    path = write(tmp_path / "a.txt", b"one")
    assert read(path, start=1) == read(path, start=99) == []


def test_a_fingerprint_changes_with_the_files(tmp_path):
    one, two = write(tmp_path / "a.txt", b"one"), tmp_path / "other" / "a.txt"
    two.parent.mkdir()
    two.write_bytes(b"one")
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    known = open_source(one).fingerprint()
    assert open_source(one).fingerprint() == known
    assert open_source(two).fingerprint() == known, "a copy is the same, wherever it lies"
    assert open_source(one, "story").fingerprint() != known
    os.utime(two, ns=(0, 0))
    assert open_source(two).fingerprint() != known
    before = one.stat()
    one.write_bytes(b"three")
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_source(one).fingerprint() != known
    made = [GivenSource("x", None, i).fingerprint() for i in ("1", "2")]
    assert len({*made, known}) == 3


# Mistakes.


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "there is no text at "),
        (b"", " is empty"),
        (b" \n\t \r\n", " is empty: give --data a text to learn from"),
        (b"\xef\xbb\xbf\n", " is empty"),
        (b"<|endoftext|>\n<|endoftext|>", " holds nothing but separators"),
        (b"abc\xe9d", "is not UTF-8 text: byte 3 is 0xe9"),
        (b"\xef\xbb\xbfabc\xe9d", "is not UTF-8 text: byte 6 is 0xe9"),
        (b"ab<|endoftext|>c\xe9", "is not UTF-8 text: byte 16 is 0xe9"),
        (b"ab\xe6\x97<|endoftext|>", "is not UTF-8 text: byte 2 is 0xe6"),
        (b"abcd" * 600_000 + b"\xff", "is not UTF-8 text: byte 2,400,000 is 0xff"),
        ("x".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_what_is_no_text(tmp_path, content, sentence):
    path = tmp_path / "a book.txt"
    if content is not None:
        path.write_bytes(content)
    assert sentence in refused(path) and str(path) in refused(path)


@pytest.mark.parametrize(
    "line, sentence",
    [
        (b'{"story": "x", "id": 1}', "has no field 'text'; the fields there are: 'story', 'id'"),
        (b"{}", "has no field 'text'; the fields there are: none"),
        (b"[1, 2]", "is no JSON object with a field 'text', but [1, 2]"),
        (b'{"text": 12}', "holds no text, but 12"),
        (b'{"text": "x"', "is not JSON (Expecting ',' delimiter"),
        (b"[" * 100_000, "is not JSON ("),
        (b'{"text": "\\ud83d"}', "holds half of a character"),
        (b'{"text": "\xe9"}', "is not UTF-8 text: byte 26 is 0xe9"),
    ],
)
def test_lines_that_are_no_json(tmp_path, line, sentence):
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n' + line + b"\n{}")
    assert sentence in refused(path)
    assert "UTF-8" in sentence or f"line 2 of {path}" in refused(path)


def test_one_large_json_is_not_read_as_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 2000}).encode())
    assert "line 1 of" in refused(path) and "longer than 1,000 bytes" in refused(path)


@pytest.mark.parametrize("packed", [".gz", ".xz"])
def test_damaged_packing(tmp_path, packed):
    whole = PACK[packed](os.urandom(100_000).hex().encode())
    path = tmp_path / f"a.txt{packed}"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[:-4], whole[: len(whole) // 2], b"plain text", bytes(flipped)):
        path.write_bytes(damaged)
        assert f"{path} is damaged or cut off" in refused(path)


def test_a_folder_without_texts(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    assert "holds no text file" in refused(tmp_path)


def test_a_folder_of_blank_files(tmp_path):
    write(tmp_path / "a.txt", b"\n")
    write(tmp_path / "b.txt", b"")
    assert f"{tmp_path} is empty" in refused(tmp_path)


def test_what_can_not_be_read_twice_is_refused():
    if os.path.exists("/dev/zero"):
        assert "/dev/zero is no file that can be read twice" in refused("/dev/zero")


def test_a_text_given_in_place_of_its_path():
    sentence = refused("once upon a time " * 100)
    assert "cannot be read: " in sentence or "no text at" in sentence


def test_a_file_that_goes_away_in_between(tmp_path):
    path = write(tmp_path / "a.txt", b"one")
    source = FileSource("mine", {"a.txt": path})
    path.unlink()
    with pytest.raises(UserError, match="there is no text at"):
        list(source.documents())
