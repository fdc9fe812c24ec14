"""The pairs that wait to be merged, the most frequent on top: a heap that forgives stale entries.

Why
    At every step BPE wants the most frequent pair of a hundred thousand, and a step changes the
    counts of some hundred others. To keep them sorted would be too much. A heap promises less:
    entry i is no less than its children, entries 2i + 1 and 2i + 2. So the greatest is entry 0;
    and to put one in, or to take one out, is a walk between root and leaf, 17 steps at most.

                        0: 9
                1: 7            2: 8
             3: 2   4: 6     5: 1

Stale entries
    A count that changes would have to move its entry, wherever that is by now. But counts only
    fall (fast_train.py says why). So an entry that is wrong promises too much, and comes to the
    top too early: it is enough to look at it there. If its count is no longer true, it is put
    right and walks down. If it is true, no pair has more, as no entry even promises more.

Ties
    Of equally frequent pairs the greatest in alphabetical order comes first, as in bpe.py: by
    the bytes of the left token, then by those of the right. Two pairs are thus never equal, and
    what comes out does not depend on the order in which they went in.
"""

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel

# The columns of the arrays that fast_train.py keeps. Kernels here take them as pointers, row
# after row: the left token of pair p is pairs[4 * p + LEFT].
COUNT, LEFT, RIGHT, END = range(4)  # pairs (P, 4) int64
START, SIZE = range(2)  # tokens (V, 2) int64: where in letters the token stands, and how long it is
PROMISE, WHOSE = range(2)  # heap (P, 2) int64


@kernel
def after(a, b, tokens, letters):
    """Whether token a comes after token b in alphabetical order. (No two tokens are equal.)"""
    a_start, a_size = tokens[2 * a + START], tokens[2 * a + SIZE]
    b_start, b_size = tokens[2 * b + START], tokens[2 * b + SIZE]
    for i in range(min(a_size, b_size)):
        if letters[a_start + i] != letters[b_start + i]:
            return letters[a_start + i] > letters[b_start + i]
    return a_size > b_size


@kernel
def better(a_count, a, b_count, b, pairs, tokens, letters):
    """Whether pair a, with so large a count, is to be merged before pair b."""
    if a_count != b_count:
        return a_count > b_count
    if pairs[4 * a + LEFT] != pairs[4 * b + LEFT]:
        return after(pairs[4 * a + LEFT], pairs[4 * b + LEFT], tokens, letters)
    return after(pairs[4 * a + RIGHT], pairs[4 * b + RIGHT], tokens, letters)


@kernel
def walk_up(heap, size, count, pair, pairs, tokens, letters):
    """Put a pair into a heap of so many entries."""
    child = size
    while child > 0:
        parent = (child - 1) // 2
        promise, other = heap[2 * parent + PROMISE], heap[2 * parent + WHOSE]
        if better(promise, other, count, pair, pairs, tokens, letters):
            break
        heap[2 * child + PROMISE], heap[2 * child + WHOSE] = promise, other
        child = parent
    heap[2 * child + PROMISE], heap[2 * child + WHOSE] = count, pair


@kernel
def walk_down(heap, size, count, pair, pairs, tokens, letters):
    """Put a pair in the place of the one on top of a heap of so many entries."""
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        promise, other = heap[2 * child + PROMISE], heap[2 * child + WHOSE]
        if child + 1 < size:
            second_promise, second = heap[2 * child + 2 + PROMISE], heap[2 * child + 2 + WHOSE]
            if better(second_promise, second, promise, other, pairs, tokens, letters):
                child, promise, other = child + 1, second_promise, second
        if better(count, pair, promise, other, pairs, tokens, letters):
            break
        heap[2 * parent + PROMISE], heap[2 * parent + WHOSE] = promise, other
        parent = child
    heap[2 * parent + PROMISE], heap[2 * parent + WHOSE] = count, pair


@kernel
def put_in(heap, size, first, last, pairs, tokens, letters):
    """Put pairs[first:last] into a heap of size entries, but for those that occur no more.

    Args:    heap, pairs, tokens (see above) and letters uint8, arrays.
    Returns: the new size.
    """
    h, p, t, l = pointer(heap), pointer(pairs), pointer(tokens), pointer(letters)
    for pair in range(first, last):
        if pairs[pair, COUNT] > 0:
            walk_up(h, size, pairs[pair, COUNT], pair, p, t, l)
            size += 1
    return size


@kernel
def take_best(heap, size, pairs, tokens, letters):
    """Take the best pair out of a heap of size entries, putting right those that are stale.

    Args:    heap, pairs, tokens (see above) and letters uint8, arrays.
    Returns: the pair, or -1 if there is none; the new size.
    """
    h, p, t, l = pointer(heap), pointer(pairs), pointer(tokens), pointer(letters)
    while size > 0:
        best, promise = heap[0, WHOSE], heap[0, PROMISE]
        count = pairs[best, COUNT]
        if 0 < count < promise:
            walk_down(h, size, count, best, p, t, l)
            continue
        size -= 1
        walk_down(h, size, heap[size, PROMISE], heap[size, WHOSE], p, t, l)
        if count > 0:
            return best, size
    return -1, 0
