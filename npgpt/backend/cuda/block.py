"""Between a block's layers, on a GPU: as the layers there, 16 bytes at a time."""

from npgpt.backend.cuda import elementwise, linear
from npgpt.backend.cuda.compile import contiguous, empty, source, width_for

THREADS = 128  # of a block, as in block.cu
MOST_ROWS = 2**31 - 1  # blocks of a grid


def meet(a, b):
    return elementwise.add(a, b)


def linear_backward_into(dy, cache, g):
    result = linear.linear_backward(dy, cache)
    if result is NotImplemented:
        return result
    dx, dw = result
    if g.T.flags.c_contiguous:  # a tied table: neighbours in memory are added side by side
        g, dw = g.T, dw.T
    g += dw
    return dx


def join_qkv(q, k, v):
    B, T, H, D = q.shape
    G = k.shape[2]
    if k.shape != (B, T, G, D) or v.shape != k.shape or not 0 < B * T <= MOST_ROWS:
        return NotImplemented
    if q.size == 0 or not q.dtype == k.dtype == v.dtype:
        return NotImplemented
    q, k, v = contiguous(q), contiguous(k), contiguous(v)
    y = empty((B, T, (H + 2 * G) * D), q.dtype)
    width = width_for(D, q, k, v, y)
    source("block.cu", q.dtype, WIDTH=width).launch(
        "join", (B * T,), (THREADS,), (q, k, v, y, H * D, G * D)
    )
    return y
