"""Linear layers on a CPU: products of small matrices; a BLAS library does the larger ones."""

import numpy as np

from npgpt.backend.cpu.matmul import multiply_large
from npgpt.backend.cpu.memory import in_rows

# From how many rows on, and up to how many weights, the product here is faster than OpenBLAS's.
LEAST_ROWS = 32
MOST_WEIGHTS = 1 << 19


def linear_forward(x, w):
    if w.ndim != 2 or w.shape[0] != x.shape[-1] or not _suits(x, w):
        return NotImplemented
    matrix, turned = _in_memory(w)
    rows = in_rows(x)  # (R, C)
    y = np.empty((rows.shape[0], w.shape[1]), x.dtype)
    multiply_large(y, rows, matrix, False, turned)
    return y.reshape(*x.shape[:-1], w.shape[1]), (x, w)


def linear_backward(dy, cache):
    x, w = cache
    if dy.shape != (*x.shape[:-1], w.shape[1]) or not _suits(x, w):
        return NotImplemented
    matrix, turned = _in_memory(w)
    rows, drows = in_rows(x), in_rows(dy)  # (R, C), (R, N)
    dx = np.empty(rows.shape, x.dtype)
    multiply_large(dx, drows, matrix, False, not turned)
    dmatrix = np.empty(matrix.shape, w.dtype)  # in the order of w's own memory
    if turned:
        multiply_large(dmatrix, drows, rows, True, False)
    else:
        multiply_large(dmatrix, rows, drows, True, False)
    return dx.reshape(x.shape), dmatrix.T if turned else dmatrix


def _suits(x, w):
    return 0 < w.size <= MOST_WEIGHTS and x.size >= LEAST_ROWS * x.shape[-1]


def _in_memory(w):
    """w, or what it is a transposed view of, as it lies in memory; and whether it is turned."""
    if w.T.flags.c_contiguous and not w.flags.c_contiguous:
        return w.T, True
    return np.ascontiguousarray(w), False
