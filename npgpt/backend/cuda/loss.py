"""Cross-entropy on a GPU: a row of logits is read once for its maximum and its sum together."""

import numpy as np

from npgpt.backend.cuda.compile import FLOAT32, ID_TYPES, contiguous, empty, source, width_for

THREADS = 256  # of a block, as in loss.cu
MOST_ROWS = 2**31 - 1  # blocks of a grid


def cross_entropy_forward(logits, targets):
    return _forward(logits, targets, 0.0)


def smooth_cross_entropy_forward(logits, targets, smoothing):
    result = _forward(logits, targets, smoothing) if 0.0 <= smoothing < 1.0 else NotImplemented
    if result is NotImplemented:
        return result
    loss, cache = result
    return loss, (cache, smoothing)


def _forward(logits, targets, smoothing):
    if not _fit(logits, targets):
        return NotImplemented
    V = logits.shape[-1]
    N = logits.size // V
    z, t = contiguous(logits), contiguous(targets)
    lse, losses, loss = empty((N, 1), FLOAT32), empty((N,), FLOAT32), empty((), FLOAT32)
    kernels = _kernels(t, V, z)
    kernels.launch("cross_entropy_rows", (N,), (THREADS,), (z, t, lse, losses, smoothing, V))
    kernels.launch("cross_entropy_mean", (1,), (1024,), (losses, loss, N))
    return loss, (logits, targets, lse)


def cross_entropy_backward(dloss, cache):
    logits, targets, lse = cache
    if not _fit(logits, targets):
        return NotImplemented
    return _backward(dloss, cache, 0.0, empty(logits.shape, logits.dtype))


def smooth_cross_entropy_backward(dloss, cache):
    (logits, targets, _), smoothing = cache
    if not _fit(logits, targets):
        return NotImplemented
    return _backward(dloss, cache[0], smoothing, empty(logits.shape, logits.dtype))


def backward_in_place(dloss, cache):
    """smooth_cross_entropy_backward, written over the logits: there is no larger tensor.

    Args:    dloss and cache, as there; the cached logits must be without gaps in memory.
    Returns: the logits' array, which now holds dlogits.
    """
    plain, smoothing = cache
    return _backward(dloss, plain, smoothing, plain[0])


def _backward(dloss, cache, smoothing, dz):
    logits, targets, lse = cache
    V = logits.shape[-1]
    N = logits.size // V
    z, t = contiguous(logits), contiguous(targets)
    known = isinstance(dloss, int | float | np.generic)  # on the host, and not on the device only
    _kernels(t, V, z, dz).launch(
        "cross_entropy_backward" if known else "cross_entropy_backward_of", (N,), (THREADS,),
        (z, t, contiguous(lse), dz, *((dloss / N,) if known else (dloss, 1.0 / N)), smoothing, V),
    )  # fmt: skip
    return dz


def _fit(logits, targets):
    """Whether there is a target for each row, of a type that is known here."""
    return (
        targets.shape == logits.shape[:-1]
        and targets.dtype.name in ID_TYPES
        and 0 < logits.size
        and targets.size <= MOST_ROWS
    )


def _kernels(targets, V, *arrays):
    return source(
        "loss.cu", arrays[0].dtype, WIDTH=width_for(V, *arrays), ID=ID_TYPES[targets.dtype.name]
    )
