"""Linear layers on a CPU with AVX-512, where the product in matmul.py is faster than OpenBLAS's.

On other processors it is faster for small matrices only, and where NumPy brings a maker's own
library (Intel's MKL, Apple's Accelerate), not even there: then the text runs, with NumPy's product.

With --dtype bf16 or fp16 all products are made here, of factors that are rounded: see
matmul_bf16.py and matmul_fp16.py.
"""

import sys

import numpy as np

from npgpt.backend.cpu import matmul_bf16
from npgpt.backend.cpu.matmul import multiply_large, multiply_onto
from npgpt.backend.cpu.matmul_bf16 import multiply_bf16
from npgpt.backend.cpu.matmul_fp16 import multiply_fp16
from npgpt.backend.cpu.memory import in_rows
from npgpt.backend.cpu.tile import LANES

LEAST_ROWS = 32  # for fewer, as when sampling, strips of rows would be mostly empty
# Up to how many weights the product here is the faster one.
_built_with = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
_OPENBLAS = "openblas" in _built_with.get("name", "").lower()
MOST_WEIGHTS = 0 if not _OPENBLAS else sys.maxsize if LANES == 16 else 1 << 19
MULTIPLY = {"float32": multiply_large, "bf16": multiply_bf16, "fp16": multiply_fp16}
_dtype = "float32"  # of the factors; of the whole process, as its threads share the work


def round_factors(dtype, emulate=False):
    """Choose what the factors of matrix products are rounded to from now on.

    Args:    dtype, "float32", which rounds nothing, "bf16" or "fp16"; emulate, whether bf16 may be
             slower than float32, as on a processor that has to pretend.
    Returns: whether the choice holds: False leaves float32 where it is faster than bf16.
    """
    global _dtype
    pays = matmul_bf16.NATIVE and not matmul_bf16.SLOW
    _dtype = dtype if dtype != "bf16" or pays or emulate else "float32"
    return _dtype == dtype


def linear_forward(x, w):
    if not _chains(x, w):
        return NotImplemented
    matrix, turned = _in_memory(w)
    rows = in_rows(x)  # (R, C)
    y = np.empty((rows.shape[0], w.shape[1]), x.dtype)
    MULTIPLY[_dtype](y, rows, matrix, False, turned, False)
    return y.reshape(*x.shape[:-1], w.shape[1]), (x, w)


def forward_onto(past, x, w):
    """linear_forward, and past + y in place of y."""
    if _dtype != "float32" or not _chains(x, w) or past.shape != (*x.shape[:-1], w.shape[1]):
        return NotImplemented
    matrix, turned = _in_memory(w)
    y = np.empty(past.shape, x.dtype)
    multiply_onto(in_rows(y), in_rows(past), in_rows(x), matrix, False, turned, True)
    return y, (x, w)


def affine_forward(x, w, b):
    result = linear_forward(x, w)
    if result is NotImplemented or b.shape != w.shape[1:]:
        return NotImplemented
    y, cache = result
    y += b
    return y, cache


def linear_backward(dy, cache):
    _, w = cache
    matrix, turned = _in_memory(w)
    dmatrix = np.empty(matrix.shape, w.dtype)  # in the order of w's own memory
    dw = dmatrix.T if turned else dmatrix
    dx = backward_into(dy, cache, dw, False)
    return dx if dx is NotImplemented else (dx, dw)


def backward_into(dy, cache, dw, add):
    """The dx of linear_backward, whose dw is written to an array, or added to what is in it.

    Args:    dy; cache; dw (C, N), which lies in memory as w does; add.
    Returns: dx; or NotImplemented, and then dw is as it was.
    """
    if not fit(dy, cache, dw):
        return NotImplemented
    dx = input_gradient(dy, cache)
    weight_gradient_into(dy, cache, dw, add)
    return dx


def fit(dy, cache, dw):
    """Whether the products here are made for such arrays, as backward_into's."""
    x, w = cache
    if dy.shape != (*x.shape[:-1], w.shape[1]) or not _suits(x, w):
        return False
    matrix, turned = _in_memory(w)
    dmatrix = dw.T if turned else dw
    return dmatrix.shape == matrix.shape and dmatrix.flags.c_contiguous


def input_gradient(dy, cache):
    """dx = dy @ wᵀ, for arrays that fit."""
    x, w = cache
    matrix, turned = _in_memory(w)
    dx = np.empty((x.size // x.shape[-1], x.shape[-1]), x.dtype)  # (R, C)
    MULTIPLY[_dtype](dx, in_rows(dy), matrix, False, not turned, False)
    return dx.reshape(x.shape)


def weight_gradient_into(dy, cache, dw, add):
    """dw = xᵀ @ dy, or dw += xᵀ @ dy if add, for arrays that fit."""
    x, w = cache
    rows, drows = in_rows(x), in_rows(dy)  # (R, C), (R, N)
    if _in_memory(w)[1]:
        MULTIPLY[_dtype](dw.T, drows, rows, True, False, add)
    else:
        MULTIPLY[_dtype](dw, rows, drows, True, False, add)


def _chains(x, w):
    """Whether x can be multiplied by w, and should be here."""
    return w.ndim == 2 and w.shape[0] == x.shape[-1] and _suits(x, w)


def _suits(x, w):
    most = MOST_WEIGHTS if _dtype == "float32" else sys.maxsize
    return 0 < w.size <= most and x.size >= LEAST_ROWS * x.shape[-1]


def _in_memory(w):
    """w, or what it is a transposed view of, as it lies in memory; and whether it is turned."""
    if w.T.flags.c_contiguous and not w.flags.c_contiguous:
        return w.T, True
    return np.ascontiguousarray(w), False
