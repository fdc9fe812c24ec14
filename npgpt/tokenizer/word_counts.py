"""Counting words: of a text of any size, its different words remain, and how often each occurs.

That is all that BPE wants to know of a text. 64 MB of books are 14 million words, but only 123
thousand different ones, of a megabyte together: to learn merges from them takes little time, and
most goes into counting.

Each thread counts into a table of its own, so that none waits for another. A table that has
grown to MOST_ROWS and is full is poured into the common one and begun anew, and in the end all
are. Which is poured first depends on the threads; a sum does not depend on that.

Memory
    A few batches; for each thread a table of at most 6 MB, and the letters of long words; and
    the common table: 24 bytes a row, which is 38 to 77 for each different word, and half as much
    again while it grows. Ten times the text costs only the words that are new, and ten gigabytes
    of English have some millions. No word is dropped for being rare: the merges would then depend
    on the memory. Where no blanks part words, as in Chinese, a word is a clause, and hardly one
    comes twice: there the table grows with the text.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from ..backend.cpu.bits import WINDOW, byte_mask, lowest_bit, pointer
from ..backend.cpu.compile import kernel
from ..errors import UserError
from .batches import SPARE, batches
from .count_table import (
    COUNT,
    WORDS,
    added,
    enter,
    find,
    most_words,
    new_table,
    with_letters,
    words_of,
)
from .scan import BUFFER, as_bytes, invalid_utf8, word_ends
from .unicode_classes import class_table
from .word_table import LONG_WORD, SHORT, long_key, short_key

FIRST_ROWS, MOST_ROWS = 1 << 14, 1 << 18  # of a thread's table, which grows fourfold
MOST_LETTERS = 32 << 20  # of the long words in a thread's table
NONE, ONE = np.uint64(0), np.uint64(1)


def count_words(texts, special_tokens=(), threads=1, progress=None):
    """Count the words of texts; special tokens are left out, and no word reaches across one.

    Args:    texts, an iterable whose items are each a str, UTF-8 bytes, or the pathlib.Path of a
             file; special_tokens, an iterable of str; threads, at least 1; progress(n_bytes),
             called now and then with how much has been read.
    Returns: WordCounts. They do not depend on the number of threads.
    Raises:  UserError for a file that cannot be read, and for what is not UTF-8.
    """
    special_tokens = list(special_tokens)
    counter = Counter(special_tokens)
    waiting, n_bytes = deque(), 0
    with ThreadPoolExecutor(threads) as pool:

        def wait_for(n):
            nonlocal n_bytes
            while len(waiting) > n:
                n_bytes += waiting.popleft().result()
                if progress:
                    progress(n_bytes)

        for batch in batches(texts, special_tokens):
            waiting.append(pool.submit(counter.count, batch))
            wait_for(threads + 1)
        wait_for(0)
    return counter.words()


class Counter:
    """What the threads share: a common table, and the tables that no thread has just now.

    Args:    special_tokens, an iterable of str.
    """

    def __init__(self, special_tokens):
        names = sorted([name.encode("utf-8") for name in special_tokens], key=len, reverse=True)
        self.names = as_bytes(b"".join(names))  # the longest first, as the longer one is meant
        self.name_ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self.common, self.lock, self.idle = new_table(FIRST_ROWS), Lock(), deque()

    def count(self, batch):
        """Count the words of a batch, in the thread that asks for it.

        Args:    batch, a Batch.
        Returns: how many bytes it had.
        Raises:  UserError if a text is not UTF-8.
        """
        data, bounds = as_bytes(batch.joined), np.array([0, *batch.ends])
        check_utf8(data, bounds, batch.origins)
        try:
            table = self.idle.pop()
        except IndexError:
            table = new_table(FIRST_ROWS)
        ends = np.empty(BUFFER, np.int64)
        n, start = 0, 0
        while n < len(batch.ends):
            table = with_letters(table, len(data) - start)
            n, start = count_texts(
                data, bounds, n, start, self.names, self.name_ends, class_table(), ends, table
            )
            if n < len(batch.ends):
                table = self.more_room(table)
        if table.long_letters > MOST_LETTERS:
            table = self.emptied(table)
        self.idle.append(table)
        return len(data) - len(SPARE)

    def more_room(self, table):
        """A larger table with the words of a full one, or an empty one after the largest."""
        if len(table.rows) < MOST_ROWS:
            return added(new_table(4 * len(table.rows)), table)
        return self.emptied(table)

    def emptied(self, table):
        """Pour a table into the common one.

        Returns: another table, which is empty.
        """
        with self.lock:
            self.common = added(self.common, table)
        return new_table(len(table.rows))

    def words(self):
        """All that was counted, when no thread counts any more, as WordCounts."""
        while self.idle:
            self.emptied(self.idle.pop())
        return words_of(self.common)


def check_utf8(data, bounds, origins):
    """Raise UserError unless each text is UTF-8: all are, and none begins within a character.

    Args:    data (N,) uint8; bounds, where the texts begin and end; origins, as in Batch.
    """
    stop = bounds[-1]
    starts = bounds[:-1][bounds[:-1] < stop]
    inside = starts[data[starts] & 0xC0 == 0x80]
    place = min([int(invalid_utf8(data, 0, stop)), *inside.tolist()])
    if place < stop:
        n = int(np.searchsorted(bounds, place, side="right")) - 1
        text, start = origins[n]
        text = f"document {text:,}" if isinstance(text, int) else text
        raise UserError(
            f"the text is not UTF-8: byte {start + place - bounds[n]:,} of {text} is "
            f"0x{data[place]:02x}; convert it first, for instance with iconv -t utf-8"
        )


@kernel
def count_texts(data, bounds, n, start, names, name_ends, classes, ends, table):
    """Count the words of texts.

    Args:    data (N,) uint8, valid UTF-8, and 16 bytes more; bounds, where the texts begin and
             end; n, start: the text and the place in data to begin with; names, name_ends, the
             special tokens; classes, class_table(); ends, a buffer for word_ends; table.
    Returns: n, start: where to go on, when there is more room in the table; n is the number of
             texts when all is done.
    """
    while n < len(bounds) - 1:
        stop = bounds[n + 1]
        while start < stop:
            special, beyond = next_special(data, start, stop, names, name_ends)
            start = count_plain(data, start, special, classes, ends, table)
            if start < special:
                return n, start
            start = beyond
        n += 1
    return n, start


@kernel
def count_plain(data, start, stop, classes, word_stops, table):
    """Count the words of data[start:stop], in which no special token is.

    Returns: stop; or where the first word begins for which there is no row.
    """
    text, found, n_rows = pointer(data), pointer(word_stops), len(table.rows)
    rows, letters = pointer(table.rows), pointer(table.letters)
    ends, used = pointer(table.ends), pointer(table.used)
    while start < stop:
        for k in range(word_ends(data, start, stop, classes, word_stops)):
            size = found[k] - start
            if size <= SHORT:
                first, rest = short_key(text, start, size)
            else:
                first, rest = long_key(text, start, size)[0], LONG_WORD
            row = find(rows, n_rows, letters, ends, first, rest, text, start, size)
            if rows[row + COUNT] == 0:
                if used[WORDS] == most_words(n_rows):
                    return start
                enter(rows, letters, ends, used, row, first, rest, text, start, size)
            rows[row + COUNT] += ONE
            start += size
    return start


@kernel
def next_special(data, start, stop, names, name_ends):
    """The first special token in data[start:stop].

    Args:    data; start; stop; names, uint8, one after the other; name_ends.
    Returns: where it begins, and where it ends; stop and stop if there is none.
    """
    if len(name_ends) == 0:
        return stop, stop
    text, wanted = pointer(data), pointer(names)
    while start < stop:
        # 64 bytes at once: where might one begin? Fewer are left only at the end.
        places = ~NONE
        if start + WINDOW <= stop:
            places, first = NONE, 0
            for last in name_ends:
                places |= byte_mask(text, start, wanted[first], wanted[first])
                first = last
        while places != NONE:
            place = start + lowest_bit(places)
            places &= places - ONE
            first = 0
            for last in name_ends:
                end, i = place + last - first, 0
                while end <= stop and first + i < last and text[place + i] == wanted[first + i]:
                    i += 1
                if first + i == last:
                    return place, end
                first = last
        start += WINDOW
    return stop, stop
