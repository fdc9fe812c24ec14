"""exp in float32, as a polynomial that a compiler turns into vector instructions.

The C library's exp takes one number at a time. This one is additions and multiplications only, so
a loop over it runs on 8 or 16 numbers at once.

    exp(x) = 2ⁿ · exp(r)      n = x / log 2, rounded to a whole number; |r| = |x − n log 2| ≤ 0.35

2ⁿ is made by writing n into the exponent's bits, and exp(r) is a polynomial of degree 7. The
product n · log 2 is taken off in two parts, the first of which has so few digits that it is exact.

The relative error is at most 1e-7, less than one unit in the last place. exp(x) is infinite
from x = 88.73 on, as it should be, and 0 below −87.34, where float32 has no normal numbers left.
exp(−∞) = 0, exp(∞) = ∞, and NaN stays NaN.

Source: the coefficients are those of expf in the Cephes library (Moshier 1989).
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel

f32 = np.float32
LOWEST, HIGHEST = f32(-87.33654), f32(88.8)  # where n = −126, and where 2ⁿ · exp(r) overflows
LOG2_E = f32(1.44269504088896341)
LOG_2_HIGH, LOG_2_LOW = f32(0.693359375), f32(-2.12194440e-4)  # their sum is log 2
C2, C3, C4 = f32(5.0000001201e-1), f32(1.6666665459e-1), f32(4.1665795894e-2)
C5, C6, C7 = f32(8.3334519073e-3), f32(1.3981999507e-3), f32(1.9875691500e-4)
HALF, ONE = f32(0.5), f32(1.0)
BIAS, FRACTION_BITS = np.int32(127), np.int32(23)  # of a float32


@intrinsic
def float_of_bits(_, bits):
    """The float32 that has these 32 bits."""
    signature = types.float32(types.int32)
    return signature, lambda context, builder, _, args: builder.bitcast(args[0], ir.FloatType())


@kernel
def exp(x):
    """exp(x) for a float32."""
    bounded = min(max(x, LOWEST), HIGHEST)
    n = np.floor(bounded * LOG2_E + HALF)
    r = bounded - n * LOG_2_HIGH - n * LOG_2_LOW
    p = C7
    p = p * r + C6
    p = p * r + C5
    p = p * r + C4
    p = p * r + C3
    p = p * r + C2
    p = p * r * r + r + ONE
    # 2 · 2ⁿ⁻¹, as 2¹²⁸ would be infinite already, and times 0.9 it need not be.
    y = (p + p) * float_of_bits((np.int32(n) + BIAS - np.int32(1)) << FRACTION_BITS)
    return y if x == x else x  # NaN was lost with the bounds
