"""Tables on a server, read over the network as if they were here."""

import io
import random

import pytest
from file_server import FileServer, cut, no_parts, ranged, serve, status, web_page

from npgpt.corpus import network, remote
from npgpt.corpus.download import RemoteFile
from npgpt.corpus.remote import RangeFile, RemoteParquet
from npgpt.errors import UserError

CONTENT = bytes(i * i % 251 for i in range(100_000))


@pytest.fixture
def server(monkeypatch):
    """A server without files yet; blocks are small, and no pause is really made."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(network, "sleep", lambda seconds: None)
    monkeypatch.setattr(remote, "BLOCK", 1000)
    with FileServer() as server:
        yield server


@pytest.fixture
def file(server):
    """A file of the server, to be read in parts."""
    server.files["/file.bin"] = CONTENT
    return RangeFile(
        RemoteFile("file.bin", server.url("file.bin"), len(CONTENT)), lambda line: None
    )


def settled(file):
    """Wait until nothing is fetched ahead, so that the requests can be counted."""
    if file._ahead is not None:
        file._ahead[1].exception()
    return file


# Ranges.


def test_it_reads_as_a_file_on_disk_does(file):
    here, rng = io.BytesIO(CONTENT), random.Random(0)
    for _ in range(80):
        whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        aim = rng.randrange(len(CONTENT) + 10)
        start = {io.SEEK_SET: 0, io.SEEK_CUR: here.tell(), io.SEEK_END: len(CONTENT)}[whence]
        assert file.seek(aim - start, whence) == here.seek(aim - start, whence)
        size = rng.choice([0, 1, 10, 999, 1000, 2500])
        assert file.read(size) == here.read(size)
        assert file.tell() == here.tell()
    assert file.seek(-7, io.SEEK_END) and file.read() == CONTENT[-7:]


def test_in_a_row_every_byte_is_fetched_once(server, file):
    while file.read(300):
        assert len(file._blocks) <= remote.KEPT_BLOCKS
    settled(file)
    assert sorted(server.asked("Range")) == sorted(
        f"bytes={start}-{start + 999}" for start in range(0, 100_000, 1000)
    )


def test_the_next_block_is_fetched_meanwhile(server, file):
    file.read(1)
    settled(file)
    assert server.asked("Range") == ["bytes=0-999", "bytes=1000-1999"]


def test_what_fails_is_asked_again(server, file):
    server.plan = [cut(10), status(503), serve, cut(0), cut(999), serve]
    assert file.read(5000) == CONTENT[:5000]


@pytest.mark.parametrize(
    "behaviour, sentence",
    [
        (status(404), "answered 404"),
        (no_parts, "does not send parts of files"),
        (web_page, "does not send parts of files"),
        (ranged("bytes 0-999/100001"), "is not the one that it was"),
        (ranged("bytes 1-1000/100000"), "is not the one that it was"),
        (cut(10), "broke off"),
    ],
)
def test_a_server_that_will_not_do_is_a_sentence(server, file, behaviour, sentence):
    server.plan = [behaviour] * 99
    with pytest.raises(UserError) as error:
        file.read(10)
    assert sentence in str(error.value) and server.url("file.bin") in str(error.value)
    again = len(server.asked("Range")) > 1
    assert again == (sentence == "broke off"), "only what may pass is worth another attempt"


# Tables.


@pytest.fixture
def tables(server, monkeypatch):
    """Two tables of the server with 90 texts and some rows without; and the 90."""
    pq = pytest.importorskip("pyarrow.parquet", reason="reading .parquet needs pyarrow")
    import pyarrow as pa

    monkeypatch.setattr(remote, "BLOCK", 10_000)
    rng, texts, files = random.Random(0), [], []
    for name, rows in (("one.parquet", 64), ("two.parquet", 32)):
        column = [f"text {len(texts) + i} " + "é" * rng.randrange(4000) for i in range(rows)]
        column[5], column[6], column[-1] = None, "  ", ""
        texts += [text.strip().encode() for text in column if text and text.strip()]
        stream = io.BytesIO()
        table = pa.table({"id": range(rows), "text": column, "more": ["x" * 100] * rows})
        pq.write_table(table, stream, row_group_size=8, use_dictionary=False, compression="none")
        server.files[f"/{name}"] = stream.getvalue()
        files.append(RemoteFile(name, server.url(name), len(stream.getvalue())))
    assert len(texts) == 90
    return files, texts


def table_source(tables, folder, **limits):
    return RemoteParquet("tables", tables[0], folder, log=lambda line: None, **limits)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13, 60, 61, 62, 89, 90, 99])
def test_any_document_can_be_the_first(tables, tmp_path, start):
    for _ in range(2):  # without counts of the groups, and with
        assert list(table_source(tables, tmp_path).documents(start)) == tables[1][start:]


def test_first_and_stop_divide_the_documents(tables, tmp_path):
    valid, train = table_source(tables, tmp_path, stop=10), table_source(tables, tmp_path, first=10)
    assert list(valid.documents()) == tables[1][:10]
    assert list(valid.documents(8)) == tables[1][8:10]
    assert list(valid.documents(12)) == []
    assert list(train.documents()) == tables[1][10:]
    assert list(train.documents(70)) == tables[1][80:]
    assert list(table_source(tables, tmp_path, first=4, stop=9).documents(2)) == tables[1][6:9]
    assert valid.fingerprint() != train.fingerprint()
    assert train.fingerprint() == table_source(tables, tmp_path / "x", first=10).fingerprint()


def test_the_position_reaches_the_size(tables, tmp_path):
    source = table_source(tables, tmp_path)
    places = [source.position() for _ in source.documents()]
    assert places[0] > 0 and source.position() == source.size_bytes
    assert source.size_bytes == sum(file.size for file in tables[0])
    assert table_source(tables, tmp_path, stop=5).size_bytes is None


def test_after_a_crash_what_lies_before_is_not_fetched_again(server, tables, tmp_path):
    """Only the file's outline is, at its end, and the group in which it was: it begins with 38."""
    reading = table_source(tables, tmp_path).documents()
    for _ in range(45):
        next(reading)
    del reading  # as if the process had ended here
    server.requests.clear()
    assert next(table_source(tables, tmp_path).documents(45)) == tables[1][45]
    starts = sorted(int(asked[6:].partition("-")[0]) for asked in server.asked("Range"))
    assert starts[0] >= counted_bytes(tables, 38) // 10_000 * 10_000 > 100_000


def counted_bytes(tables, documents):
    """How many bytes of the first table lie before a document, at least: those of the texts."""
    return sum(map(len, tables[1][:documents]))


def test_whole_files_before_are_not_even_asked_for(server, tables, tmp_path):
    list(table_source(tables, tmp_path).documents())
    server.requests.clear()
    assert list(table_source(tables, tmp_path).documents(61)) == tables[1][61:]
    assert {request.path for request in server.requests} == {"/two.parquet"}


@pytest.mark.parametrize(
    "note",
    [b"", b"[]", b"{}", b"\xff"]
    + [
        b'{"url": "another", "counts": %s}' % rest
        for rest in (b'[90], "total": 90', b'[1], "total": 3')
    ],
)
def test_damaged_counts_cost_time_only(tables, tmp_path, note):
    (tmp_path / "one.parquet.json").write_bytes(note)
    assert list(table_source(tables, tmp_path).documents(20)) == tables[1][20:]


def test_a_lost_connection_does_not_lose_a_row(server, tables, tmp_path):
    server.plan = [serve, cut(7), serve, status(500), cut(500)] * 4
    assert list(table_source(tables, tmp_path).documents()) == tables[1]


def test_a_lost_server_is_a_sentence(server, tables, tmp_path):
    reading = table_source(tables, tmp_path).documents()
    for _ in range(20):
        next(reading)
    server.plan = [status(404)] * 999
    with pytest.raises(UserError, match="answered 404"):
        list(reading)


def test_ctrl_c_comes_through(tables, tmp_path, monkeypatch):
    """The library between the rows and the network is not written in Python."""

    def interrupt(self, number):
        raise KeyboardInterrupt

    reading = table_source(tables, tmp_path).documents()
    next(reading)
    monkeypatch.setattr(RangeFile, "_block", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(reading)
