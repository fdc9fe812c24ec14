"""Between a block's layers, on a GPU: what is added is added where it is made."""

from npgpt.backend.cuda import elementwise, layernorm, rmsnorm
from npgpt.backend.cuda.compile import contiguous, empty, source, width_for
from npgpt.backend.cuda.linear import backward_into, forward_onto
from npgpt.backend.cuda.shared_row import sum_rows

THREADS = 128  # of a block, as in block.cu
MOST_ROWS = 2**31 - 1  # blocks of a grid
NORMS_ONTO = {"rmsnorm": rmsnorm.backward_onto, "layernorm": layernorm.backward_onto}


def meet(a, b):
    return elementwise.add(a, b)


def linear_forward_onto(past, x, w):
    return forward_onto(past, x, w) if past.flags.c_contiguous else NotImplemented


def linear_backward_into(dy, cache, g):
    return backward_into(dy, cache, g, True)


def affine_backward_into(dy, cache, g, gb):
    if gb.shape != dy.shape[-1:]:
        return NotImplemented
    dx = backward_into(dy, cache, g, True)
    if dx is not NotImplemented:
        gb += sum_rows(dy.reshape(-1, dy.shape[-1]))  # (N,)
    return dx


def norm_backward_onto(past, dy, cache, norm):
    if norm not in NORMS_ONTO or past.shape != dy.shape or past.dtype != dy.dtype:
        return NotImplemented
    return NORMS_ONTO[norm](past, dy, cache)


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
