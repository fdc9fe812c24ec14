"""SwiGLU on a GPU: the sigmoid lives in registers, and is never written to memory."""

from npgpt.backend.cuda.compile import MOST_THREADS, contiguous, empty, source, width_for

THREADS = 256  # of a block, as in swiglu.cu


def swiglu_forward(x):
    if x.shape[-1] % 2 or not 0 < x.size < MOST_THREADS:
        return NotImplemented
    rows, F = contiguous(x), x.shape[-1] // 2
    N = x.size // (2 * F)
    y = empty((*x.shape[:-1], F), x.dtype)
    width = width_for(F, rows, y)
    source("swiglu.cu", x.dtype, WIDTH=width).launch(
        "swiglu_forward", (-(-N * F // (width * THREADS)),), (THREADS,), (rows, y, N, F)
    )
    return y, (x,)


def swiglu_backward(dy, cache):
    (x,) = cache
    F = x.shape[-1] // 2
    if dy.shape != (*x.shape[:-1], F) or not 0 < x.size < MOST_THREADS:
        return NotImplemented
    rows, drows = contiguous(x), contiguous(dy)
    N = x.size // (2 * F)
    dx = empty(x.shape, x.dtype)
    width = width_for(F, rows, drows, dx)
    source("swiglu.cu", x.dtype, WIDTH=width).launch(
        "swiglu_backward", (-(-N * F // (width * THREADS)),), (THREADS,), (drows, rows, dx, N, F)
    )
    return dx
