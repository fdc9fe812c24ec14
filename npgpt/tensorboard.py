"""TensorBoard's event files, written without TensorBoard: `tensorboard --logdir runs` shows them.

An event file is a row of records, each with its length and two checksums, so that a torn end is
noticed. A record is an Event in protobuf's notation: fields, each a number (its place in the
definition and its type) and then the value.

    Event     1 wall_time (double)   2 step (int64)   3 file_version (text)   5 Summary
    Summary   1 Value, again and again
    Value     1 tag (text)           2 simple_value (float)

The checksum is CRC-32C, Castagnoli's polynomial, masked as TensorFlow does it: turned by 15 bits
and moved by a constant, lest a record that holds records look like one.

Source: the files event.proto and summary.proto and lib/io/record_writer.cc of TensorFlow.
"""

import os
import socket
import struct
import time
from functools import cache
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # CRC-32C, its bits reversed
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's types of a value


class EventFile:
    """An event file that grows as a run does.

    Args:    folder; the events of an earlier attempt there are removed: the log has them still,
             and whoever opens the file writes them again.
    """

    def __init__(self, folder):
        for path in Path(folder).glob("events.out.tfevents.*.npgpt"):
            path.unlink()
        host = socket.gethostname() or "here"
        name = f"events.out.tfevents.{int(time.time())}.{host}.{os.getpid()}.npgpt"
        self.file = open(Path(folder) / name, "wb")
        self._write(_field(1, FIXED64, time.time()) + _field(3, BYTES, b"brain.Event:2"))

    def add(self, step, figures):
        """Append the numbers of one step.

        Args:    step; figures, a dict from tag to a finite number.
        """
        values = b"".join(
            _field(1, BYTES, _field(1, BYTES, tag.encode()) + _field(2, FIXED32, float(number)))
            for tag, number in figures.items()
        )
        event = _field(1, FIXED64, time.time()) + _field(2, VARINT, step)
        self._write(event + _field(5, BYTES, values))

    def close(self):
        self.file.close()

    def _write(self, event):
        length = struct.pack("<Q", len(event))
        self.file.write(length + _checksum(length) + event + _checksum(event))
        self.file.flush()


def _field(number, kind, value):
    """One field of a protobuf message."""
    head = bytes([number << 3 | kind])
    if kind == VARINT:
        return head + _varint(value)
    if kind == BYTES:
        return head + _varint(len(value)) + value
    return head + struct.pack("<d" if kind == FIXED64 else "<f", value)


def _varint(n):
    """A whole number of at least 0, seven bits a byte, the lowest first."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _checksum(data):
    """The masked CRC-32C of some bytes, as four bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _table()[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table():
    """The CRC of each byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table
