"""Cross-entropy on a CPU: a row of logits stays in the cache from its maximum to its sum.

Where nobody wants the logits any more, it stays there until its gradient stands in its place:
exp(z − max z), whose sum the loss needs, is kept where z was, and divided by that sum when it is
known. So the largest tensor of all is read from memory once, and there is only one of it.
"""

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


def loss_and_gradient_in_place(logits, targets, scale, smoothing):
    """The loss, and scale times its gradient: in the memory of the logits, if that is one piece."""
    if targets.shape != logits.shape[:-1] or logits.size == 0 or not 0.0 <= smoothing < 1.0:
        return NotImplemented
    t = ids_below(logits.shape[-1], targets)  # (N,)
    if t is None:
        return NotImplemented
    rows = in_rows(logits)  # (N, V)
    loss = _in_place(rows, t, scale / rows.shape[0], smoothing)
    return logits.dtype.type(loss), rows.reshape(logits.shape)


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


@kernel
def _in_place(z, targets, scale, smoothing):
    """The mean loss of logits z (N, V), which become (exp(z − lse) − q) · scale.

    q is smoothing/V everywhere, and 1 − smoothing more at the target.
    """
    N, V = z.shape
    lanes = np.empty(LANES, np.float32)
    s, everywhere = f32(scale), f32(scale * smoothing / V)
    loss = 0.0
    for n in range(N):
        t, peak = targets[n], _peak(z, n, lanes)
        below = z[n, t] - peak
        if smoothing > 0.0:
            loss += smoothing * (below - _mean_below(z, n, peak))
        total = _exponentials(z, n, peak)
        loss += np.log(total) - below
        factor = s / total
        at_target = (z[n, t] - total) * factor  # (p − 1) · scale
        for v in range(V):
            z[n, v] = z[n, v] * factor - everywhere
        z[n, t] = at_target + f32(scale * smoothing) - everywhere
    return loss / N


@kernel(fastmath=REORDER)
def _exponentials(z, n, peak):
    """Write exp(z − peak) over row n, and return their sum."""
    total = f32(0)
    for v in range(z.shape[1]):
        e = exp(z[n, v] - peak)
        z[n, v] = e
        total += e
    return total


@kernel(fastmath=REORDER)
def _mean_below(z, n, peak):
    """The mean of z − peak over row n."""
    total = f32(0)
    for v in range(z.shape[1]):
        total += z[n, v] - peak
    return total / f32(z.shape[1])
