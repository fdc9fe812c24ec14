"""LayerNorm on a CPU: a row is read once, and then from the cache for its variance and for y."""

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.memory import in_rows

f32 = np.float32
# The rows of dw and db are added up in groups, as one long sum in float32 would gather errors.
GROUP = 32


def layernorm_forward(x, w, b=None, eps=1e-5):
    if w.shape != x.shape[-1:] or (b is not None and b.shape != w.shape) or x.size == 0:
        return NotImplemented
    rows = in_rows(x)  # (N, C)
    y = np.empty_like(rows)
    mean, rstd = np.empty((2, *x.shape[:-1], 1), x.dtype)
    shift = np.zeros_like(w) if b is None else np.ascontiguousarray(b)
    _forward(rows, np.ascontiguousarray(w), shift, eps, y, mean.reshape(-1), rstd.reshape(-1))
    return y.reshape(x.shape), (x, w, mean, rstd)


def layernorm_backward(dy, cache):
    return backward_onto(None, dy, cache)


def backward_onto(past, dy, cache):
    """layernorm_backward, whose dx is added to past (..., C), or to nothing where that is None."""
    x, w, mean, rstd = cache
    adds = past is not None
    past = past if adds else dy
    if not dy.shape == x.shape == past.shape or x.size == 0:
        return NotImplemented
    rows, drows, before = (in_rows(z) for z in (x, dy, past))  # (N, C)
    dx, dw, db = np.empty_like(rows), np.zeros_like(w), np.zeros_like(w)
    gain, mean, rstd = np.ascontiguousarray(w), mean.reshape(-1), rstd.reshape(-1)
    _backward(drows, rows, gain, mean, rstd, before, adds, dx, dw, db)
    return dx.reshape(x.shape), dw, db


@kernel
def _forward(x, w, b, eps, y, mean, rstd):
    """y = x̂ · w + b with x̂ = (x − mean) · rstd, for rows x (N, C)."""
    N, C = x.shape
    for n in range(N):
        m = _sum(x, n) / f32(C)
        r = f32(1) / np.sqrt(_squares(x, n, m) / f32(C) + f32(eps))
        mean[n], rstd[n] = m, r
        for c in range(C):
            y[n, c] = (x[n, c] - m) * r * w[c] + b[c]


@kernel(fastmath=frozenset())  # a fused dy · w − mean(g) would be no zero where it should be
def _backward(dy, x, w, mean, rstd, past, adds, dx, dw, db):
    """dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)) with g = dy · w; dw, db += over the rows.

    If adds, past is added to dx.
    """
    N, C = x.shape
    scaled, moved = np.empty(C, np.float32), np.empty(C, np.float32)
    for start in range(0, N, GROUP):
        scaled[:] = f32(0)
        moved[:] = f32(0)
        for n in range(start, min(start + GROUP, N)):
            m, r = mean[n], rstd[n]
            mean_g = _dot(dy, w, n) / f32(C)
            along = _along(dy, w, x, n, m) * r / f32(C)
            for c in range(C):
                xhat = (x[n, c] - m) * r
                change = r * (dy[n, c] * w[c] - mean_g - xhat * along)
                dx[n, c] = past[n, c] + change if adds else change
                scaled[c] += dy[n, c] * xhat
                moved[c] += dy[n, c]
        for c in range(C):
            dw[c] += scaled[c]
            db[c] += moved[c]


@kernel(fastmath=REORDER)
def _sum(x, n):
    """Σ x over row n."""
    total = f32(0)
    for c in range(x.shape[1]):
        total += x[n, c]
    return total


@kernel(fastmath=REORDER)
def _squares(x, n, mean):
    """Σ (x − mean)² over row n."""
    total = f32(0)
    for c in range(x.shape[1]):
        total += (x[n, c] - mean) * (x[n, c] - mean)
    return total


@kernel(fastmath=REORDER)
def _dot(dy, w, n):
    """Σ dy · w over row n."""
    total = f32(0)
    for c in range(dy.shape[1]):
        total += dy[n, c] * w[c]
    return total


@kernel(fastmath=REORDER)
def _along(dy, w, x, n, mean):
    """Σ dy · w · (x − mean) over row n."""
    total = f32(0)
    for c in range(x.shape[1]):
        total += dy[n, c] * w[c] * (x[n, c] - mean)
    return total
