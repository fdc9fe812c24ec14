"""Cross-entropy on a CPU: a row of logits stays in the cache from its maximum to its sum."""

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.exp import exp
from npgpt.backend.cpu.memory import ids_below, in_rows

f32 = np.float32
LANES = 64  # maxima side by side: a compiler may not reorder a maximum, as of NaN it has no order


def cross_entropy_forward(logits, targets):
    if targets.shape != logits.shape[:-1] or logits.size == 0:
        return NotImplemented
    t = ids_below(logits.shape[-1], targets)  # (N,)
    if t is None:
        return NotImplemented
    rows = in_rows(logits)  # (N, V)
    lse = np.empty((rows.shape[0], 1), logits.dtype)
    loss = _forward(rows, t, lse)
    return logits.dtype.type(loss), (logits, targets, lse)


def cross_entropy_backward(dloss, cache):
    logits, targets, lse = cache
    t = ids_below(logits.shape[-1], targets)  # (N,)
    if t is None or logits.size == 0:
        return NotImplemented
    rows = in_rows(logits)  # (N, V)
    dz = np.empty_like(rows)
    _backward(dloss / rows.shape[0], rows, t, lse.reshape(-1), dz)
    return dz.reshape(logits.shape)


@kernel
def _forward(z, targets, lse):
    """The mean over rows of lse(z) − z_target, for logits z (N, V); lse (N, 1) is filled."""
    N = z.shape[0]
    lanes = np.empty(LANES, np.float32)
    loss = 0.0
    for n in range(N):
        peak = _peak(z, n, lanes)
        log_total = np.log(_total(z, n, peak))
        lse[n, 0] = peak + log_total
        loss += log_total - (z[n, targets[n]] - peak)
    return loss / N


@kernel
def _peak(z, n, lanes):
    """The largest number of row n; lanes (LANES,) is memory."""
    V = z.shape[1]
    whole = V // LANES * LANES
    lanes[:] = z[n, 0]
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], z[n, start + lane])
    peak = z[n, 0]
    for lane in range(LANES):
        peak = max(peak, lanes[lane])
    for v in range(whole, V):
        peak = max(peak, z[n, v])
    return peak


@kernel(fastmath=REORDER)
def _total(z, n, peak):
    """Σ exp(z − peak) over row n."""
    total = f32(0)
    for v in range(z.shape[1]):
        total += exp(z[n, v] - peak)
    return total


@kernel
def _backward(scale, z, targets, lse, dz):
    """dz = (exp(z − lse) − [v = target]) · scale."""
    N, V = z.shape
    s = f32(scale)
    for n in range(N):
        for v in range(V):
            dz[n, v] = exp(z[n, v] - lse[n]) * s
        t = targets[n]
        dz[n, t] = (exp(z[n, t] - lse[n]) - f32(1)) * s
