"""Linear layers on a CPU with AVX-512, where the product in matmul.py is faster than OpenBLAS's.

On other processors it is faster for small matrices only, and where NumPy brings a maker's own
library (Intel's MKL, Apple's Accelerate), not even there: then the text runs, with NumPy's product.

With --dtype bf16 all products are made here, of factors that are rounded: see matmul_bf16.py.
"""

import sys

import numpy as np

from npgpt.backend.cpu import matmul_bf16
from npgpt.backend.cpu.matmul import multiply_large
from npgpt.backend.cpu.memory import in_rows
from npgpt.backend.cpu.tile import LANES

LEAST_ROWS = 32  # for fewer, as when sampling, strips of rows would be mostly empty
# Up to how many weights the product here is the faster one.
_built_with = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
_OPENBLAS = "openblas" in _built_with.get("name", "").lower()
MOST_WEIGHTS = 0 if not _OPENBLAS else sys.maxsize if LANES == 16 else 1 << 19
_bf16 = False  # whether factors are rounded; of the whole process, as its threads share the work


def round_factors(dtype, emulate=False):
    """Choose what the factors of matrix products are rounded to from now on.

    Args:    dtype, "float32", which rounds nothing, or "bf16"; emulate, whether a processor
             that has no bf16 may pretend, which is slower than float32.
    Returns: whether the choice holds: False leaves float32 on a processor without bf16.
    """
    global _bf16
    _bf16 = dtype == "bf16" and (matmul_bf16.NATIVE or emulate)
    return _bf16 or dtype == "float32"


def _multiply(c, a, b, a_turned, b_turned):
    """C = A @ B; each factor as it lies in memory, and whether it is to be turned."""
    multiply = matmul_bf16.multiply_bf16 if _bf16 else multiply_large
    multiply(c, a, b, a_turned, b_turned)


def linear_forward(x, w):
    if w.ndim != 2 or w.shape[0] != x.shape[-1] or not _suits(x, w):
        return NotImplemented
    matrix, turned = _in_memory(w)
    rows = in_rows(x)  # (R, C)
    y = np.empty((rows.shape[0], w.shape[1]), x.dtype)
    _multiply(y, rows, matrix, False, turned)
    return y.reshape(*x.shape[:-1], w.shape[1]), (x, w)


def linear_backward(dy, cache):
    x, w = cache
    if dy.shape != (*x.shape[:-1], w.shape[1]) or not _suits(x, w):
        return NotImplemented
    matrix, turned = _in_memory(w)
    rows, drows = in_rows(x), in_rows(dy)  # (R, C), (R, N)
    dx = np.empty(rows.shape, x.dtype)
    _multiply(dx, drows, matrix, False, not turned)
    dmatrix = np.empty(matrix.shape, w.dtype)  # in the order of w's own memory
    if turned:
        _multiply(dmatrix, drows, rows, True, False)
    else:
        _multiply(dmatrix, rows, drows, True, False)
    return dx.reshape(x.shape), dmatrix.T if turned else dmatrix


def _suits(x, w):
    most = sys.maxsize if _bf16 else MOST_WEIGHTS
    return 0 < w.size <= most and x.size >= LEAST_ROWS * x.shape[-1]


def _in_memory(w):
    """w, or what it is a transposed view of, as it lies in memory; and whether it is turned."""
    if w.T.flags.c_contiguous and not w.flags.c_contiguous:
        return w.T, True
    return np.ascontiguousarray(w), False
