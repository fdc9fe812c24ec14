"""C = A @ B in bf16: the factors are rounded to 8 binary digits, and what they give is float32.

A bf16 number is the upper half of a float32: the same range, fewer digits. A processor with
AVX512-BF16 multiplies and adds 32 pairs of them in the time of 16 float32: twice the speed. The
instruction takes numbers two by two: x₀y₀ + x₁y₁ is added to a float32 sum. So two neighbours
along the common axis K are packed into 4 bytes, and the product goes on as one of half as many
steps, whose "numbers" are pairs.

Everything else stays float32: the arrays that come in and go out, the weights that AdamW keeps,
all other layers. Only here are numbers rounded, on the way from memory to the factors' copies.

What is not rounded is range: a gradient of 1e-30 is still one. That is why bf16 needs no scaling
of the loss, as fp16 does.

The blocks are those of matmul.py. A processor without the instruction can run this too, with
shifts and two multiplications: slower than float32, and good enough for tests.

On AMD's processors (Zen 4 and later) the instruction pays. Intel's Sapphire and Emerald Rapids have
it too, but take four times as long for one as for float32's, so that there float32 is the faster.

Source: Intel, "Architecture Instruction Set Extensions Programming Reference" (2023), VDPBF16PS;
    Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", section 3.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.dots import compiled_for
from npgpt.backend.cpu.matmul import (
    COLUMNS,
    ROWS,
    STEPS,
    VECTORS,
    WIDTH,
    aligned,
    at,
    ceil,
)
from npgpt.backend.cpu.tile import LANES, Float32, make_tile, place, transpose_square

u32 = np.uint32
# LLVM's name for the instruction has taken bfloat vectors since version 16.
NATIVE = compiled_for("avx512bf16") and llvmlite.binding.llvm_version_info >= (16,)
# Measured on an Emerald Rapids, one core: 83 GFLOP/s, and 174 in float32. The other has its cores.
SLOW = llvmlite.binding.get_host_cpu_name() in ("sapphirerapids", "emeraldrapids")


class BFloat(ir.Type):
    """LLVM's type of a bf16 number, which llvmlite has no class for."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


class Pairs:
    """The numbers of a tile: two bf16 in 4 bytes, the earlier one in the lower half."""

    factor = ir.IntType(32)

    @staticmethod
    def multiply_add(builder, x, y, sums, native=NATIVE):
        """sums + x₀y₀ + x₁y₁, for vectors of LANES pairs."""
        if native:
            twice = ir.VectorType(BFloat(), 2 * LANES)
            dot = builder.module.declare_intrinsic(
                "llvm.x86.avx512bf16.dpbf16ps.512",
                fnty=ir.FunctionType(sums.type, [sums.type, twice, twice]),
            )
            return builder.call(dot, [sums, builder.bitcast(x, twice), builder.bitcast(y, twice)])
        half = ir.Constant(x.type, [16] * LANES)
        upper = ir.Constant(x.type, [0xFFFF0000] * LANES)
        for part in (
            lambda z: builder.and_(z, upper),  # the instruction too begins with the upper half
            lambda z: builder.shl(z, half),
        ):
            factors = [builder.bitcast(part(z), sums.type) for z in (x, y)]
            sums = Float32.multiply_add(builder, *factors, sums)
        return sums


_write, _write_turned = (make_tile(ROWS, VECTORS, False, turned, Pairs) for turned in (False, True))
_add, _add_turned = (make_tile(ROWS, VECTORS, True, turned, Pairs) for turned in (False, True))


def multiply_bf16(c, a, b, a_turned, b_turned, add):
    """C = A @ B of factors rounded to bf16, or C += A @ B; the arguments are multiply_large's."""
    _multiply(c, a.view(u32), b.view(u32), a_turned, b_turned, add)


@kernel
def _multiply(c, a, b, a_turned, b_turned, add):
    """multiply_bf16, with the bits of a and b as whole numbers."""
    M, N = c.shape
    K = a.shape[0] if a_turned else a.shape[1]
    pairs = ceil(K, 2)
    steps = ceil(pairs, ceil(pairs, STEPS))  # equal parts, and no short one at the end
    strips = aligned(ceil(M, ROWS) * ROWS * steps).view(u32)
    panel = aligned(WIDTH * steps).view(u32)
    rows = aligned(LANES * steps).view(u32)
    corner = np.empty((ROWS, COLUMNS), np.float32)
    for k in range(0, pairs, steps):
        count = min(steps, pairs - k)
        adds = add or k > 0
        if a_turned:  # strips of ROWS pairs a step
            _pack(strips, a, k, count, 0, M, ROWS)
        else:  # row after row
            _pack_rows(strips, a, k, count, 0, M, ceil(M, ROWS) * ROWS)
        a_stride = 4 * ROWS if a_turned else 4 * count
        for n in range(0, N, WIDTH):
            width = min(WIDTH, N - n)
            if b_turned:
                _pack_turned(panel, rows, b, k, count, n, width)
            else:
                _pack(panel, b, k, count, n, width, COLUMNS)
            for i in range(0, M, ROWS):
                a_strip = at(strips, i * count), a_stride
                for j in range(0, width, COLUMNS):
                    b_strip = at(panel, j * count)
                    if i + ROWS <= M and j + COLUMNS <= width:
                        target = place(c, i, n + j), c.strides[0]
                        _tile(adds, a_turned, *a_strip, b_strip, *target, count)
                        continue
                    target = place(corner, 0, 0), 4 * COLUMNS
                    _tile(False, a_turned, *a_strip, b_strip, *target, count)
                    for r in range(min(ROWS, M - i)):
                        for q in range(min(COLUMNS, width - j)):
                            before = c[i + r, n + j + q] if adds else np.float32(0)
                            c[i + r, n + j + q] = before + corner[r, q]


@kernel
def _tile(add, turned, a, a_stride, b, c, c_row, steps):
    """One tile: C = A @ B, or C += A @ B if add; the arguments are make_tile's."""
    if add and turned:
        _add_turned(a, a_stride, b, 4 * COLUMNS, c, c_row, steps)
    elif add:
        _add(a, a_stride, b, 4 * COLUMNS, c, c_row, steps)
    elif turned:
        _write_turned(a, a_stride, b, 4 * COLUMNS, c, c_row, steps)
    else:
        _write(a, a_stride, b, 4 * COLUMNS, c, c_row, steps)


@kernel
def rounded(bits):
    """The bf16 number nearest to a float32, to the even one of two that are as near.

    Args:    bits, the float32's as a uint32.
    Returns: uint32, the bf16 number's 16 bits. NaN stays NaN.
    """
    nearest = u32(u32(bits + u32(0x7FFF)) + u32(u32(bits >> u32(16)) & u32(1)))
    is_nan = u32(bits & u32(0x7FFFFFFF)) > u32(0x7F800000)
    return u32(u32(bits | u32(0x400000)) >> u32(16)) if is_nan else u32(nearest >> u32(16))


@kernel
def _pack(strips, x, k, count, start, size, wide):
    """Pair up rows of x into strips: rows 2(k + s) and 2(k + s) + 1, columns start + j.

    Args:    strips, flat; x; k, count, in pairs; start, size; wide, the pairs of a strip's step.
             The last strip is filled up with zeros, and so is a row that x does not have.
    """
    K = x.shape[0]
    for s in range(count):
        first = 2 * (k + s)
        for j in range(0, ceil(size, wide) * wide, wide):
            strip = strips[j * count + s * wide : j * count + s * wide + wide]
            some = min(wide, size - j)
            lower = x[first, start + j : start + j + some]
            if first + 1 < K:
                upper = x[first + 1, start + j : start + j + some]
                for q in range(some):
                    strip[q] = rounded(lower[q]) | u32(rounded(upper[q]) << u32(16))
            else:
                for q in range(some):
                    strip[q] = rounded(lower[q])
            strip[some:] = u32(0)


@kernel
def _pack_rows(pairs, x, k, count, start, size, most):
    """Pair up neighbours within rows of x: pairs[i, s] of x[start + i, 2(k + s)] and the next.

    Args:    pairs, flat, a row of count after the other; x; k, count, in pairs; start, size, rows;
             most, up to which zeros are filled in.
    """
    K = x.shape[1]
    whole = min(count, K // 2 - k)  # of the pairs: an odd K leaves half a one
    for i in range(most):
        row = pairs[i * count : (i + 1) * count]
        if i >= size:
            row[:] = u32(0)
            continue
        numbers = x[start + i, 2 * k : K]
        for s in range(whole):
            row[s] = rounded(numbers[2 * s]) | u32(rounded(numbers[2 * s + 1]) << u32(16))
        if whole < count:
            row[whole] = rounded(numbers[2 * whole])


@kernel
def _pack_turned(strips, rows, x, k, count, start, size):
    """As _pack with strips of COLUMNS, from the rows of x: x[start + j, 2(k + s)].

    Args:    rows, memory for LANES rows of pairs, and the rest as _pack's.
    """
    whole = count // LANES * LANES
    for j in range(0, ceil(size, COLUMNS) * COLUMNS, LANES):
        _pack_rows(rows, x, k, count, start + j, max(0, min(LANES, size - j)), LANES)
        first = j // COLUMNS * COLUMNS * count + j % COLUMNS  # where column j begins
        for s in range(0, whole, LANES):
            transpose_square(at(rows, s), 4 * count, at(strips, first + s * COLUMNS), 4 * COLUMNS)
        for s in range(whole, count):
            for q in range(LANES):
                strips[first + s * COLUMNS + q] = rows[q * count + s]
