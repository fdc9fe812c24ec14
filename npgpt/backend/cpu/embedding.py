"""The embedding on a CPU: only its scatter-add, as NumPy's own lookup is as fast as memory."""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.memory import ids_below, in_rows


def embedding_backward(dx, cache):
    ids, w = cache
    flat = ids_below(w.shape[0], ids)  # (N,)
    if flat is None or dx.shape != (*ids.shape, w.shape[1]) or ids.size == 0:
        return NotImplemented
    dw = np.zeros(w.shape, w.dtype)
    _backward(in_rows(dx), flat, dw)
    return dw


@kernel
def _backward(dx, ids, dw):
    """dw[ids] += dx, one place after the other, so that the sum has one order."""
    N, C = dx.shape
    for n in range(N):
        row = ids[n]
        for c in range(C):
            dw[row, c] += dx[n, c]
