"""GPT-2's pattern as a scanner: where words end, 64 bytes at a time.

bpe.py cuts words with a regular expression,

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

and the library that runs it tries, at every character, one alternative after the other: 16 MB
a second. But the pattern says little. A word is a contraction; or a run of characters of one
class (letters, numbers, others), with the space before it; or a run of white space, which leaves
its last character to what follows. So only a few bytes on either side decide whether a word
begins at a place, and all places can be asked at once. This file does both:

    word_end     one word, read byte by byte: the pattern, alternative by alternative. It is the
                 easy one to read, and does what the other leaves over.
    word_ends    many words: 64 bytes become a mask for each class (see backend/cpu/bits.py), a
                 dozen operations on masks find every place where a word begins, and the set
                 bits are the answer: 2 GB a second.

Both walk over UTF-8 bytes, not characters. A character's bytes all get its class, so a run of
letters in any script is a run of bytes; only white space of several bytes needs a little care.

For whoever builds on this file
    Text is UTF-8 in a uint8 array from as_bytes, read-only (so that kernels are compiled for one
    type). It must be valid: check bytes of unknown origin with invalid_utf8.

    word_ends(data, start, stop, classes, ends) -> count
        takes data[start:stop] for a whole text, and writes where its words end, in order, into
        ends (int64, at least 64 places; 1,000 is good). It stops when ends is nearly full. Go
        on at ends[count - 1]: a word end is always a good place to begin again. When that is
        stop, all is done. classes is class_table().

    A text can be cut without harm where a word is sure to end, whatever stands before: after a
    letter or a number that a character of another class follows, and before white space.
    safe_cut and cut_points find such places. Special tokens are no words: cut at them first.
"""

import numpy as np

from ..backend.cpu.bits import (
    WINDOW,
    bit_count,
    byte_mask,
    highest_bit,
    lowest_bit,
    pointer,
)
from ..backend.cpu.compile import kernel
from .unicode_classes import LETTER, NUMBER, OTHER, SPACE, class_table

NONE, ONE, TWO, THREE = (np.uint64(i) for i in range(4))  # Numba: uint64 with int is a float
TAB, RETURN, BLANK, APOSTROPHE = b"\t\r '"
# Whether a word begins at byte j depends on bytes up to j + 3, and byte 0 is known to begin one.
DECIDED = np.uint64((1 << (WINDOW - 3)) - 2)
USUAL_WORDS = 16  # of 64 bytes: so many are written without asking whether they are there
BUFFER = 1024 + WINDOW


@kernel
def character(text, i, classes):
    """The class of the character that begins at text[i], and how many bytes it has."""
    c = text[i]
    if c < 0x80:
        return classes[c], 1
    if c < 0xE0:
        return classes[(c & 0x1F) << 6 | text[i + 1] & 0x3F], 2
    if c < 0xF0:
        return classes[(c & 0x0F) << 12 | (text[i + 1] & 0x3F) << 6 | text[i + 2] & 0x3F], 3
    high = (c & 0x07) << 18 | (text[i + 1] & 0x3F) << 12
    return classes[high | (text[i + 2] & 0x3F) << 6 | text[i + 3] & 0x3F], 4


@kernel
def contraction(text, start, stop):
    """The length of the 's, 't, 'm, 'd, 're, 've or 'll at start, or 0."""
    if text[start] != APOSTROPHE or start + 2 > stop:
        return 0
    second = text[start + 1]
    if second == ord("s") or second == ord("t") or second == ord("m") or second == ord("d"):
        return 2
    if start + 3 > stop:
        return 0
    third = text[start + 2]
    if second == ord("l"):
        return 3 if third == ord("l") else 0
    return 3 if (second == ord("r") or second == ord("v")) and third == ord("e") else 0


@kernel
def word_end(text, start, stop, classes):
    """Where the word that begins at start ends: one match of bpe.PATTERN."""
    length = contraction(text, start, stop)
    if length > 0:
        return start + length
    #  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
    i = start + 1 if text[start] == BLANK and start + 1 < stop else start
    kind, width = character(text, i, classes)
    if kind != SPACE:
        while i + width < stop:
            i += width
            next_kind, width = character(text, i, classes)
            if next_kind != kind:
                return i
        return stop
    # \s+(?!\S)|\s+
    last, i = start, start
    while i < stop:
        kind, width = character(text, i, classes)
        if kind != SPACE:
            return last if last > start else i
        last = i
        i += width
    return stop


@kernel
def word_starts(text, i, classes):
    """The places within 64 bytes where words begin, but for byte 0, which must begin one.

    Args:    text, classes, pointers; i, where the 64 bytes begin.
    Returns: a mask of those that are certain.
    """
    letters = byte_mask(text, i, ord("a"), ord("z")) | byte_mask(text, i, ord("A"), ord("Z"))
    numbers = byte_mask(text, i, ord("0"), ord("9"))
    blanks = byte_mask(text, i, BLANK, BLANK)
    spaces = byte_mask(text, i, TAB, RETURN) | blanks
    inner = NONE  # bytes of white space that another one of the same character precedes
    foreign = byte_mask(text, i, 0xC0, 0xFF)  # where characters of several bytes begin
    while foreign != NONE:
        j = lowest_bit(foreign)
        foreign &= foreign - ONE
        kind, width = character(text, i + j, classes)
        its_bytes = ((ONE << np.uint64(width)) - ONE) << np.uint64(j)
        if kind == LETTER:
            letters |= its_bytes
        elif kind == NUMBER:
            numbers |= its_bytes
        elif kind == SPACE:
            spaces |= its_bytes
            inner |= its_bytes & (its_bytes - ONE)

    # A run begins where the class changes, unless a blank before has begun the word already.
    solid = ~spaces
    others = ~(spaces | letters | numbers)
    goes_on = letters & letters << ONE | numbers & numbers << ONE | others & others << ONE
    runs = solid & ~goes_on & ~(blanks << ONE)

    # White space begins a word after solid ground, and its last character does before it.
    last = spaces & solid >> ONE
    last = last & ~inner | (last & inner) >> ONE  # from the last byte of a character to the first
    last = last & ~inner | (last & inner) >> ONE  # (white space has at most three)
    starts = runs | spaces & solid << ONE | last

    marks = byte_mask(text, i, APOSTROPHE, APOSTROPHE) & (starts | ONE)
    if marks != NONE:
        stmd = byte_mask(text, i, ord("s"), ord("t")) | byte_mask(text, i, ord("m"), ord("m"))
        stmd |= byte_mask(text, i, ord("d"), ord("d"))
        r_or_v = byte_mask(text, i, ord("r"), ord("r")) | byte_mask(text, i, ord("v"), ord("v"))
        e = byte_mask(text, i, ord("e"), ord("e"))
        l = byte_mask(text, i, ord("l"), ord("l"))
        of_two = marks & stmd >> ONE
        of_three = marks & (r_or_v >> ONE & e >> TWO | l >> ONE & l >> TWO)
        # The letters after the mark begin no word, and what follows them does.
        starts &= ~((of_two | of_three) << ONE)
        starts |= of_two << TWO | of_three << THREE
    return starts & DECIDED


@kernel
def word_ends(data, start, stop, classes, ends):
    """Where the words of data[start:stop] end: bpe.split_words, in bytes.

    Each window of 64 bytes begins where a word does, so that nothing must be remembered from
    the one before; the last word that begins in it begins the next window.

    Args:    data (N,) uint8, valid UTF-8; start, stop; classes, class_table(); ends, int64, at
             least 64 long, to be filled.
    Returns: how many were found: all, if ends[count - 1] == stop; otherwise go on from there.
    """
    text, classes, out = pointer(data), pointer(classes), pointer(ends)
    count, room = 0, ends.size - WINDOW
    i = start
    while i < stop and count <= room:
        starts = NONE
        if i + WINDOW <= stop:
            starts = word_starts(text, i, classes)
        if starts == NONE:  # a word of more than 60 bytes, or the end of the text
            i = word_end(text, i, stop, classes)
            out[count] = i
            count += 1
            continue
        window = i
        i += highest_bit(starts)
        # A loop that ends after 12 rounds here and 14 there makes the processor guess, and a
        # wrong guess costs more than four needless writes. What is too much is written over.
        more = count + bit_count(starts)
        for k in range(USUAL_WORDS):
            out[count + k] = window + lowest_bit(starts)
            starts &= starts - ONE
        for k in range(count + USUAL_WORDS, more):
            out[k] = window + lowest_bit(starts)
            starts &= starts - ONE
        count = more
    return count


@kernel
def safe_cut(data, start, stop, classes):
    """The first place after start where a word is sure to end, whatever stands before.

    Args:    data, uint8, valid UTF-8; start, stop; classes, class_table().
    Returns: a place in (start, stop]; stop if there is none before it.
    """
    text, classes = pointer(data), pointer(classes)
    i = start
    while i < stop and text[i] & 0xC0 == 0x80:  # start may lie within a character
        i += 1
    kind = np.uint8(SPACE)
    while i < stop:
        next_kind, width = character(text, i, classes)
        if kind != SPACE and next_kind != kind and (kind != OTHER or next_kind == SPACE):
            return i
        kind = next_kind
        i += width
    return stop


@kernel
def invalid_utf8(data, start, stop):
    """The first place where data[start:stop] is not UTF-8: what bytes.decode complains of.

    Args:    data, uint8; start, stop.
    Returns: a place in [start, stop); stop if all is well.
    """
    text = pointer(data)
    i = start
    while i < stop:
        c = text[i]
        if c < 0x80:
            whole = i + WINDOW <= stop
            i += lowest_bit(byte_mask(text, i, 0x80, 0xFF)) if whole else 1
            continue
        width = 2 if c < 0xE0 else 3 if c < 0xF0 else 4
        if c < 0xC2 or c > 0xF4 or i + width > stop:
            return i
        point = np.int64(c & (0x7F >> width))
        for j in range(1, width):
            if text[i + j] & 0xC0 != 0x80:
                return i
            point = point << 6 | text[i + j] & 0x3F
        least = 0x80 if width == 2 else 0x800 if width == 3 else 0x10000
        if point < least or point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
            return i
        i += width
    return stop


def as_bytes(data):
    """The bytes of any buffer as a uint8 array (N,), read-only, without a copy.

    Args:    data: bytes, bytearray, memoryview, mmap, or an array of uint8.
    """
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False
    return view


def cut_points(data, size):
    """Cut a text into independent pieces: their words, joined, are the words of the whole.

    Args:    data, from as_bytes; size, about how many bytes a piece should have.
    Returns: a list of places, from 0 to len(data): piece k is data[cuts[k]:cuts[k + 1]]. It
             depends on the text and on size alone.
    """
    cuts = [0]
    while cuts[-1] < len(data):
        start = min(cuts[-1] + size, len(data))
        cuts.append(int(safe_cut(data, start, len(data), class_table())))
    return cuts


def scan_ends(data):
    """Where all words of a text end.

    Args:    data, from as_bytes, valid UTF-8.
    Returns: (number of words,) int64; the last is len(data).
    """
    found, start = [], 0
    buffer = np.empty(min(len(data), 1 << 16) + WINDOW, np.int64)
    while start < len(data):
        count = word_ends(data, start, len(data), class_table(), buffer)
        found.append(buffer[:count].copy())
        start = int(found[-1][-1])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def split_words(text):
    """Cut text into words, as bpe.split_words does: a list of str."""
    raw = text.encode("utf-8")
    ends = scan_ends(as_bytes(raw)).tolist()
    return [raw[start:end].decode("utf-8") for start, end in zip([0, *ends], ends)]
