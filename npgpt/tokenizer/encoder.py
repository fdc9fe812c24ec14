"""Encoding on all threads: words are found where they end, looked up, and seldom merged.

scan.py says where words end, word_table.py knows the ids of those seen before, and merging.py
works out the others: the loop that ties them together is here. A processor works on several
words at a time, as long as it guesses right which way each `if` will go; a wrong guess costs as
much as looking up two words. So the loop has one question for nearly every word: is it at home
in the table? Then four ids are written, whatever their number is, and the next word writes over
those that were too many. All else is left to a function of its own, other_word, whose many
variables would crowd the loop.

Threads share nothing. Each has a table of words of its own, and takes pieces of PIECE bytes, cut
where a word is sure to end. The ids are the same for any number of threads, and for any pieces
that a stream comes in.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel
from ..errors import UserError
from ..parallel import available_threads
from .digits import cut_at_numbers
from .merging import make_vocabulary, merge_long_word, merge_word, vocabulary_pointers
from .scan import BUFFER, as_bytes, safe_cut, word_ends
from .unicode_classes import class_table
from .word_table import (
    COUNT_SHIFT,
    INLINE,
    LONGEST,
    SECOND,
    SHORT,
    ZERO,
    find_long,
    find_short,
    home,
    is_full,
    keep_word,
    long_key,
    make_room,
    new_words,
    short_key,
    words_pointers,
)

COUNT_PLACE, COUNT_MASK = np.uint64(COUNT_SHIFT), np.uint64(0xFF)
ID_MASK = np.uint64((1 << COUNT_SHIFT) - 1)
PIECE = 1 << 18  # bytes that a thread takes at a time
SPARE = 16  # bytes behind a word that its key may be made of, before they are masked away


@kernel
def encode_spans(data, spans, at, classes, vocabulary, words, ends, out):
    """Encode pieces of a text, one after the other: bpe.BPETokenizer._encode_plain.

    Args:    data, uint8, valid UTF-8, and SPARE bytes more; spans (k, 3) int64: start, stop, and
             the id that is to follow, or -1; at (3,) int64: the span and the place where to
             begin, and how many ids there are already; classes, class_table(); vocabulary;
             words, this thread's table; ends, int64, a buffer for word_ends; out, uint32, with
             room for an id for every byte, one for each span, and INLINE more.
    Returns: whether all is done. If not, words is full, and at says where to go on; out[:at[2]]
             are the ids.
    """
    text, found, ids = pointer(data), pointer(ends), pointer(out)
    vocabulary, words = vocabulary_pointers(vocabulary), words_pointers(words)
    entries, shift = words.entries, words.shift
    first_span, i, n = at
    for span in range(first_span, spans.shape[0]):
        if span > first_span:
            i = spans[span, 0]
        stop, follows = spans[span, 1], spans[span, 2]
        while i < stop:
            for w in range(word_ends(data, i, stop, classes, ends)):
                end = found[w]
                if end - i <= SHORT:
                    first, rest = short_key(text, i, end - i)
                    e = home(first, rest, shift)
                    one, two = entries[e + 2], entries[e + 3]
                    count = np.int64(one >> COUNT_PLACE & COUNT_MASK)
                    if entries[e] == first and entries[e + 1] == rest and count <= INLINE:
                        n = write_ids(one, two, count, ids, n)
                        i = end
                        continue
                after = other_word(text, i, end - i, vocabulary, words, ids, n)
                if after < 0:
                    at[0], at[1], at[2] = span, i, n
                    return False
                n = after
                i = end
        if follows >= 0:
            ids[n] = follows
            n += 1
    at[2] = n
    return True


@kernel
def other_word(text, i, length, vocabulary, words, ids, n):
    """Encode a word that is not at home in the table of words, or has many ids.

    Args:    text, a pointer; i, length, the word; vocabulary, words, with pointers; ids, a
             pointer, and n, the place to write to.
    Returns: the place after the last id; -1 if words is full.
    """
    if length > LONGEST:
        return n + merge_long_word(text, i, length, vocabulary, ids, n)
    if length <= SHORT:
        first, rest = short_key(text, i, length)
        e = find_short(words, first, rest)
    else:
        first, rest = long_key(text, i, length)
        e = find_long(words, first, rest, text, i, length)
    if words.entries[e + 1] == ZERO:
        if is_full(words):
            return -1
        count = merge_word(text, i, length, vocabulary, words.parts, words.ranks)
        keep_word(words, e, first, rest, text, i, length, count)
    one, two = words.entries[e + 2], words.entries[e + 3]
    count = np.int64(one >> COUNT_PLACE & COUNT_MASK)
    if count <= INLINE:
        return write_ids(one, two, count, ids, n)
    row = np.int64(two)
    count = np.int64(words.pool[row])
    for j in range(count):
        ids[n + j] = words.pool[row + 2 + j]
    return n + count


@kernel
def write_ids(one, two, count, ids, n):
    """Write the ids in an entry: always four, for the next word writes over those too many."""
    ids[n], ids[n + 1] = np.uint32(one & ID_MASK), np.uint32(one >> SECOND)
    ids[n + 2], ids[n + 3] = np.uint32(two), np.uint32(two >> SECOND)
    return n + count


class Encoder:
    """Bytes to ids, on several threads.

    Args:    ids, a dict from ordinary token (bytes) to id; merges, a list of pairs of bytes, in
             order; num_ids, how many ids there are, those of special tokens included; words, by
             which of bpe.PATTERNS text is cut.
    """

    def __init__(self, ids, merges, num_ids, words="gpt2"):
        self.vocabulary, self.missing = make_vocabulary(ids, merges, num_ids)
        self.num_ids, self.words = num_ids, words
        self.dtype = np.uint16 if num_ids <= 1 << 16 else np.uint32
        self.threads = available_threads()
        self.idle = []  # what threads that have finished leave to others: Scratch

    def encode(self, data, spans):
        """Encode pieces of a text, each as a text of its own.

        Args:    data, from as_bytes, valid UTF-8; spans, (k, 3) whole numbers: start and stop of
                 a piece, and the id to put after it, or -1.
        Returns: ids (N,), uint16, or uint32 for more than 65,536 ids.
        Raises:  UserError if the vocabulary has no token for what is to be written.
        """
        return np.concatenate(list(self.encode_batches([(data, spans)])))

    def encode_batches(self, batches):
        """Encode one batch after the other; the next is prepared while threads are at work.

        Args:    batches, an iterable of (data, spans) as in encode.
        Returns: an iterator of ids (n,): those of all batches, in order, at least one array for
                 each batch.
        """
        if self.threads == 1:
            for data, spans in batches:
                for share in self._share_out(data, spans):
                    yield self._encode_share(data, share)
            return
        waiting = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for data, spans in batches:
                for share in self._share_out(data, spans):
                    waiting.append(pool.submit(self._encode_share, data, share))
                while len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def encode_text(self, text):
        """Encode a str without special tokens; returns ids (N,)."""
        data = as_bytes(text.encode("utf-8"))
        span = np.array([[0, len(data), -1]])
        if len(data) <= PIECE and self.words == "gpt2":  # one share: nothing to divide
            return self._encode_share(data, span)
        return self.encode(data, span)

    def _share_out(self, data, spans):
        """share_out, with each number a piece by itself where the pattern wants it so."""
        if self.words == "digits":
            spans = cut_at_numbers(data, spans)
        return share_out(data, spans)

    def _encode_share(self, data, spans):
        """Encode some spans on this thread."""
        scratch = self.idle.pop() if self.idle else Scratch()
        end = spans[:, 1].max(initial=0)
        if end + SPARE > len(data):
            begin = spans[:, 0].min(initial=end)
            data = as_bytes(data[begin:end].tobytes() + bytes(SPARE))
            spans = spans - [begin, begin, 0]
        most = int((spans[:, 1] - spans[:, 0]).sum()) + len(spans) + INLINE
        if len(scratch.out) < most:
            scratch.out = np.empty(most, np.uint32)
        at = np.array([0, spans[0, 0] if len(spans) else 0, 0])
        while not encode_spans(
            data, spans, at, class_table(), self.vocabulary, scratch.words, scratch.ends,
            scratch.out,
        ):  # fmt: skip
            scratch.words = make_room(scratch.words)
        ids = scratch.out[: at[2]]
        if self.missing and ids.max(initial=0) >= self.num_ids:
            lacking = self.missing[int(ids.max()) - self.num_ids]
            raise UserError(f"the vocabulary has no token {lacking!r}, which this text needs")
        ids = ids.astype(self.dtype)
        self.idle.append(scratch)
        return ids


class Scratch:
    """What one thread writes to: its table of words, and buffers."""

    def __init__(self):
        self.words = new_words()
        self.ends = np.empty(BUFFER, np.int64)
        self.out = np.empty(0, np.uint32)


def share_out(data, spans):
    """Divide spans into shares of about PIECE bytes, cutting long ones where words end.

    Args:    data; spans, (k, 3) whole numbers.
    Returns: a list of such arrays, at least one. They do not depend on the number of threads.
    """
    spans = np.asarray(spans, np.int64).reshape(-1, 3)
    sizes = spans[:, 1] - spans[:, 0]
    if (sizes > PIECE).any():
        rows = []
        for start, stop, follows in spans.tolist():
            while stop - start > PIECE:
                cut = int(safe_cut(data, start + PIECE, stop, class_table()))
                if cut == stop:
                    break
                rows.append((start, cut, -1))
                start = cut
            rows.append((start, stop, follows))
        spans = np.array(rows, np.int64)
        sizes = spans[:, 1] - spans[:, 0]
    return np.split(spans, np.flatnonzero(np.diff(np.cumsum(sizes) // PIECE)) + 1)
