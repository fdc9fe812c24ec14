"""RMSNorm on a GPU: limited by memory, so each number is fetched from it once."""

from npgpt.backend.cuda.columns import sum_columns
from npgpt.backend.cuda.compile import FLOAT32, contiguous, empty, source, width_for

WARPS = 4  # of a block, as in rmsnorm.cu
THREADS = 32 * WARPS
MOST_PARTS = 1024  # rows of partial sums of dw: as many blocks as fill a large GPU
SLICE = 3072  # channels: WARPS sums of so many fit into 48 KB of shared memory


def rmsnorm_forward(x, w, eps=1e-5):
    if w.shape != x.shape[-1:] or x.size == 0 or w.dtype != x.dtype:
        return NotImplemented
    rows, gain = contiguous(x), contiguous(w)
    C = x.shape[-1]
    N = x.size // C
    y, rstd = empty(x.shape, x.dtype), empty((*x.shape[:-1], 1), FLOAT32)
    source("rmsnorm.cu", x.dtype, WIDTH=width_for(C, rows, gain, y)).launch(
        "rmsnorm_forward", (-(-N // WARPS),), (THREADS,), (rows, gain, y, rstd, N, C, eps)
    )
    return y, (x, w, rstd)


def rmsnorm_backward(dy, cache):
    return backward_onto(None, dy, cache)


def backward_onto(past, dy, cache):
    """rmsnorm_backward, and the sum of its dx with another array, which is rounded once.

    Args:    past, as dy, or None; dy; cache.
    """
    x, w, rstd = cache
    C = x.shape[-1]
    if dy.shape != x.shape or x.size == 0 or rstd.dtype != FLOAT32:
        return NotImplemented
    rows, drows, gain, rstd = (contiguous(z) for z in (x, dy, w, rstd))
    N = x.size // C
    parts, slice = min(-(-N // WARPS), MOST_PARTS), min(C, SLICE)
    dx, partial = empty(x.shape, x.dtype), empty((parts, C), FLOAT32)
    stream = drows if past is None else contiguous(past)  # without past, nobody reads it
    source("rmsnorm.cu", x.dtype, WIDTH=width_for(C, rows, drows, stream, gain, dx)).launch(
        "rmsnorm_backward", (parts, -(-C // slice)), (THREADS,),
        (drows, rows, gain, rstd, stream, dx, partial, N, C, slice, past is not None),
        shared_bytes=WARPS * slice * 4,
    )  # fmt: skip
    return dx, sum_columns(partial)
