"""C = A @ B in fp16: the factors are rounded to float16, and what they give is float32.

So multiply a GPU's tensor cores, and this is to study what becomes of a model there: what is
above 65,504 turns into infinity, and what is below 3 · 10⁻⁸ into 0. Few processors multiply such
numbers themselves. Here they stay float32 numbers, of which the last digits are 0, and the product
goes on as that of matmul.py: as exact, and slower by the rounding.
"""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.matmul import multiply_large

f32, u32 = np.float32, np.uint32
INFINITE, TOO_LARGE = 0x7F800000, 0x47800000  # the bits of ∞, and of 65,536 as float32
NORMAL = f32(2.0**-14)  # from here on a float16 number has 11 digits; below, multiples of 2⁻²⁴


def multiply_fp16(c, a, b, a_turned, b_turned, add):
    """C = A @ B of factors rounded to float16, or C += A @ B: the arguments of multiply_large."""
    multiply_large(c, rounded(a), rounded(b), a_turned, b_turned, add)


def rounded(x):
    """The float16 numbers nearest to those of x, to the even one of two that are as near.

    Args:    x float32, in order of memory.
    Returns: an array as x, float32.
    """
    y = np.empty_like(x)
    flat, result = x.reshape(-1), y.reshape(-1)
    _round(flat, flat.view(u32), result, result.view(u32))
    return y


@kernel
def _round(x, bits, y, y_bits):
    """Round x into y; each of them with its bits as whole numbers."""
    for i in range(x.size):
        size = u32(bits[i] & u32(0x7FFFFFFF))
        nearest = u32(u32(size + u32(0xFFF)) + u32(u32(size >> u32(13)) & u32(1)))
        nearest = u32(nearest & u32(0xFFFFE000))
        nearest = u32(INFINITE) if nearest >= u32(TOO_LARGE) else nearest
        nearest = size if size > u32(INFINITE) else nearest  # NaN stays NaN
        y_bits[i] = u32(nearest | u32(bits[i] & u32(0x80000000)))
    for i in range(x.size):
        # The neighbours of 0.5 + x, between 0.5 and 1, are 2⁻²⁴ apart, so the sum rounds to these.
        few = f32(f32(abs(x[i]) + f32(0.5)) - f32(0.5))
        y[i] = np.copysign(few, x[i]) if abs(x[i]) < NORMAL else y[i]
