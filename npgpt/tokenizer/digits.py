"""Numbers cut out of a text, each a piece by itself: what the pattern DIGITS does before all else.

bpe.py cuts words by one regular expression. Seen otherwise, DIGITS is GPT-2's pattern, applied to
what lies between the numbers: the encoder takes a text in pieces anyway, each as a text of its own.
So here the pieces are made, and the scanner need not know.
"""

import numpy as np

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel
from .scan import character
from .unicode_classes import NUMBER, class_table


def cut_at_numbers(data, spans):
    """Divide spans so that each number, a digit mostly, has one for itself.

    Args:    data, uint8, valid UTF-8; spans, (k, 3) whole numbers: start and stop of a piece, and
             the id to put after it, or -1.
    Returns: such an array, of the same text and ids.
    """
    spans = np.asarray(spans, np.int64).reshape(-1, 3)
    count = walk_numbers(data, spans, np.empty((0, 3), np.int64), class_table())
    pieces = np.empty((count, 3), np.int64)
    walk_numbers(data, spans, pieces, class_table())
    return pieces


@kernel
def walk_numbers(data, spans, pieces, classes):
    """Write the pieces, as many as there is room for, and count them all.

    Args:    data; spans, as above; pieces (n, 3) int64, written; classes, class_table().
    Returns: how many there are.
    """
    text, classes = pointer(data), pointer(classes)
    count = 0
    for k in range(len(spans)):
        begin, stop, follows = spans[k, 0], spans[k, 1], spans[k, 2]
        i = begin
        while i < stop:
            kind, width = character(text, i, classes)
            if kind == NUMBER:
                if begin < i:
                    count = keep_piece(pieces, count, begin, i, -1)
                begin = i + width
                if begin < stop:
                    count = keep_piece(pieces, count, i, begin, -1)
                else:
                    begin = i  # the last piece, which the id follows
            i += width
        count = keep_piece(pieces, count, begin, stop, follows)
    return count


@kernel
def keep_piece(pieces, count, start, stop, follows):
    """Write one piece, if there is room; returns how many there are now."""
    if count < len(pieces):
        pieces[count, 0], pieces[count, 1], pieces[count, 2] = start, stop, follows
    return count + 1
