"""SwiGLU on a CPU: the sigmoid lives in registers, and is never written to memory."""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.exp import exp
from npgpt.backend.cpu.memory import in_rows, part_of_row

f32 = np.float32
ONE = f32(1)


def swiglu_forward(x):
    if x.shape[-1] % 2 or x.size == 0:
        return NotImplemented
    rows = in_rows(x)  # (N, 2F)
    y = np.empty((rows.shape[0], rows.shape[1] // 2), x.dtype)
    _forward(rows, y)
    return y.reshape(*x.shape[:-1], y.shape[1]), (x,)


def swiglu_backward(dy, cache):
    (x,) = cache
    F = x.shape[-1] // 2
    if dy.shape != (*x.shape[:-1], F) or x.size == 0:
        return NotImplemented
    rows = in_rows(x)  # (N, 2F)
    dx = np.empty_like(rows)
    _backward(in_rows(dy), rows, dx)
    return dx.reshape(x.shape)


@kernel
def _forward(x, y):
    """y = g · σ(g) · u, for rows x (N, 2F) of gates g and values u."""
    N, F = y.shape
    for n in range(N):
        for j in range(F):
            g = x[n, j]
            y[n, j] = g / (ONE + exp(-g)) * x[n, F + j]


@kernel
def _backward(dy, x, dx):
    """dg = dy · u · σ · (1 + g · (1 − σ)), and du = dy · g · σ."""
    N, F = dy.shape
    for n in range(N):
        # As arguments the halves of dx are two arrays: the compiler need not fear that one
        # write changes what the other reads, and works on many numbers at once.
        _backward_row(
            part_of_row(dy, n, 0, F), part_of_row(x, n, 0, F), part_of_row(x, n, F, F),
            part_of_row(dx, n, 0, F), part_of_row(dx, n, F, F),
        )  # fmt: skip


@kernel
def _backward_row(dy, gate, up, dgate, dup):
    for j in range(dy.size):
        g, d = gate[j], dy[j]
        sigma = ONE / (ONE + exp(-g))
        dgate[j] = d * up[j] * sigma * (ONE + g * (ONE - sigma))
        dup[j] = d * g * sigma
