"""What no layer owns, on a GPU: adding two arrays, and changing float32 to 16 bits and back."""

import numpy as np

from npgpt.backend.cuda.compile import FLOAT32, contiguous, empty, source, width_for

THREADS = 256  # of a block, as in elementwise.cu


def add(a, b):
    """a + b for two arrays of one shape and dtype, added in float32 and rounded once.

    Returns: an array; NotImplemented if they differ in shape or dtype, or are empty.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.size == 0:
        return NotImplemented
    a, b, y = contiguous(a), contiguous(b), empty(a.shape, a.dtype)
    width = width_for(a.size, a, b, y)
    _launch("add", a.dtype, width, a, b, y)
    return y


def cast(x, dtype):
    """x in another dtype: float32, or from there bfloat16 or float16; x itself if it has it."""
    dtype = np.dtype(dtype)
    if x.dtype == dtype or x.size == 0:
        return x.astype(dtype) if x.dtype != dtype else x
    x, y = contiguous(x), empty(x.shape, dtype)
    narrow = x.dtype == FLOAT32
    half = dtype if narrow else x.dtype
    _launch(
        "narrow" if narrow else "widen", half, width_for(x.size, y if narrow else x, x, y), x, y
    )
    return y


def _launch(kernel, dtype, width, *arrays):
    n = arrays[0].size
    blocks = -(-n // (width * THREADS))
    source("elementwise.cu", dtype, WIDTH=width).launch(kernel, (blocks,), (THREADS,), (*arrays, n))
