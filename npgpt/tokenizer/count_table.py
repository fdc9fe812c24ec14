"""A table of words and how often each occurs, made for many words that are few different ones.

A dict would make an object of every word that it is asked about. Here the bytes are compared
where they stand. To look a word up is to compare it with what the table has, and to fetch
letters from elsewhere in memory would cost more than all the rest. But nearly all words have at
most 15 bytes, and so they stand in the table itself, as two numbers of 8 bytes, of which the
last byte is the length (word_table.short_key). Two comparisons, and the words are equal or not:

                first                      rest                       count
    " sea"      20 73 65 61 00 00 00 00    00 00 00 00 00 00 00 04        9
    " seashell" 20 73 65 61 73 68 65 6C    6C 00 00 00 00 00 00 09        2
                                                                          0

Of a longer word, `first` is a hash, and `rest` is 255 in its last byte and in the others a number,
by which the table finds the letters, to compare them one by one.

The rows are a power of two in number. A hash of the two numbers says in which row a word belongs;
if another has that row already, the next free one is taken. At most 5/8 of the rows are ever
used: fuller, and most searches would take such detours.
"""

from typing import NamedTuple

import numpy as np

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel
from .word_table import LENGTH_SHIFT, LONG_WORD

FIRST, REST, COUNT = range(3)  # the columns of rows; as a pointer, row r begins at 3 * r
WORDS, LONG_WORDS = range(2)  # of used
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / the golden ratio: its multiples lie far apart
HALF, BYTE = np.uint64(32), np.uint64(255)


class WordCounts(NamedTuple):
    """Different words, and how often each occurs: W words of N bytes together."""

    letters: np.ndarray  # (N,) uint8: one word after the other
    ends: np.ndarray  # (W,) int64: where in letters each word ends
    counts: np.ndarray  # (W,) int64


class CountTable(NamedTuple):
    """Words and their counts, with room for some more."""

    rows: np.ndarray  # (R, 3) uint64: first, rest, count; free where count is 0
    letters: np.ndarray  # uint8: of long words number 1, 2, ...
    ends: np.ndarray  # int64: where in letters number n ends; ends[0] is 0
    used: np.ndarray  # (2,) int64: how many words, and how many of them are long

    @property
    def long_letters(self):
        """How many bytes the long words have together."""
        return int(self.ends[self.used[LONG_WORDS]])


def new_table(n_rows):
    """An empty table.

    Args:    n_rows, a power of two.
    """
    return CountTable(
        np.zeros((n_rows, 3), np.uint64),
        np.empty(0, np.uint8),
        np.zeros(1, np.int64),
        np.zeros(2, np.int64),
    )


def with_letters(table, n):
    """The table with room for long words of n bytes together, and for their ends."""
    letters = enlarged(table.letters, table.long_letters + n)
    ends = enlarged(table.ends, table.used[LONG_WORDS] + 1 + n // 16)
    return table._replace(letters=letters, ends=ends)


def enlarged(array, size):
    """The array; or, if it is shorter than size, a longer one that begins with it."""
    if len(array) >= size:
        return array
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger


def added(table, other):
    """A table with the words of both, and the sums of their counts: if it has room, the first.

    Args:    table, which is used up; other.
    """
    n_words, n_rows = table.used[WORDS] + other.used[WORDS], len(table.rows)
    while n_words > most_words(n_rows):
        n_rows *= 2
    if n_rows > len(table.rows):
        larger = with_letters(new_table(n_rows), table.long_letters + other.long_letters)
        pour(table, larger)
        table = larger
    table = with_letters(table, other.long_letters)
    pour(other, table)
    return table


def words_of(table):
    """The words of a table, sorted by their first 8 bytes.

    To learn merges is to walk over words that have a pair in common. Neighbours in memory are
    fetched together, so it pays that words which begin alike are neighbours.

    Returns: WordCounts.
    """
    rows = table.rows[table.rows[:, COUNT] > 0]
    rows = rows[np.argsort(rows[:, FIRST].byteswap())]
    short = rows[:, REST] < LONG_WORD
    n_letters = int((rows[short, REST] >> LENGTH_SHIFT).sum()) + table.long_letters
    ends = np.empty(len(rows), np.int64)
    words = WordCounts(np.empty(n_letters, np.uint8), ends, rows[:, COUNT].astype(np.int64))
    spell(rows, table, words.letters, words.ends)
    return words


@kernel
def most_words(n_rows):
    """How many words a table with so many rows may have."""
    return n_rows // 8 * 5


@kernel
def find(rows, n_rows, letters, ends, first, rest, text, start, size):
    """Where the row of a word begins, or the free row in which it belongs.

    Args:    rows, letters, ends, text, pointers; n_rows; first, rest, the word as two numbers,
             LONG_WORD being the second of every long one; start, size, where in text it stands.
    """
    hashed = first ^ rest * MIX
    hashed = (hashed ^ hashed >> HALF) * MIX
    row = np.int64(hashed ^ hashed >> HALF) & (n_rows - 1)
    while rows[3 * row + COUNT] != 0:
        if rows[3 * row + FIRST] == first:
            its_rest = rows[3 * row + REST]
            if its_rest == rest:
                break
            if rest == LONG_WORD and its_rest > LONG_WORD:
                number = np.int64(its_rest - LONG_WORD)
                if same(letters, ends[number - 1], ends[number], text, start, size):
                    break
        row = (row + 1) & (n_rows - 1)
    return 3 * row


@kernel
def same(letters, begin, end, text, start, size):
    """Whether letters[begin:end] is text[start : start + size]."""
    if end - begin != size:
        return False
    for i in range(size):
        if letters[begin + i] != text[start + i]:
            return False
    return True


@kernel
def enter(rows, letters, ends, used, row, first, rest, text, start, size):
    """Give the free row at `row` to a word; its count is still to be set. Arguments as in find."""
    used[WORDS] += 1
    if rest == LONG_WORD:
        used[LONG_WORDS] += 1
        number = used[LONG_WORDS]
        ends[number] = ends[number - 1] + size
        for i in range(size):
            letters[ends[number - 1] + i] = text[start + i]
        rest += np.uint64(number)
    rows[row + FIRST], rows[row + REST] = first, rest


@kernel
def pour(source, table):
    """Add the counts of one table to another, which must have room for all its words."""
    text, text_ends, n_rows = pointer(source.letters), source.ends, len(table.rows)
    rows, letters = pointer(table.rows), pointer(table.letters)
    ends, used = pointer(table.ends), pointer(table.used)
    for r in range(len(source.rows)):
        first, rest, count = source.rows[r, FIRST], source.rows[r, REST], source.rows[r, COUNT]
        if count == 0:
            continue
        start = size = 0
        if rest > LONG_WORD:
            number = np.int64(rest - LONG_WORD)
            start, rest = text_ends[number - 1], LONG_WORD
            size = text_ends[number] - start
        row = find(rows, n_rows, letters, ends, first, rest, text, start, size)
        if rows[row + COUNT] == 0:
            enter(rows, letters, ends, used, row, first, rest, text, start, size)
        rows[row + COUNT] += count


@kernel
def spell(rows, table, letters, ends):
    """Write down the letters of words, one word after the other.

    Args:    rows, of the table, in any order; table; letters and ends, to be filled.
    """
    end = 0
    for r in range(len(rows)):
        first, rest = rows[r, FIRST], rows[r, REST]
        if rest > LONG_WORD:
            number = np.int64(rest - LONG_WORD)
            for i in range(table.ends[number - 1], table.ends[number]):
                letters[end] = table.letters[i]
                end += 1
        else:
            for i in range(np.int64(rest >> LENGTH_SHIFT)):
                eight = first if i < 8 else rest
                letters[end] = eight >> np.uint64(8 * (i % 8)) & BYTE
                end += 1
        ends[r] = end
