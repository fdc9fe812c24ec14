"""Learned positions on a GPU: the places of a text, one after the other, are one row.

So a batch of texts (B, T, C) is a matrix (B, T·C), and what all its rows share is the table.
"""

from npgpt.backend.cuda.compile import FLOAT32, empty, zeros
from npgpt.backend.cuda.shared_row import add_row, sum_rows


def position_forward(x, wpe, start=0):
    if x.ndim != 3 or wpe.ndim != 2 or x.size == 0 or x.dtype != wpe.dtype:
        return NotImplemented
    B, T, C = x.shape
    if wpe.shape[1] != C or start + T > wpe.shape[0]:
        return NotImplemented
    y = empty(x.shape, x.dtype)
    places = wpe[start : start + T].reshape(T * C)
    add_row(x.reshape(B, T * C), places, y.reshape(B, T * C))
    return y, (wpe, start)


def position_backward(dy, cache):
    wpe, start = cache
    if dy.ndim != 3 or dy.size == 0:
        return NotImplemented
    B, T, C = dy.shape
    dwpe = zeros(wpe.shape, FLOAT32)
    dwpe[start : start + T] = sum_rows(dy.reshape(B, T * C)).reshape(T, C)
    return dy, dwpe
