"""Downloads, from a server on this machine that does all that servers do."""

import email.utils
import errno
import hashlib
import io
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import namedtuple
from pathlib import Path

import pytest
from file_server import (
    FileServer,
    announce,
    chunked,
    cut,
    cut_always,
    no_parts,
    noise,
    ranged,
    redirect,
    serve,
    silent,
    status,
    stitch,
    web_page,
)

from npgpt.corpus import download, network
from npgpt.corpus.download import RemoteFile, fetch, file_sha256, verify
from npgpt.errors import UserError
from npgpt.locks import claimed, locked

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(i * i % 251 for i in range(300_000))
OTHER = bytes(i * i % 241 for i in range(300_000))


@pytest.fixture
def server(monkeypatch):
    """A server that has one file, file.bin; no pause is really made."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(network, "sleep", lambda seconds: pauses.append(seconds))
    pauses = []
    with FileServer(**{"file.bin": CONTENT}) as server:
        server.pauses = pauses
        yield server


def remote(server, content=CONTENT, **known):
    """The file as a recipe knows it: its size and checksum, unless they are given as others."""
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **known}
    return RemoteFile("file.bin", server.url("file.bin"), **known)


UNKNOWN = {"size": None, "sha256": None}


def files(folder):
    """The names in a folder, but for the lock's."""
    return sorted(set(os.listdir(folder)) - {".lock"})


def refused(file, folder):
    """The sentence with which a download ends, of one line."""
    with pytest.raises(UserError) as error:
        fetch(file, folder, log=lambda line: None)
    assert "\n" not in str(error.value)
    return str(error.value)


# What should happen.


@pytest.mark.parametrize("known", [{}, UNKNOWN, {"sha256": None}])
def test_a_file_comes_whole_and_once(server, tmp_path, known):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert fetch(remote(server, **known), folder, print) == folder / "file.bin"
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert len(server.requests) == 1 and server.asked("Range") == [None]
    assert server.asked("Accept-Encoding") == ["identity"], "packed, it would have another checksum"
    assert files(folder) == ["file.bin"]


def test_a_file_is_on_the_disk_before_it_has_its_name(server, tmp_path, named_when_safe):
    fetch(remote(server), tmp_path, print)
    assert named_when_safe[-1] == "file.bin"


@pytest.mark.parametrize("known", [{}, UNKNOWN])
def test_a_cut_connection_goes_on_where_it_was(server, tmp_path, known):
    server.plan = [cut(100_000), cut(50_000), cut(0)]
    lines = []
    fetch(remote(server, **known), tmp_path, lines.append)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    version = '"one"' if known else None  # with a checksum nobody asks for it
    assert server.asked("If-Range") == [None, version, version, version]
    assert server.pauses == [1, 1, 2], "attempts are counted anew when something has come"
    assert "broke off after 100 kB; trying again in 1 s" in lines[1]
    assert files(tmp_path) == ["file.bin"]


def test_ctrl_c_keeps_what_has_come(server, tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    lines = []
    server.plan = [cut(70_000)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(network, "sleep", interrupt)
        fetch(remote(server, **UNKNOWN), tmp_path, lines.append)
    assert "file.bin.part is kept" in lines[-1]
    assert files(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    fetch(remote(server, **UNKNOWN), tmp_path, lines.append)
    assert lines[-1].endswith(", of which 70 kB are there")
    assert server.asked("Range")[1] == "bytes=70000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_crash_before_the_last_step_costs_nothing(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(remote(server), tmp_path, print)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.requests == []


def test_redirects_keep_the_part_that_is_asked_for(server, tmp_path):
    server.files["/elsewhere"] = CONTENT
    server.plan = [cut(9), redirect("/elsewhere"), serve]
    fetch(remote(server), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.requests[2].path == "/elsewhere"
    assert server.asked("Range") == [None, "bytes=9-", "bytes=9-"]


def test_a_bar_is_shown_to_who_watches(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    fetch(remote(server), tmp_path, print)
    assert "file.bin" in shown.getvalue() and "300k" in shown.getvalue()


def test_a_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which remembers the environment
    file = RemoteFile("file.bin", "http://far.example/file.bin", len(CONTENT))
    fetch(file, tmp_path, print)
    assert server.requests[0].path == "http://far.example/file.bin"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


# Two files in one must not be.


def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path):
    file = remote(server, **UNKNOWN)
    server.plan = [cut(100_000), status(404)]
    assert "404" in refused(file, tmp_path)
    server.files["/file.bin"], server.tag = OTHER, '"two"'
    fetch(file, tmp_path, print)
    assert server.asked("If-Range")[-1] == '"one"'
    assert (tmp_path / "file.bin").read_bytes() == OTHER


def test_pieces_that_do_not_fit_are_fetched_anew(server, tmp_path):
    lines = []
    (tmp_path / "file.bin.part").write_bytes(OTHER[:1000])
    server.plan = [stitch]
    fetch(remote(server), tmp_path, lines.append)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked("Range") == ["bytes=1000-", None]
    assert "do not fit together" in lines[-2]


def test_a_part_as_long_as_the_file_is_not_taken_for_it(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(OTHER)
    fetch(remote(server), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked("Range") == [None]


def test_anew_is_once(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    file = remote(server, sha256=hashlib.sha256(OTHER).hexdigest())
    assert "is not the file that it was" in refused(file, tmp_path)
    assert server.asked("Range") == ["bytes=1000-", None] and files(tmp_path) == []


def test_a_file_that_changes_while_it_comes_is_fetched_anew(server, tmp_path):
    def change(handler, server):
        server.files["/file.bin"] = CONTENT
        stitch(handler, server)

    server.files["/file.bin"] = OTHER
    server.plan = [cut(100_000), change]
    fetch(remote(server), tmp_path, lambda line: None)
    assert server.asked("Range") == [None, "bytes=100000-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_nothing_is_pieced_together(server, tmp_path, tag):
    server.tag = tag
    server.plan = [cut(100_000)]
    fetch(remote(server, **UNKNOWN), tmp_path, lambda line: None)
    assert server.asked("Range") == [None, None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("note", [None, '{"url": "elsewhere", "version": "x"}'])
def test_a_checksum_stands_in_for_the_version(server, tmp_path, note):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:100_000])
    if note is not None:
        (tmp_path / "file.bin.part.json").write_text(note)
    fetch(remote(server), tmp_path, print)
    assert server.asked("Range") == ["bytes=100000-"]
    assert server.asked("If-Range") == [None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_part_of_another_address_is_not_used(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(OTHER[:1000])
    note = {"url": "http://elsewhere/file.bin", "version": '"one"'}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(note))
    fetch(remote(server, **UNKNOWN), tmp_path, print)
    assert server.asked("Range") == [None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b"\xff", b'{"url": 1}'])
def test_a_damaged_note_costs_the_part_only(server, tmp_path, note):
    (tmp_path / "file.bin.part").write_bytes(OTHER[:1000])
    (tmp_path / "file.bin.part.json").write_bytes(note)
    fetch(remote(server, **UNKNOWN), tmp_path, print)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_knows_no_parts_begins_anew(server, tmp_path):
    server.plan = [cut(100_000), no_parts]
    fetch(remote(server), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_not_believed(server, tmp_path):
    server.plan = [cut(100_000), ranged("bytes 5-299999/300000")]
    fetch(remote(server), tmp_path, lambda line: None)
    assert server.asked("Range") == [None, "bytes=100000-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_left(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"x")
    fetch(remote(server), tmp_path, print)
    assert server.asked("Range") == [None]
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"x")  # its size is not known: 416
    fetch(remote(server, size=None), tmp_path, lambda line: None)
    assert server.asked("Range")[1:] == ["bytes=300001-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


# A file cut short, or too long, must not be.


@pytest.mark.parametrize("length", [200_000, 400_000])
def test_a_length_that_is_not_the_recipes(server, tmp_path, length):
    server.plan = [announce(length)]
    assert f"{length:,} bytes there, not 300,000" in refused(remote(server), tmp_path)
    assert len(server.requests) == 1 and files(tmp_path) == []


def test_the_last_byte_is_waited_for(server, tmp_path):
    server.plan = [cut(len(CONTENT) - 1)]
    fetch(remote(server, **UNKNOWN), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_fewer_bytes_than_announced(server, tmp_path):
    server.plan = [announce(400_000)] * 99
    assert "broke off" in refused(remote(server, **UNKNOWN), tmp_path)
    assert len(server.requests) < 12 and not (tmp_path / "file.bin").exists()


def test_more_bytes_than_the_file_has(server, tmp_path):
    server.plan = [chunked(CONTENT, OTHER)]
    assert "more than 300,000 bytes came" in refused(remote(server), tmp_path)
    fetch(remote(server), tmp_path, print)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_body_whose_end_never_came(server, tmp_path):
    server.plan = [chunked(CONTENT[:1000], ended=False), chunked(CONTENT)]
    fetch(remote(server, **UNKNOWN), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    file = remote(server, sha256=hashlib.sha256(OTHER).hexdigest())
    sentence = refused(file, tmp_path)
    assert "is not the file that it was" in sentence and file.url in sentence
    assert len(server.requests) == 1 and files(tmp_path) == []


def test_a_file_of_another_size_is_not_taken_for_it(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert "has 299,999 bytes, not 300,000" in refused(remote(server), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:-1], "what is there is not ours"


def test_verify(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    verify(path, remote(server))
    verify(path, remote(server, **UNKNOWN))
    assert file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match="does not have the checksum"):
        verify(path, remote(server))


# Servers that say no.


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_server_that_says_no_is_asked_once(server, tmp_path, code):
    server.plan = [status(code)] * 9
    sentence = refused(remote(server), tmp_path)
    assert f"answered {code} " in sentence
    assert server.url("file.bin") in sentence and str(tmp_path / "file.bin") in sentence
    assert len(server.requests) == 1 and server.pauses == []


def test_an_answer_that_is_no_file(server, tmp_path):
    server.plan = [status(204)]
    assert "answered 204 No Content" in refused(remote(server), tmp_path)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_server_out_of_breath_is_asked_again(server, tmp_path, code):
    server.plan = [status(code)] * 2
    fetch(remote(server), tmp_path, lambda line: None)
    assert server.pauses == [1, 2]


def test_it_is_not_asked_for_ever(server, tmp_path):
    server.plan = [status(503)] * 99
    assert "answered 503" in refused(remote(server), tmp_path)
    assert server.pauses == list(network.PAUSES)


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.plan = [cut_always(0.5)] * 99
    assert "broke off" in refused(remote(server), tmp_path)
    assert len(server.requests) <= 2 * (len(network.PAUSES) + 1)


def test_the_pause_that_a_server_asks_for_is_made(server, tmp_path):
    later = email.utils.format_datetime(
        email.utils.parsedate_to_datetime(email.utils.formatdate(time.time() + 50, usegmt=True))
    )
    server.plan = [
        status(503, Retry_After="7"), status(429, Retry_After=later),
        status(503, Retry_After="soon"), status(503, Retry_After="-3"),
    ]  # fmt: skip
    fetch(remote(server), tmp_path, lambda line: None)
    assert server.pauses[0] == 7 and 45 < server.pauses[1] <= 51
    assert server.pauses[2:] == [4, 8]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server, tmp_path):
    server.plan = [status(429, Retry_After="3600")]
    assert "asks for a pause of 3600 s" in refused(remote(server), tmp_path)
    assert server.pauses == []


def test_a_web_page_is_no_file(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.plan = [web_page]
    assert "web page in place of the file" in refused(remote(server), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:1000], "the part is still good"
    server.plan = [web_page]
    assert "web page" in refused(remote(server, **UNKNOWN), tmp_path)


def test_redirects_that_go_round_in_circles(server, tmp_path):
    server.plan = [redirect("/file.bin")] * 99
    assert "answered 302" in refused(remote(server), tmp_path)


@pytest.mark.parametrize("text", ["", "bytes", "bytes a-b/c", "bytes */300000"])
def test_a_part_that_is_not_named(server, tmp_path, text):
    server.plan = [cut(9), ranged(text)]
    assert "does not say which part" in refused(remote(server), tmp_path)


# Networks that are not there.


def test_a_silent_server_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    server.plan = [silent, cut(1000), noise]
    lines = []
    fetch(remote(server), tmp_path, lines.append)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "silent for" in lines[1]


def test_offline_is_one_sentence_that_says_what_to_do(server, tmp_path):
    with FileServer() as gone:
        pass
    file = RemoteFile("file.bin", gone.url("file.bin"))
    sentence = refused(file, tmp_path)
    assert "no connection: Connection refused" in sentence
    assert f"download it by hand and put it at {tmp_path / 'file.bin'}" in sentence
    assert server.pauses == [1, 2], "who is offline should not have to wait long"
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(file, tmp_path, print) == tmp_path / "file.bin"


def test_a_server_that_cannot_prove_who_it_is_is_asked_once(server, tmp_path, monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "self-signed certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert "no connection: self-signed certificate" in refused(remote(server), tmp_path)
    assert server.pauses == []


def test_a_connection_that_comes_back(server, tmp_path, monkeypatch):
    """A computer that goes to sleep in mid-download has a minute to find its network again."""
    ask = download.open_url
    asked = []

    def sometimes(url, headers):
        asked.append(url)
        if 1 < len(asked) < 6:
            raise network.Failure("no connection", reached=False)
        return ask(url, headers)

    monkeypatch.setattr(download, "open_url", sometimes)
    server.plan = [cut(100_000)]
    fetch(remote(server), tmp_path, lambda line: None)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


# Disks.


def test_too_small_a_disk_is_found_out_first(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:100_000])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage(199_999))
    sentence = refused(remote(server), tmp_path)
    assert "needs 200 kB more, and 200 kB are free" in sentence and "NPGPT_DATA" in sentence
    assert server.requests == []
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage(200_000))
    fetch(remote(server), tmp_path, print)
    (tmp_path / "file.bin").unlink()
    assert "needs 300 kB more" in refused(remote(server, **UNKNOWN), tmp_path)


def test_a_full_disk_keeps_what_has_come(server, tmp_path, monkeypatch):
    class Full(io.BufferedWriter):
        def write(self, chunk):
            if self.tell() > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(chunk)

    def opened(path, mode):
        return Full(io.FileIO(path, mode)) if mode == "ab" else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", opened, raising=False)
        sentence = refused(remote(server), tmp_path)
    assert "No space left on device" in sentence and "command then goes on with it" in sentence
    kept = (tmp_path / "file.bin.part").read_bytes()
    assert len(kept) > 100_000 and CONTENT.startswith(kept)
    fetch(remote(server), tmp_path, print)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_folder_that_can_not_be_made(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    sentence = refused(remote(server), tmp_path / "file")
    assert "can't write" in sentence and "choose another folder" in sentence


# Two at once.


def test_two_at_once_fetch_it_once(server, tmp_path):
    lines, started = [], threading.Barrier(3)

    def work():
        started.wait()
        fetch(remote(server), tmp_path, lines.append)

    server.plan = [lambda handler, server: (time.sleep(0.3), serve(handler, server))]
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert sum("another process" in line for line in lines) == 2


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from npgpt.locks import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, tmp_path / ".lock"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"held"
        waits = []

        def on_wait():
            waits.append(True)
            process.kill()

        with locked(tmp_path / ".lock", on_wait):
            assert waits == [True]


def test_a_folder_that_can_not_be_written_is_nobodys(tmp_path):
    path = tmp_path / "not" / "there" / ".lock"
    with locked(path):
        pass
    claimed(path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_knows_no_locks_is_no_obstacle(server, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unknown(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    fetch(remote(server), tmp_path, print)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
