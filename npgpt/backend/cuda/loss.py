"""Cross-entropy on a GPU: a row of logits is read once for its maximum and its sum together."""

from npgpt.backend.cuda.compile import FLOAT32, ID_TYPES, contiguous, empty, source, width_for

THREADS = 256  # of a block, as in loss.cu
MOST_ROWS = 2**31 - 1  # blocks of a grid


def cross_entropy_forward(logits, targets):
    if not _fit(logits, targets):
        return NotImplemented
    V = logits.shape[-1]
    N = logits.size // V
    z, t = contiguous(logits), contiguous(targets)
    lse, losses, loss = empty((N, 1), FLOAT32), empty((N,), FLOAT32), empty((), FLOAT32)
    kernels = _kernels(t, V, z)
    kernels.launch("cross_entropy_rows", (N,), (THREADS,), (z, t, lse, losses, V))
    kernels.launch("cross_entropy_mean", (1,), (1024,), (losses, loss, N))
    return loss, (logits, targets, lse)


def cross_entropy_backward(dloss, cache):
    logits, targets, lse = cache
    if not _fit(logits, targets):
        return NotImplemented
    return _backward(dloss, logits, targets, lse, empty(logits.shape, logits.dtype))


def backward_in_place(dloss, cache):
    """cross_entropy_backward, written over the logits: of the largest tensor there is then one.

    Args:    dloss and cache, as there; the cached logits must be without gaps in memory.
    Returns: the logits' array, which now holds dlogits.
    """
    logits, targets, lse = cache
    return _backward(dloss, logits, targets, lse, logits)


def _backward(dloss, logits, targets, lse, dz):
    V = logits.shape[-1]
    N = logits.size // V
    z, t = contiguous(logits), contiguous(targets)
    _kernels(t, V, z, dz).launch(
        "cross_entropy_backward", (N,), (THREADS,), (z, t, contiguous(lse), dz, dloss / N, V)
    )
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
