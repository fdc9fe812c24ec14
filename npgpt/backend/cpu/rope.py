"""RoPE on a CPU: a head's two halves are read where they lie, and turned in one pass.

Both halves are read for each that is written, and a compiler fears that the one may be where the
other is: it works number by number. So it is told what to do, with LANES numbers of both halves
at a time.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.memory import address_of_row, heads_in_place
from npgpt.backend.cpu.tile import LANES, place

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
    B, T, H, _ = y.shape
    half, direction = cos.shape[1], f32(direction)
    for b in range(B):
        for t in range(T):
            angles = place(cos, t, 0), place(sin, t, 0)
            for h in range(H):
                before, after = address_of_row(x, b, t, h), address_of_row(y, b, t, h)
                turn_row(before, after, *angles, half, f32(1), direction)


@kernel
def turn_row(x, y, cos, sin, half, scale, direction):
    """y₁ = scale · (x₁ · c − x₂ · s) and y₂ = scale · (x₂ · c + x₁ · s), for one head.

    Args:    x, y, the addresses of rows (2 · half,) float32; cos, sin, those of rows (half,);
             half; scale; direction, 1, or −1 for the turn back.
    """
    whole, size = half // LANES * LANES, np.uintp(4 * half)
    for j in range(0, whole, LANES):
        at = np.uintp(4 * j)
        _turn_lanes(x + at, x + size + at, cos + at, sin + at, scale, direction,
                    y + at, y + size + at)  # fmt: skip
    for j in range(whole, half):
        at = np.uintp(4 * j)
        _turn_one(x + at, x + size + at, cos + at, sin + at, scale, direction,
                  y + at, y + size + at)  # fmt: skip


def _make_turn(lanes):
    """An intrinsic that turns some numbers of two halves; of its arguments six are addresses."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    def generate(context, builder, signature, args):
        first, second, cos, sin, scale, direction, new_first, new_second = args

        def pointer(address):
            return builder.inttoptr(address, vector.as_pointer())

        def everywhere(number):
            numbers = ir.Constant(vector, ir.Undefined)
            for lane in range(lanes):
                numbers = builder.insert_element(numbers, number, ir.IntType(32)(lane))
            return numbers

        a, b, c, s = (builder.load(pointer(z), align=4) for z in (first, second, cos, sin))
        s, scale = builder.fmul(s, everywhere(direction)), everywhere(scale)
        turned = (
            builder.fsub(builder.fmul(a, c), builder.fmul(b, s)),
            builder.fadd(builder.fmul(b, c), builder.fmul(a, s)),
        )
        for numbers, target in zip(turned, (new_first, new_second)):
            builder.store(builder.fmul(scale, numbers), pointer(target), align=4)
        return context.get_dummy_value()

    @intrinsic
    def turn(_, first, second, cos, sin, scale, direction, new_first, new_second):
        p, f = types.uintp, types.float32
        return types.void(p, p, p, p, f, f, p, p), generate

    return turn


_turn_lanes, _turn_one = _make_turn(LANES), _make_turn(1)
