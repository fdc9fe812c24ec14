"""RoPE on a GPU: a head's two halves are read where they lie, and turned in one pass."""

from npgpt.backend.cuda.compile import (
    FLOAT32,
    MOST_THREADS,
    contiguous,
    element_strides,
    empty,
    in_place,
    source,
    width_for,
)
from npgpt.backend.cuda.elementwise import cast

THREADS = 256  # of a block, as in rope.cu


def rope_forward(x, cos, sin):
    if x.ndim != 4 or not cos.shape == sin.shape == (x.shape[1], x.shape[3] / 2):
        return NotImplemented
    if not 0 < x.size < MOST_THREADS:
        return NotImplemented
    return _turned(x, cos, sin, 1.0), (cos, sin)


def rope_backward(dy, cache):
    cos, sin = cache
    if dy.ndim != 4 or cos.shape != (dy.shape[1], dy.shape[3] / 2):
        return NotImplemented
    if not 0 < dy.size < MOST_THREADS:
        return NotImplemented
    return _turned(dy, cos, sin, -1.0)


def _turned(x, cos, sin, direction):
    B, T, H, D = x.shape
    cos, sin = (cast(contiguous(z), FLOAT32) for z in (cos, sin))
    x, y = in_place(x), empty(x.shape, x.dtype)
    strides = element_strides(x)[:3]
    width = width_for(D // 2, x, y, cos, sin, strides=strides)
    source("rope.cu", x.dtype, WIDTH=width).launch(
        "rope", (-(-x.size // (2 * width * THREADS)),), (THREADS,),
        (x, cos, sin, y, direction, B * T * H, T, H, D, *strides),
    )  # fmt: skip
    return y
