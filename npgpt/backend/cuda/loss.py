"""Cross-entropy on a GPU: a row of logits is read once for its maximum and its sum together.

Where nobody wants the logits any more, a block goes on to the gradient of its row at once, which it
writes over them.
"""

import numpy as np

from npgpt.backend.cuda.compile import (
    FLOAT32,
    ID_TYPES,
    STATIC_SHARED_BYTES,
    VECTOR,
    contiguous,
    empty,
    source,
)

MOST_ROWS = 2**31 - 1  # blocks of a grid
# On an H100 eight blocks of 256 threads, and shared memory for rows as long as that, are what a
# multiprocessor can hold. Of longer rows it holds fewer, so those blocks are larger.
LONG_ROW = 24 * 1024  # bytes
MOST_KEPT = STATIC_SHARED_BYTES - 1024  # bytes of a row; the rest is for what the warps find


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
    lse, losses = empty((N, 1), FLOAT32), empty((N,), FLOAT32)
    kernels = _kernels(t, V, z)
    _launch(kernels, "cross_entropy_rows", N, (z, t, lse, losses, smoothing, V))
    return _mean(kernels, losses), (logits, targets, lse)


def cross_entropy_backward(dloss, cache):
    return _backward(dloss, cache, 0.0)


def smooth_cross_entropy_backward(dloss, cache):
    plain, smoothing = cache
    return _backward(dloss, plain, smoothing)


def _backward(dloss, cache, smoothing):
    logits, targets, lse = cache
    if not _fit(logits, targets):
        return NotImplemented
    V = logits.shape[-1]
    N = logits.size // V
    z, t, dz = contiguous(logits), contiguous(targets), empty(logits.shape, logits.dtype)
    ending, scale = _scale(dloss, N)
    arguments = z, t, contiguous(lse), dz, *scale, smoothing, V
    _launch(_kernels(t, V, z, dz), f"cross_entropy_backward{ending}", N, arguments)
    return dz


def loss_and_gradient_in_place(logits, targets, scale, smoothing):
    """Both passes at once, the second written over the logits: there is no larger tensor.

    Args:    as of npgpt.model.loss_and_dlogits.
    Returns: loss (), and the logits' array, which now holds dlogits; or NotImplemented.
    """
    fits = 0.0 <= smoothing < 1.0 and _fit(logits, targets) and logits.flags.c_contiguous
    if not fits:
        return NotImplemented
    V = logits.shape[-1]
    N = logits.size // V
    t, losses = contiguous(targets), empty((N,), FLOAT32)
    kernels, itemsize = _kernels(t, V, logits), logits.dtype.itemsize
    width = kernels.constants["WIDTH"]
    kept = min(-(-V // width) * width, MOST_KEPT // itemsize)  # whole vectors
    ending, scale = _scale(scale, N)
    arguments = logits, t, losses, *scale, smoothing, V, kept
    _launch(kernels, f"cross_entropy_in_place{ending}", N, arguments, kept * itemsize)
    return _mean(kernels, losses), logits


def _mean(kernels, losses):
    loss = empty((), FLOAT32)
    kernels.launch("cross_entropy_mean", (1,), (1024,), (losses, loss, losses.size))
    return loss


def _scale(dloss, N):
    """Which of two kernels multiplies by dloss / N, and the arguments that it takes for it."""
    if isinstance(dloss, int | float | np.generic):
        return "", (dloss / N,)
    return "_of", (dloss, 1.0 / N)  # known on the device only


def _fit(logits, targets):
    """Whether there is a target for each row, of a type that is known here."""
    return (
        targets.shape == logits.shape[:-1]
        and targets.dtype.name in ID_TYPES
        and 0 < logits.size
        and targets.size <= MOST_ROWS
    )


def _kernels(targets, V, *arrays):
    """The kernels for rows of V; vectors are of use if all arrays' rows begin alike in them."""
    itemsize = arrays[0].dtype.itemsize
    alike = len({z.data.ptr % VECTOR for z in arrays}) == 1
    return source(
        "loss.cu", arrays[0].dtype, ID=ID_TYPES[targets.dtype.name],
        WIDTH=VECTOR // itemsize if alike else 1, THREADS=512 if V * itemsize > LONG_ROW else 256,
    )  # fmt: skip


def _launch(kernels, name, N, arguments, shared_bytes=0):
    """A block for each of N rows."""
    kernels.launch(name, (N,), (kernels.constants["THREADS"],), arguments, shared_bytes)
