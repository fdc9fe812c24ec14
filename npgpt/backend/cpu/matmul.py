"""C = A @ B for the linear layers, which take four fifths of the time of a training step.

OpenBLAS copies both factors into an order of its own and fills C with zeros before it begins. With
a few hundred channels this takes a fifth of its time. Here A is read where it lies, unless it
is its transpose that is multiplied, and C is written once for each part of K.

    for each part of the common axis K, at most STEPS long:
        for each panel of B, WIDTH columns, copied to be read from front to back:
            for each strip of ROWS of A, which stays in the first-level cache:
                for each strip of COLUMNS of the panel, from the second: a tile of C

The tile is made in registers. A strip of the panel has its COLUMNS numbers of step 0 first, then
those of step 1, and so on. The copy costs one reading of B and pays for itself, since each number
of it is used once for each row of A.

An A that has to be turned (transposed) is copied too, row by row. To be used from the cache, one
of the two copies has to be small: a B of few columns is one panel, and A is turned HEIGHT rows at a
time, just before they are multiplied; beside a wider B, of many panels, A is turned only once.

The sum over K has one order, whatever the number of rows: cut a batch into pieces, and each row
of the result has the same bits.

Source: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", figure 8.
"""

import contextlib
import os

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.tile import LANES, make_tile, place, transpose_square

f32 = np.float32
# With AVX-512's 32 registers: 24 for the sums, 4 for a step of B, one for a number of A. That is
# wider than attention's tile, which has to fit short rows: fewer numbers are loaded for a product.
ROWS, VECTORS = 6, 4 if LANES == 16 else 2
COLUMNS = VECTORS * LANES
STEPS = 512
WIDTH = 256  # of STEPS rows it is half a megabyte, and has to stay in the second-level cache
with contextlib.suppress(AttributeError, ValueError, OSError):  # of Linux alone
    if os.sysconf("SC_LEVEL2_CACHE_SIZE") >= 3 << 19:
        WIDTH = 384
ONE_PANEL = 512  # columns that are not cut
HEIGHT = 16 * ROWS
LINE = 16  # numbers in a line of the cache: a vector that lies across two is read more slowly
_write = make_tile(ROWS, VECTORS, add=False)
_add = make_tile(ROWS, VECTORS, add=True, elsewhere=True)


@kernel
def multiply_large(c, a, b, a_turned, b_turned, add):
    """C = A @ B, or C += A @ B if add, for any numbers of rows and columns.

    Args:    c (M, N) float32, is filled or added to; a (M, K), or (K, M) if a_turned: then it is
             aᵀ that is multiplied; b (K, N), or (N, K) if b_turned; add. All matrices lie in
             order of memory.
    """
    multiply_onto(c, c, a, b, a_turned, b_turned, add)


@kernel
def multiply_onto(c, past, a, b, a_turned, b_turned, add):
    """C = past + A @ B if add, and otherwise A @ B, as multiply_large; past (M, N) may be c."""
    M, N = c.shape
    K = a.shape[0] if a_turned else a.shape[1]
    steps = ceil(K, ceil(K, STEPS))  # equal parts, and no short one at the end
    width, height = (N, HEIGHT) if N <= ONE_PANEL else (WIDTH, M)
    in_place = 0 if a_turned else M // ROWS * ROWS  # before this row A is read where it lies
    # Were copied rows of A a power of two apart, the cache would have few lines for them all.
    stride = ceil(steps, LINE) * LINE + LINE
    rows = aligned((ceil(height, ROWS) if a_turned else 1) * ROWS * stride)
    panel = aligned(ceil(width, COLUMNS) * COLUMNS * steps)
    corner = np.empty((ROWS, COLUMNS), np.float32)
    for k in range(0, K, steps):
        count, adds = min(steps, K - k), add or k > 0
        before = past if k == 0 else c  # what is added to
        for n in range(0, N, width):
            columns = min(width, N - n)
            if b_turned:
                _pack_turned(panel, b, k, count, n, columns)
            else:
                _pack(panel, b, k, count, n, columns)
            for m in range(0, M, height):
                end = min(m + height, M)
                if n == 0 and a_turned:
                    _turn(rows, stride, a, k, count, m, end - m)
                elif n == 0:
                    _copy_rest(rows, stride, a, k, count, in_place)
                for i in range(m, end, ROWS):
                    if i < in_place:
                        a_strip, a_row = place(a, i, k), a.strides[0]
                    else:
                        a_strip, a_row = at(rows, (i - m) * stride if a_turned else 0), 4 * stride
                    for j in range(0, columns, COLUMNS):
                        b_strip = at(panel, j * count)
                        if i + ROWS <= M and j + COLUMNS <= columns:
                            target = place(c, i, n + j), c.strides[0]
                            added = place(before, i, n + j), before.strides[0]
                            _tile(adds, a_strip, a_row, b_strip, target, added, count)
                            continue
                        target = place(corner, 0, 0), 4 * COLUMNS
                        _tile(False, a_strip, a_row, b_strip, target, target, count)
                        for r in range(min(ROWS, M - i)):
                            for q in range(min(COLUMNS, columns - j)):
                                at_first = before[i + r, n + j + q] if adds else f32(0)
                                c[i + r, n + j + q] = at_first + corner[r, q]


@kernel
def _tile(add, a, a_row, b, target, added, steps):
    """One tile: C = A @ B, or past + A @ B if add.

    Args:    add; a, a_row, b, steps, make_tile's; target, added, address and stride of C's tile
             and past's.
    """
    if add:
        _add(a, a_row, b, 4 * COLUMNS, *target, *added, steps)
    else:
        _write(a, a_row, b, 4 * COLUMNS, *target, steps)


@kernel
def _pack(panel, x, k, count, start, size):
    """Copy columns of x into strips: x[k + s, start + j] for s < count and j < size.

    Args:    panel, flat; x; k, count; start, size. The last strip is filled up with zeros.
    """
    whole = size // COLUMNS * COLUMNS
    for s in range(count):
        for j in range(0, whole, COLUMNS):
            _copy_columns(place(x, k + s, start + j), at(panel, j * count + s * COLUMNS))
    for s in range(count):
        for j in range(whole, ceil(size, COLUMNS) * COLUMNS):
            number = x[k + s, start + j] if j < size else f32(0)
            panel[whole * count + s * COLUMNS + j - whole] = number


@kernel
def _pack_turned(panel, x, k, count, start, size):
    """As _pack, from the rows of x: x[start + j, k + s]."""
    squares = count // LANES * LANES
    for j in range(0, ceil(size, COLUMNS) * COLUMNS, LANES):
        first = j // COLUMNS * COLUMNS * count + j % COLUMNS  # where column j of the strips begins
        done = 0
        if j + LANES <= size:
            for s in range(0, squares, LANES):
                transpose_square(
                    place(x, start + j, k + s), x.strides[0],
                    at(panel, first + s * COLUMNS), 4 * COLUMNS,
                )  # fmt: skip
            done = squares
        for s in range(done, count):
            for q in range(LANES):
                number = x[start + j + q, k + s] if j + q < size else f32(0)
                panel[first + s * COLUMNS + q] = number


@kernel
def _turn(rows, stride, x, k, count, start, size):
    """Make rows of columns of x: x[k + s, start + i] for i < size and s < count.

    Args:    rows, flat, each stride after the one before; x; k, count; start, size. Zeros are
             filled in up to the next multiple of ROWS.
    """
    squares, whole = count // LANES * LANES, size // LANES * LANES
    for s in range(0, squares, LANES):
        for i in range(0, whole, LANES):
            transpose_square(
                place(x, k + s, start + i), x.strides[0], at(rows, i * stride + s), 4 * stride
            )
    for i in range(ceil(size, ROWS) * ROWS):
        for s in range(squares if i < whole else 0, count):
            rows[i * stride + s] = x[k + s, start + i] if i < size else f32(0)


@kernel
def _copy_rest(rows, stride, x, k, count, start):
    """Copy the last rows of x, from start on, which do not fill a strip; zeros follow them."""
    for i in range(ROWS):
        for s in range(count):
            rows[i * stride + s] = x[start + i, k + s] if start + i < x.shape[0] else f32(0)


@intrinsic
def _copy_columns(_, source, target):
    """Copy COLUMNS numbers from one address to another, all at once."""
    vector = ir.VectorType(ir.FloatType(), COLUMNS)

    def generate(context, builder, signature, args):
        source, target = (builder.inttoptr(z, vector.as_pointer()) for z in args)
        numbers = builder.load(source)
        numbers.align = 4
        builder.store(numbers, target).align = 4
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), generate


@kernel
def at(x, i):
    """The address of x[i]."""
    return np.uintp(x.ctypes.data + 4 * i)


@kernel
def ceil(n, parts):
    """n / parts, rounded up."""
    return -(-n // parts)


@kernel
def aligned(size):
    """Memory for some numbers that begins where a line of the cache begins."""
    memory = np.empty(size + LINE, np.float32)
    return memory[-(memory.ctypes.data // 4) % LINE :][:size]
