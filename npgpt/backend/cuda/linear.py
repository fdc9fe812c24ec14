"""Linear layers on a GPU: the matrix products, by cublasLt.

The gradient of a weight is a sum over all tokens of a batch. It comes back in float32 whatever the
activations are: a sum of so many terms, and the memory of AdamW that it goes into, need the
places after the point that bfloat16 lacks. In a step it never stands alone: the product that makes
it adds it to the gradient so far, where that lies.
"""

import numpy as np

from npgpt.backend.cuda.compile import empty, say
from npgpt.backend.cuda.cublaslt import open_library
from npgpt.backend.cuda.matrices import lie
from npgpt.backend.cuda.shared_row import add_row, sum_rows

f32 = np.dtype(np.float32)


class Products:
    """How products are made in this process.

    Attributes: tf32, whether those of float32 numbers may read ten of their 23 binary places, which
                is several times as fast; said, whether it was told that cublasLt is missing.
    """

    tf32 = False
    said = False


def linear_forward(x, w):
    return forward_onto(None, x, w)


def forward_onto(past, x, w):
    """linear_forward, and the sum of its y with another array, which is rounded once.

    Args:    past, as y, or None; x; w.
    """
    if w.ndim != 2 or w.shape[0] != x.shape[-1] or not _suits(x, w):
        return NotImplemented
    shape = (*x.shape[:-1], w.shape[1])
    if past is not None and (past.shape != shape or past.dtype != x.dtype):
        return NotImplemented
    rows = _rows(x)  # (R, C)
    y = empty((rows.shape[0], w.shape[1]), x.dtype)
    multiply(y, rows, w, None if past is None else _rows(past))
    return y.reshape(shape), (x, w)


def linear_backward(dy, cache):
    x, w = cache
    if not _suits(x, w):
        return NotImplemented
    # A turned view's gradient lies as the table does that it is a view of.
    dw = empty(w.shape[::-1], f32).T if lie(w)[0] else empty(w.shape, f32)
    dx = backward_into(dy, cache, dw, False)
    return dx if dx is NotImplemented else (dx, dw)


def backward_into(dy, cache, dw, add):
    """The dx of linear_backward, whose dw is written to an array, or added to what is in it.

    Args:    dy; cache; dw (C, N) float32, without gaps, or a turned view of what has none; add.
    Returns: dx; or NotImplemented, and then dw is as it was.
    """
    x, w = cache
    if dy.shape != (*x.shape[:-1], w.shape[1]) or dy.dtype != x.dtype or not _suits(x, w):
        return NotImplemented
    turned = not dw.flags.c_contiguous
    dmatrix = dw.T if turned else dw
    if dw.shape != w.shape or dw.dtype != f32 or not dmatrix.flags.c_contiguous:
        return NotImplemented
    rows, drows = _rows(x), _rows(dy)  # (R, C), (R, N)
    dx = empty(rows.shape, x.dtype)
    multiply(dx, drows, w.T)
    left, right = (drows, rows) if turned else (rows, drows)
    multiply(dmatrix, left.T, right, dmatrix if add else None)
    return dx.reshape(x.shape)


def affine_forward(x, w, b):
    if b.shape != w.shape[1:] or b.dtype != x.dtype:
        return NotImplemented
    result = linear_forward(x, w)
    if result is NotImplemented:
        return result
    rows = _rows(result[0])  # (R, N)
    add_row(rows, b, rows)
    return result


def affine_backward(dy, cache):
    result = linear_backward(dy, cache)
    if result is NotImplemented:
        return result
    return *result, sum_rows(_rows(dy))  # the bias's gradient: (N,)


def multiply(out, a, b, add=None):
    """out = a @ b, or add + a @ b, by cublasLt, or where that can't, by the array's own product.

    Args:    out (m, n), without gaps; a (m, k), b (k, n), of one dtype; add, None, or an array as
             out, or out itself: then the product is added to what is in it.
    """
    library, reason = open_library()
    if library is None:
        _say_once(reason)
    if library is None or not library.multiply(out, a, b, add, Products.tf32):
        product = np.matmul(a.astype(f32), b.astype(f32))  # float32: so bfloat16 is summed as well
        out[...] = (product if add is None else add.astype(f32) + product).astype(out.dtype)


def _suits(x, w):
    return x.dtype == w.dtype and x.size > 0 and w.size > 0 and lie(w) is not None


def _rows(x):
    """x as a matrix of its last axis, without gaps: a view where it can be."""
    return x.reshape(-1, x.shape[-1])


def _say_once(reason):
    if not Products.said:
        Products.said = True
        say(
            "cublasLt can't be used, so matrix products go by way of CuPy, which is slower: "
            f"{reason}"
        )
