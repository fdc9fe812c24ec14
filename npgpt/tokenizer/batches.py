"""Texts of any number and any size, dealt out in batches of a few megabytes.

A compiled kernel wants neither a million texts of a kilobyte, as each call has its price, nor one
of ten gigabytes, which would not fit into memory. So short texts are joined, and long ones cut.

Where may a text be cut, and its words stay the same? Before a blank or a new line that follows
something else. Every word of GPT-2's pattern ends there, whatever stands to its left; and a
word begins there, whatever comes to its right. After the blank would be wrong, as " two" would
lose it; and so would be within a gap, of which the last blank goes with the next word:

    one| two,| three|   four|\\n\\n    the marks are where this text may be cut

(scan.safe_cut knows more such places, but only in text that is known to be UTF-8, and here
nobody has looked yet.) A special token may itself contain such a place, and is never cut.
"""

from pathlib import Path
from typing import NamedTuple

import regex

from ..errors import UserError
from .base import check_text

BATCH = 4 << 20  # bytes: some ten milliseconds of work for one thread
SPARE = bytes(16)  # behind a batch, so that kernels may read beyond a word's end
# The last place to cut, as (?r) searches from the right: a blank that follows a visible
# character of ASCII, or the last byte of any other character that is not white space.
LAST_CUT = regex.compile(
    rb"(?r)(?<=[!-~\x80-\xBF])(?<!\xC2[\x85\xA0]|\xE1\x9A\x80|\xE2\x80[\x80-\x8A\xA8\xA9\xAF]"
    rb"|\xE2\x81\x9F|\xE3\x80\x80)[ \n]"
)


class Batch(NamedTuple):
    """Texts in a row, or pieces of texts that words do not reach across."""

    joined: bytes  # the texts, and then SPARE
    ends: list  # where in joined each text ends
    origins: list  # of each text: its number or its Path, and which byte of that it begins with


def batches(texts, special_tokens=()):
    """Join short texts, and cut long ones.

    Args:    texts, an iterable whose items are each a str, bytes, or the pathlib.Path of a file;
             special_tokens, an iterable of str, of which none is cut.
    Returns: an iterator of Batch. None is much longer than 2 * BATCH, unless there is a stretch
             without a blank that is.
    Raises:  UserError for a file that cannot be read, or a str that UTF-8 cannot write;
             TypeError for anything else.
    """
    if isinstance(texts, str | bytes | Path):
        raise TypeError("texts is one text, where an iterable of them is meant: pass [text]")
    names = [name.encode("utf-8") for name in special_tokens]
    joined, ends, origins, size = [], [], [], 0
    for number, text in enumerate(texts):
        start = 0
        for piece in pieces(text, names):
            joined.append(piece)
            size += len(piece)
            ends.append(size)
            origins.append((text if isinstance(text, Path) else number, start))
            start += len(piece)
            if size >= BATCH:
                yield Batch(b"".join([*joined, SPARE]), ends, origins)
                joined, ends, origins, size = [], [], [], 0
    if joined:
        yield Batch(b"".join([*joined, SPARE]), ends, origins)


def pieces(text, names):
    """A text as bytes: whole, or if it is long in pieces of about BATCH bytes."""
    if isinstance(text, Path):
        return cut(file_chunks(text), names)
    if isinstance(text, str):
        try:
            text = text.encode("utf-8")
        except UnicodeEncodeError:
            check_text(text)  # says it to the user
    elif not isinstance(text, bytes):
        raise TypeError(f"a text must be str, bytes or a Path, not {type(text).__name__}")
    if len(text) <= BATCH:
        return (text,)
    return cut((text[i : i + BATCH] for i in range(0, len(text), BATCH)), names)


def file_chunks(path):
    """The bytes of a file, BATCH at a time."""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(BATCH):
                yield chunk
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def cut(chunks, names):
    """Cut a text where its words stay the same.

    Args:    chunks, an iterable of bytes: the text, cut anywhere; names, the special tokens as
             bytes.
    Returns: an iterator of bytes or memoryview: the same text in other pieces. Where there is no
             place to cut, a piece grows over several chunks.
    """
    held, size, wanted = [], 0, 0
    margin = max(map(len, names), default=0)  # so that a special token across the cut is seen
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= wanted:
            text = b"".join(held)
            place = last_cut(text, size - margin, names)
            if place:
                yield memoryview(text)[:place]
            held, size = [text[place:]], size - place
            wanted = 2 * size  # where there is no place to cut, look again in twice as much
    if size:
        yield b"".join(held)


def last_cut(text, stop, names):
    """The last place before stop to cut at, or 0 if there is none."""
    while found := LAST_CUT.search(text, 0, max(0, stop)):
        stop = found.start()
        around = [text[max(0, stop - len(name) + 1) : stop + len(name) - 1] for name in names]
        if not any(name in near for name, near in zip(names, around)):
            return stop
    return 0
