"""A table of words and their ids, which answers with one look at memory.

A text has many words but few different ones: 64 MB of books are 14 million words, of which 123
thousand are different, and the hundred most frequent make up more than half. So it hardly matters
how quickly a word is merged. What matters is to find its ids when it comes again. The lecture
has a dict for that, which needs an object for each word before it can ask. This table asks the
bytes where they stand:

    A word of up to 15 bytes, as all but one in 5,000 are, is two numbers of 64 bits: its bytes,
    and its length as the last of the sixteen. Nothing need be compared letter by letter.
    An entry is half a cache line: those two numbers, and the ids in two more, if they are
    four or fewer.

Longer words, and those of more ids, have arrays beside the table; words of more than 64 bytes
seldom come again and are not kept. The table is never more than half full: when it would be, it
grows, and at its largest it begins anew, as the lecture's does.
"""

from typing import NamedTuple

import numpy as np

from ..backend.cpu.bits import eight_bytes, pointer
from ..backend.cpu.compile import kernel
from .merging import SPREAD

ZERO, ONE = np.uint64(0), np.uint64(1)
EVERY_BIT = np.uint64(0xFFFFFFFFFFFFFFFF)
STIR = np.uint64(0xD6E8FEB86659FD93)  # an odd number whose bits look random
FOLD = np.uint64(29)
LENGTH_SHIFT = np.uint64(56)
COUNT_SHIFT, SECOND = 24, np.uint64(32)  # of an entry's ids: first | count << 24 | second << 32
SHORT, LONGEST = 15, 64  # bytes: of words that are their own keys; of words that are kept
INLINE = 4  # ids that an entry has room for
POOLED = 255  # the count of an entry that has more, or a long word: both are in the pool
LONG_WORD = np.uint64(255 << 56)  # in place of a length
FIRST_BITS, MOST_BITS = 16, 20  # of the number of entries: 2 MB, growing fourfold to 32 MB


class Words(NamedTuple):
    """The table, for one thread: arrays, or within kernels pointers to them."""

    entries: np.ndarray  # (4 · 2**k,) uint64: key, key, ids, ids
    pool: np.ndarray  # int32: of a POOLED entry the count, where its letters are, the ids
    letters: np.ndarray  # uint8: the bytes of words longer than SHORT
    used: np.ndarray  # (6,) int64: how many entries, pool and letters are in use, and may be
    parts: np.ndarray  # (LONGEST,) int32: the symbols of the word that is being merged
    ranks: np.ndarray  # (LONGEST,) int32: and the ranks of its pairs
    shift: np.uint64  # 64 − k: what is left of a hash shifted by this is the number of an entry


def new_words(bits=FIRST_BITS):
    """An empty table of 2**bits entries."""
    raw = np.zeros((4 << bits) + 7, np.uint64)
    first = -raw.ctypes.data % 64 // 8  # so that no entry lies in two cache lines
    entries = raw[first : first + (4 << bits)]
    pool, letters = np.empty(4 << bits, np.int32), np.empty(8 << bits, np.uint8)
    most = [1 << bits - 1, len(pool) - LONGEST - 2, len(letters) - LONGEST]
    parts, ranks = np.empty((2, LONGEST), np.int32)
    used, shift = np.array([0, 0, 0, *most]), np.uint64(64 - bits)
    return Words(entries, pool, letters, used, parts, ranks, shift)


def make_room(words):
    """A larger table with what is in a full one, or an empty one after the largest."""
    bits = 64 - int(words.shift)
    if bits >= MOST_BITS:
        words.entries[:] = 0
        words.used[:3] = 0
        return words
    larger = new_words(min(bits + 2, MOST_BITS))
    _move_entries(words.entries, larger.entries, larger.shift)
    _, num_pool, num_letters = larger.used[:3] = words.used[:3]
    larger.pool[:num_pool] = words.pool[:num_pool]
    larger.letters[:num_letters] = words.letters[:num_letters]
    return larger


@kernel
def words_pointers(w):
    """The same with pointers in place of arrays, to be handed on at no cost."""
    return Words(
        pointer(w.entries), pointer(w.pool), pointer(w.letters), pointer(w.used),
        pointer(w.parts), pointer(w.ranks), w.shift,
    )  # fmt: skip


@kernel
def short_key(text, i, length):
    """A word of 1 to 15 bytes as two numbers: its bytes, and in the last of them its length.

    Args:    text, a pointer to uint8, where 16 bytes from i on can be read; i, where the word
             begins; length.
    """
    first = eight_bytes(text, i) & EVERY_BIT >> np.uint64(64 - 8 * min(length, 8))
    rest = eight_bytes(text, i + 8) & (ONE << np.uint64(8 * max(length, 8) - 64)) - ONE
    return first, rest | np.uint64(length) << LENGTH_SHIFT


@kernel
def long_key(text, i, length):
    """Two numbers for a word of 16 bytes or more; others may have the same."""
    hash_ = np.uint64(length)
    for j in range(i, i + length - 8, 8):
        hash_ = (hash_ ^ eight_bytes(text, j)) * SPREAD
        hash_ ^= hash_ >> FOLD
    hash_ = (hash_ ^ eight_bytes(text, i + length - 8)) * SPREAD  # may overlap with the last one
    return hash_, LONG_WORD | np.uint64(length)


@kernel
def home(first, rest, shift):
    """Where the search for a key begins: the highest bits of a product depend on all others."""
    return np.int64((first ^ rest * STIR) * SPREAD >> shift) * 4


@kernel
def _next(e, shift):
    """The entry after this one, or the first after the last."""
    return e + 4 & np.int64(EVERY_BIT >> shift) * 4


@kernel
def find_short(words, first, rest):
    """The place of a short word's entry, or of the free one where it belongs.

    Args:    words, with pointers; first, rest, the key.
    """
    entries, e = words.entries, home(first, rest, words.shift)
    while entries[e + 1] != ZERO and (entries[e] != first or entries[e + 1] != rest):
        e = _next(e, words.shift)
    return e


@kernel
def find_long(words, first, rest, text, i, length):
    """The same for a long word, the letters of which must be compared.

    Args:    words, with pointers; first, rest, the key; text, a pointer; i, length, the word.
    """
    entries, e = words.entries, home(first, rest, words.shift)
    while entries[e + 1] != ZERO:
        if entries[e] == first and entries[e + 1] == rest:
            its_letters = words.pool[np.int64(entries[e + 3]) + 1]
            same = True
            for j in range(length):
                same &= words.letters[its_letters + j] == text[i + j]
            if same:
                return e
        e = _next(e, words.shift)
    return e


@kernel
def is_full(words):
    """Whether there might be no room for one more word; words has pointers."""
    used = words.used
    return used[0] >= used[3] or used[1] > used[4] or used[2] > used[5]


@kernel
def keep_word(words, e, first, rest, text, i, length, count):
    """Fill the free entry at e with a word and its ids.

    Args:    words, with pointers, not full; e; first, rest, the key; text, a pointer; i, length,
             the word; count, how many ids it has: they are in words.parts.
    """
    entries, used, parts = words.entries, words.used, words.parts
    entries[e], entries[e + 1] = first, rest
    used[0] += 1
    if count <= INLINE and length <= SHORT:
        for j in range(count, INLINE):
            parts[j] = 0
        entries[e + 2] = np.uint64(parts[0] | count << COUNT_SHIFT) | np.uint64(parts[1]) << SECOND
        entries[e + 3] = np.uint64(parts[2]) | np.uint64(parts[3]) << SECOND
        return
    row, its_letters = used[1], used[2]
    entries[e + 2], entries[e + 3] = np.uint64(POOLED << COUNT_SHIFT), np.uint64(row)
    words.pool[row], words.pool[row + 1] = count, its_letters
    for j in range(count):
        words.pool[row + 2 + j] = parts[j]
    used[1] += count + 2
    if length > SHORT:
        for j in range(length):
            words.letters[its_letters + j] = text[i + j]
        used[2] += length


@kernel
def _move_entries(old, new, shift):
    """Enter what is in a table of words into a larger, empty one."""
    for e in range(0, old.size, 4):
        if old[e + 1] != ZERO:
            place = home(old[e], old[e + 1], shift)
            while new[place + 1] != ZERO:
                place = _next(place, shift)
            for k in range(4):
                new[place + k] = old[e + k]
