"""Between a block's layers on a CPU: what is added is added where it is made.

Where two threads share the gradients, that is done in turn: see npgpt/turns.py.
"""

import numpy as np

from npgpt.backend.cpu import layernorm, rmsnorm
from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.linear import (
    backward_into,
    fit,
    forward_onto,
    input_gradient,
    weight_gradient_into,
)
from npgpt.backend.cpu.memory import in_rows
from npgpt.layers import linear_backward
from npgpt.turns import sharing

# The rows of a bias's gradient are added up in groups, as one long sum would gather errors.
GROUP = 32
NORMS_ONTO = {"rmsnorm": rmsnorm.backward_onto, "layernorm": layernorm.backward_onto}


def linear_forward_onto(past, x, w):
    return forward_onto(past, x, w)


def norm_backward_onto(past, dy, cache, norm):
    return NORMS_ONTO[norm](past, dy, cache) if norm in NORMS_ONTO else NotImplemented


def linear_backward_into(dy, cache, g):
    member = sharing.get()
    if member is None:
        return backward_into(dy, cache, g, True)
    if not fit(dy, cache, g):
        return _backward_in_turn(dy, cache, g, member)
    if member.goes_first:
        _weight_gradient_in_turn(dy, cache, g, member)
        return input_gradient(dy, cache)
    dx = input_gradient(dy, cache)
    _weight_gradient_in_turn(dy, cache, g, member)
    return dx


def affine_backward_into(dy, cache, g, gb):
    dx = linear_backward_into(dy, cache, g)
    if dx is not NotImplemented:
        _add_rows(in_rows(dy), gb)
    return dx


def _weight_gradient_in_turn(dy, cache, g, member):
    with member.turn(g) as add:
        weight_gradient_into(dy, cache, g, add)


def _backward_in_turn(dy, cache, g, member):
    """linear_backward_into for what does not fit: the sum is made apart, and added in turn."""
    dx, dw = linear_backward(dy, cache)  # (..., C), (C, N)
    with member.turn(g) as add:
        np.add(g, dw, out=g) if add else np.copyto(g, dw)
    return dx


@kernel
def _add_rows(rows, total):
    """total (N,) += the sum of rows (R, N)."""
    R, N = rows.shape
    some = np.empty(N, np.float32)
    for start in range(0, R, GROUP):
        some[:] = 0
        for r in range(start, min(start + GROUP, R)):
            for n in range(N):
                some[n] += rows[r, n]
        for n in range(N):
            total[n] += some[n]
