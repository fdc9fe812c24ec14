"""The embedding on a CPU: only its scatter-add, as NumPy's own lookup is as fast as memory."""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.memory import ids_below, in_rows


def embedding_backward(dx, cache):
    dw = np.zeros(cache[1].shape, cache[1].dtype)
    return NotImplemented if add_rows(dx, cache, dw) is NotImplemented else dw


def add_rows(dx, cache, dw):
    """Add each row of dx to the row of dw that its id names.

    Args:    dx; cache, as for embedding_backward; dw (V, C), added to.
    Returns: None; or NotImplemented, and then dw is as it was.
    """
    ids, w = cache
    flat = ids_below(w.shape[0], ids)  # (N,)
    if flat is None or dx.shape != (*ids.shape, w.shape[1]) or ids.size == 0:
        return NotImplemented
    if dw.shape != w.shape or not dw.flags.c_contiguous:
        return NotImplemented
    _backward(in_rows(dx), flat, dw)
    return None


@kernel
def _backward(dx, ids, dw):
    """dw[ids] += dx, one place after the other, so that the sum has one order."""
    N, C = dx.shape
    for n in range(N):
        row = ids[n]
        for c in range(C):
            dw[row, c] += dx[n, c]
