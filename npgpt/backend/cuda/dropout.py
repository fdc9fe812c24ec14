"""Dropout on a GPU: the mask is never written, as it is made again of each number's place."""

import numpy as np

from npgpt.backend.cuda.compile import contiguous, empty, from_host, source, width_for

THREADS = 256  # of a block, as in dropout.cu
UINT64 = np.dtype(np.uint64)


def dropout_forward(x, rate, key, start=0):
    if not 0.0 <= rate < 1.0 or x.size == 0:
        return NotImplemented
    return _apply(x, mask_of(rate, key, start)), (rate, key, start)


def dropout_backward(dy, cache):
    return NotImplemented if dy.size == 0 else _apply(dy, mask_of(*cache))


def mask_of(rate, key, start):
    """A mask as kernels want it: the key in the device's memory, start, least and scale.

    Args:    rate and start, as of dropout_forward; key too, or it lies in the device's memory
             already, as (1,) uint64.
    """
    if isinstance(key, int | np.integer):
        key = from_host(np.array([key], UINT64))
    return key, start, int(rate * 2.0**64), 1.0 / (1.0 - rate)


def no_mask():
    """What a kernel is given in the place of a mask that it does not read."""
    return empty((1,), UINT64), 0, 0, 1.0


def _apply(x, mask):
    """x · m, for each number of x."""
    x, y = contiguous(x), empty(x.shape, x.dtype)
    width = width_for(x.size, x, y)
    source("dropout.cu", x.dtype, WIDTH=width).launch(
        "dropout", (-(-x.size // (width * THREADS)),), (THREADS,), (x, y, *mask, x.size)
    )
    return y
