"""RoPE on a CPU: a head's two halves are read where they lie, and turned in one pass."""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.memory import heads_in_place, row_at

f32 = np.float32


def rope_forward(x, cos, sin):
    if x.ndim != 4 or not cos.shape == sin.shape == (x.shape[1], x.shape[3] / 2) or x.size == 0:
        return NotImplemented
    return _turned(x, cos, sin, 1.0), (cos, sin)


def rope_backward(dy, cache):
    cos, sin = cache
    if dy.ndim != 4 or cos.shape != (dy.shape[1], dy.shape[3] / 2) or dy.size == 0:
        return NotImplemented
    return _turned(dy, cos, sin, -1.0)


def _turned(x, cos, sin, direction):
    y = np.empty(x.shape, x.dtype)
    cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    _turn(heads_in_place(x), cos, sin, direction, y)
    return y


@kernel
def _turn(x, cos, sin, direction, y):
    """y₁ = x₁ · c − x₂ · s and y₂ = x₂ · c + x₁ · s, or with direction −1 the turn back."""
    B, T, H, D = y.shape
    half, direction = D // 2, f32(direction)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                before, after = row_at(x, b, t, h), row_at(y, b, t, h)
                # One half at a time: a loop that wrote both would be compiled number by number,
                # for fear that the one half is where the other is read.
                for j in range(half):
                    s = sin[t, j] * direction
                    after[j] = before[j] * cos[t, j] - before[half + j] * s
                for j in range(half):
                    s = sin[t, j] * direction
                    after[half + j] = before[half + j] * cos[t, j] + before[j] * s
