"""LayerNorm on a GPU: limited by memory, so each number is fetched from it once."""

from npgpt.backend.cuda.columns import sum_columns
from npgpt.backend.cuda.compile import FLOAT32, contiguous, empty, source, width_for

WARPS = 4  # of a block, as in layernorm.cu
THREADS = 32 * WARPS
MOST_PARTS = 1024  # rows of partial sums of dw and db: as many blocks as fill a large GPU
SLICE = 1536  # channels: WARPS sums of them for dw, and for db, fit into 48 KB of shared memory


def layernorm_forward(x, w, b=None, eps=1e-5):
    shapes = w.shape == x.shape[-1:] and (b is None or b.shape == w.shape)
    if not shapes or x.size == 0 or w.dtype != x.dtype or (b is not None and b.dtype != x.dtype):
        return NotImplemented
    rows, gain = contiguous(x), contiguous(w)
    shift = gain if b is None else contiguous(b)  # without b, nobody reads it
    C = x.shape[-1]
    N = x.size // C
    y = empty(x.shape, x.dtype)
    mean, rstd = (empty((*x.shape[:-1], 1), FLOAT32) for _ in range(2))
    width = width_for(C, rows, gain, shift, y)
    source("layernorm.cu", x.dtype, WIDTH=width).launch(
        "layernorm_forward", (-(-N // WARPS),), (THREADS,),
        (rows, gain, shift, y, mean, rstd, N, C, eps, b is not None),
    )  # fmt: skip
    return y, (x, w, mean, rstd)


def layernorm_backward(dy, cache):
    return backward_onto(None, dy, cache)


def backward_onto(past, dy, cache):
    """layernorm_backward, and the sum of its dx with another array, which is rounded once.

    Args:    past, as dy, or None; dy; cache.
    """
    x, w, mean, rstd = cache
    if dy.shape != x.shape or x.size == 0 or not mean.dtype == rstd.dtype == FLOAT32:
        return NotImplemented
    rows, drows, gain, mean, rstd = (contiguous(z) for z in (x, dy, w, mean, rstd))
    C = x.shape[-1]
    N = x.size // C
    parts, slice = min(-(-N // WARPS), MOST_PARTS), min(C, SLICE)
    dx, partial = empty(x.shape, x.dtype), empty((parts, 2 * C), FLOAT32)
    stream = drows if past is None else contiguous(past)  # without past, nobody reads it
    source("layernorm.cu", x.dtype, WIDTH=width_for(C, rows, drows, stream, gain, dx)).launch(
        "layernorm_backward", (parts, -(-C // slice)), (THREADS,),
        (drows, rows, gain, mean, rstd, stream, dx, partial, N, C, slice, past is not None),
        shared_bytes=WARPS * 2 * slice * 4,
    )  # fmt: skip
    sums = sum_columns(partial)
    return dx, sums[:C], sums[C:]
