"""The merges of one word, with numbers in place of bytes: bpe.merge_word, compiled.

The lecture holds a word as a list of bytes objects and looks pairs of them up in a dict. Here
every string of bytes that a merge can meet has a number, its symbol: the id of the token, or,
for one that is no token, a number beyond all ids. A pair of symbols is looked up in a hash
table, each entry of which is one number of 64 bits:

    left symbol, 21 bits | right symbol, 21 bits | rank, 22 bits

For a word of a few letters it is quickest to look at all its pairs again and again, as the
lecture does. That takes a time that grows with the square of the length; so a long word gets
what textbooks advise: its symbols in a linked list, where a merge mends two links, and its pairs
in a heap, the earliest merge on top. A hundred thousand letters without a space then take
milliseconds.

Both do exactly what the lecture does, even for a list of merges that no training would make: all
occurrences of a pair are merged, from left to right, before the next pair is chosen,
although one that has just come into being might be an earlier merge.
"""

from collections import defaultdict
from itertools import count
from typing import NamedTuple

import numpy as np

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel
from ..errors import UserError

SYMBOL_BITS, RANK_BITS = 21, 22
SYMBOL_SHIFT, RANK_SHIFT = np.uint64(SYMBOL_BITS), np.uint64(RANK_BITS)
RANK_MASK = np.uint64((1 << RANK_BITS) - 1)
NO_ENTRY = np.uint64(0xFFFFFFFFFFFFFFFF)
NEVER, UNKNOWN = 1 << RANK_BITS, -1  # in place of a rank: no merge fits; not yet looked up
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: its multiples lie far apart
PLACE_BITS = 40  # of an entry in the heap, a number: rank, then place in the word
PLACE_MASK = (1 << PLACE_BITS) - 1


class Vocabulary(NamedTuple):
    """What encoding needs to know of a tokenizer: arrays, or within kernels pointers to them."""

    byte_symbols: np.ndarray  # (256,) int32: the symbol of each byte
    made: np.ndarray  # (merges,) int32: the symbol that each merge makes
    pairs: np.ndarray  # (2**k,) uint64: the hash table from pairs to ranks
    shift: np.uint64  # 64 − k: what is left of a hash shifted by this is a place in the table


def make_vocabulary(ids, merges, num_ids):
    """Number all that merges can meet, and make the table of pairs.

    Args:    ids, a dict from ordinary token (bytes) to id; merges, a list of pairs of bytes, in
             order; num_ids, how many ids there are, those of special tokens included.
    Returns: Vocabulary; and what is no token although merges meet it, a list of bytes:
             missing[i] has the symbol num_ids + i.
    Raises:  UserError if there are too many to number.
    """
    symbols = defaultdict(count(num_ids).__next__, ids)
    byte_symbols = [symbols[bytes([b])] for b in range(256)]
    left = [symbols[left] for left, _ in merges]
    right = [symbols[right] for _, right in merges]
    made = [symbols[left + right] for left, right in merges]
    missing = [token for token, symbol in symbols.items() if symbol >= num_ids]
    if num_ids + len(missing) >= 1 << SYMBOL_BITS or len(merges) >= NEVER:
        raise UserError(
            f"a vocabulary of {num_ids:,} tokens and {len(merges):,} merges is too large for the "
            "compiled encoder: set NPGPT_KERNELS=off"
        )
    bits = max(4, (2 * len(merges)).bit_length())
    pairs, shift = np.full(1 << bits, NO_ENTRY), np.uint64(64 - bits)
    _fill_pairs(np.array(left, np.int32), np.array(right, np.int32), pairs, shift)
    byte_symbols, made = np.array(byte_symbols, np.int32), np.array(made, np.int32)
    return Vocabulary(byte_symbols, made, pairs, shift), missing


@kernel
def vocabulary_pointers(v):
    """The same with pointers in place of arrays, to be handed on at no cost."""
    return Vocabulary(pointer(v.byte_symbols), pointer(v.made), pointer(v.pairs), v.shift)


@kernel
def _fill_pairs(left, right, pairs, shift):
    """Enter every pair with its rank; of a pair that is listed twice, the later, as in a dict."""
    mask = pairs.size - 1
    for rank in range(left.size):
        key = np.uint64(left[rank]) << SYMBOL_SHIFT | np.uint64(right[rank])
        slot = np.int64(key * SPREAD >> shift)
        while pairs[slot] != NO_ENTRY and pairs[slot] >> RANK_SHIFT != key:
            slot = slot + 1 & mask
        pairs[slot] = key << RANK_SHIFT | np.uint64(rank)


@kernel
def rank_of(left, right, pairs, shift):
    """The place of a pair among the merges, or NEVER: ranks.get(pair).

    Args:    left, right, symbols; pairs, a pointer to the table; shift, that of its vocabulary.
    """
    key = np.uint64(left) << SYMBOL_SHIFT | np.uint64(right)
    slot = np.int64(key * SPREAD >> shift)  # the highest bits of a product depend on all others
    while True:
        entry = pairs[slot]
        if entry >> RANK_SHIFT == key:
            return np.int64(entry & RANK_MASK)
        if entry == NO_ENTRY:
            return NEVER
        slot = slot + 1 & np.int64(NO_ENTRY >> shift)


@kernel
def merge_word(text, start, length, vocabulary, parts, ranks):
    """Take a short word, byte by byte, through its merges: bpe.merge_word.

    Args:    text, a pointer to uint8; start, length, where the word is; vocabulary, with
             pointers; parts, ranks, pointers to int32, with room for a number for every byte.
    Returns: how many symbols it has become: they are in parts.
    """
    byte_symbols, made, pairs, shift = vocabulary
    n = length
    for i in range(n):
        parts[i] = byte_symbols[text[start + i]]
        ranks[i] = UNKNOWN  # of the pair that begins here
    while True:
        best = NEVER
        ranks[n - 1] = NEVER
        for i in range(n - 1):
            if ranks[i] == UNKNOWN:
                ranks[i] = rank_of(parts[i], parts[i + 1], pairs, shift)
            best = min(best, ranks[i])
        if best == NEVER:
            return n
        # bpe.merge_pair, in place: the merged word is never longer than what has been read.
        merged, i = 0, 0
        while i < n:
            if ranks[i] == best:
                parts[merged] = made[best]
                ranks[merged] = UNKNOWN
                if merged > 0:
                    ranks[merged - 1] = UNKNOWN
                i += 2
            else:
                parts[merged], ranks[merged] = parts[i], ranks[i]
                i += 1
            merged += 1
        n = merged


@kernel
def merge_long_word(text, start, length, vocabulary, out, place):
    """Take a word of any length through its merges, in n·log n steps: bpe.merge_word.

    Args:    text, a pointer to uint8; start, length, where the word is; vocabulary, with
             pointers; out, a pointer to uint32, and the place in it from where on there is room
             for a number for every byte.
    Returns: how many symbols it has become: they are in out[place:].
    """
    byte_symbols, made, pairs, shift = vocabulary
    n = length
    parts = np.empty(n, np.int32)
    ranks = np.empty(n, np.int32)  # of the pair that begins here, as last looked up
    after, before = np.empty(n, np.int64), np.empty(n, np.int64)  # places of neighbours
    touched = np.empty(n, np.int64)
    heap, size = np.empty(3 * n, np.int64), 0  # n pairs at first, two new ones with each merge
    for i in range(n):
        parts[i] = byte_symbols[text[start + i]]
        after[i], before[i] = i + 1, i - 1
    for i in range(n):
        ranks[i] = rank_of(parts[i], parts[i + 1], pairs, shift) if i + 1 < n else NEVER
        if ranks[i] != NEVER:
            size = _push(heap, size, np.int64(ranks[i]) << PLACE_BITS | i)
    while size > 0:
        best = heap[0] >> PLACE_BITS
        num_touched = 0
        while size > 0 and heap[0] >> PLACE_BITS == best:  # from left to right
            i = heap[0] & PLACE_MASK
            size = _pop(heap, size)
            if ranks[i] != best:  # the pair is there no more
                continue
            gone = after[i]
            parts[i], after[i] = made[best], after[gone]
            ranks[gone] = NEVER
            ranks[i] = UNKNOWN
            if after[i] < n:
                before[after[i]] = i
            if before[i] >= 0:
                ranks[before[i]] = UNKNOWN
            touched[num_touched] = i
            num_touched += 1
        for k in range(num_touched):
            for i in (before[touched[k]], touched[k]):
                if i < 0 or ranks[i] != UNKNOWN:
                    continue
                last = after[i] >= n
                ranks[i] = NEVER if last else rank_of(parts[i], parts[after[i]], pairs, shift)
                if ranks[i] != NEVER:
                    size = _push(heap, size, np.int64(ranks[i]) << PLACE_BITS | i)
    i, end = 0, place
    while i < n:
        out[end] = parts[i]
        end += 1
        i = after[i]
    return end - place


@kernel
def _push(heap, size, entry):
    """heapq.heappush; returns the new size."""
    child = size
    while child > 0:
        parent = (child - 1) // 2
        if heap[parent] <= entry:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = entry
    return size + 1


@kernel
def _pop(heap, size):
    """heapq.heappop, without telling what it was; returns the new size."""
    size -= 1
    entry, parent = heap[size], 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = entry
    return size
