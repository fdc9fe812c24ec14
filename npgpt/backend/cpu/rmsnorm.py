"""RMSNorm on a CPU: a row is read once for its sum of squares, and once more from the cache."""

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.memory import in_rows

f32 = np.float32
# The rows of dw are added up in groups, as one long sum in float32 would gather rounding errors.
GROUP = 32


def rmsnorm_forward(x, w, eps=1e-5):
    if w.shape != x.shape[-1:] or x.size == 0:
        return NotImplemented
    rows = in_rows(x)  # (N, C)
    y, rstd = np.empty_like(rows), np.empty((*x.shape[:-1], 1), x.dtype)
    _forward(rows, np.ascontiguousarray(w), eps, y, rstd.reshape(-1))
    return y.reshape(x.shape), (x, w, rstd)


def rmsnorm_backward(dy, cache):
    return backward_onto(None, dy, cache)


def backward_onto(past, dy, cache):
    """rmsnorm_backward, whose dx is added to past (..., C), or to nothing where that is None."""
    x, w, rstd = cache
    adds = past is not None
    past = past if adds else dy
    if not dy.shape == x.shape == past.shape or x.size == 0:
        return NotImplemented
    rows, drows, before = (in_rows(z) for z in (x, dy, past))  # (N, C)
    dx, dw = np.empty_like(rows), np.zeros_like(w)
    _backward(drows, rows, np.ascontiguousarray(w), rstd.reshape(-1), before, adds, dx, dw)
    return dx.reshape(x.shape), dw


@kernel
def _forward(x, w, eps, y, rstd):
    """y = x · rstd · w, and rstd = (mean(x²) + eps)^(−1/2), for rows x (N, C)."""
    N, C = x.shape
    for n in range(N):
        r = f32(1) / np.sqrt(_squares(x, n) / f32(C) + f32(eps))
        rstd[n] = r
        for c in range(C):
            y[n, c] = x[n, c] * r * w[c]


@kernel
def _backward(dy, x, w, rstd, past, adds, dx, dw):
    """dx = rstd · (g − x̂ · mean(g · x̂)) with g = dy · w, and dw += Σ_rows dy · x̂.

    If adds, past is added to dx.
    """
    N, C = x.shape
    group = np.empty(C, np.float32)
    for start in range(0, N, GROUP):
        group[:] = f32(0)
        for n in range(start, min(start + GROUP, N)):
            r = rstd[n]
            mean = _along(dy, w, x, n) * r / f32(C)
            for c in range(C):
                xhat = x[n, c] * r
                change = r * (dy[n, c] * w[c] - xhat * mean)
                dx[n, c] = past[n, c] + change if adds else change
                group[c] += dy[n, c] * xhat
        for c in range(C):
            dw[c] += group[c]


@kernel(fastmath=REORDER)
def _squares(x, n):
    """Σ x² over row n."""
    total = f32(0)
    for c in range(x.shape[1]):
        total += x[n, c] * x[n, c]
    return total


@kernel(fastmath=REORDER)
def _along(dy, w, x, n):
    """Σ dy · w · x over row n."""
    total = f32(0)
    for c in range(x.shape[1]):
        total += dy[n, c] * w[c] * x[n, c]
    return total
