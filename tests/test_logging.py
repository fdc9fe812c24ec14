"""A run's figures for other programs: TensorBoard's event files, and CSV."""

import csv
import io
import math
import os
import struct
import sys
import time

import pytest

from npgpt import runlog
from npgpt.runlog import RunLog, write_csv
from npgpt.tensorboard import EventFile, _checksum


def records_of(path):
    """The events of a file, taken apart with nothing of npgpt but the checksum."""
    raw, at, events = path.read_bytes(), 0, []
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        assert raw[at + 8 : at + 12] == _checksum(raw[at : at + 8])
        event = raw[at + 12 : at + 12 + length]
        assert raw[at + 12 + length : at + 16 + length] == _checksum(event)
        events.append(fields(event))
        at += 16 + length
    return events


def fields(message):
    """A protobuf message as a list of (number, value)."""
    found, at = [], 0

    def varint():
        nonlocal at
        n = shift = 0
        while True:
            byte = message[at]
            at += 1
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return n

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value, at = message[at : at + size], at + size
        if kind in (1, 5):
            (value,) = struct.unpack("<d" if kind == 1 else "<f", value)
        found.append((key >> 3, value))
    return found


def scalars(path):
    """(step, tag, value) of all events but the first, which names the version."""
    first, *events = records_of(path)
    assert dict(first)[3] == b"brain.Event:2"
    found = []
    for event in map(dict, events):
        for _, value in fields(event[5]):
            tag, number = dict(fields(value))[1], dict(fields(value))[2]
            found.append((event[2], tag.decode(), number))
    return found


def test_the_checksum_is_crc32c():
    """The check value of the catalogues for "123456789" is E3069283; then masked."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == struct.pack("<I", masked)


def test_an_event_file_holds_what_it_was_told(tmp_path):
    events = EventFile(tmp_path)
    events.add(1, {"loss": 2.5, "lr": 0.25})
    events.add(128, {"loss": -1.5})
    events.add(300, {"loss": -2.5})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    told = [(1, "loss", 2.5), (1, "lr", 0.25), (128, "loss", -1.5), (300, "loss", -2.5)]
    assert scalars(path) == told, "at once, as a run may be killed"
    assert all(abs(dict(event)[1] - time.time()) < 60 for event in records_of(path))
    events.close()
    assert scalars(path) == told


def test_a_log_tells_tensorboard_once_and_again_after_a_crash(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0, 10, tensorboard=True)
    for step in range(1, 5):
        log.record(step=step, loss=step / 2, norm=float("nan"), title="no number")
    log.close()
    monkeypatch.setattr(os, "getpid", lambda: 0)  # another process, and so another file
    log = RunLog(tmp_path, 2, 10, tensorboard=True)  # steps 3 and 4 were not saved
    log.record(step=3, loss=8.0)
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert scalars(path) == [(1, "loss", 0.5), (2, "loss", 1.0), (3, "loss", 8.0)]


def test_without_asking_there_is_no_event_file(tmp_path):
    log = RunLog(tmp_path, 0, 10)
    log.record(step=1, loss=1.0)
    log.close()
    assert not list(tmp_path.glob("events*"))


def test_tensorboard_reads_it(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = EventFile(tmp_path)
    for step in range(300):
        events.add(step, {"loss": step / 4})
    events.close()
    read = accumulator.EventAccumulator(str(tmp_path), {"scalars": 0})
    read.Reload()
    assert [(s.step, s.value) for s in read.Scalars("loss")] == [(i, i / 4) for i in range(300)]


def test_what_is_logged_can_be_read_at_once(tmp_path, monkeypatch):
    """By whoever watches the file or the pipe, and after a kill."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
    log = RunLog(tmp_path, 0, 10)
    log.record(step=1, loss=2.5, norm=-math.inf)
    log.say("a line")
    assert log.path.read_text() == '{"step": 1, "loss": 2.5, "norm": null}\n'
    assert out.getvalue().split() == [b"a", b"line"]
    log.close()


def test_the_bar_goes_on_where_the_run_does(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    log = RunLog(tmp_path, 7, 10)
    log.advance()
    assert (log.bar.n, log.bar.total) == (8, 10)
    log.close()


def test_csv_has_a_row_a_step():
    file = io.StringIO()
    records = [
        {"step": 0, "valid_loss": 6.5, "title": "a run"},
        {"step": 1, "loss": 6.0, "lr": None},
        {"step": 2, "loss": 5.5},
        {"step": 2, "valid_loss": 5.25},
    ]
    write_csv(records, file)
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [
        ["step", "valid_loss", "loss", "lr"],
        ["0", "6.5", "", ""],
        ["1", "", "6.0", ""],
        ["2", "5.25", "5.5", ""],
    ]


def test_the_program_prints_a_runs_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runlog, "find_run", lambda name: tmp_path / name)
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert runlog.main(["it"]) == 0
    assert capsys.readouterr().out == "step,loss\n1,2.0\n"
    assert runlog.main(["a", "b"]) == 2
