"""C = A @ B for the linear layers, which are four fifths of what a training step does.

OpenBLAS copies both factors into an order of its own and fills C with zeros before it begins. With
a few hundred channels this takes a fifth of its time. Here A is read where it lies, if its rows
are what is multiplied, and C is written once.

    for each part of the common axis K, STEPS long:
        for each panel of B, WIDTH columns, copied to be read from front to back:
            for each block of A, HEIGHT rows: small enough to stay in the second-level cache
                for each strip of COLUMNS of the panel, which stays in the first
                    for each strip of ROWS of the block: a tile of C, made in registers

A strip of the panel has its COLUMNS numbers of step 0 first, then those of step 1, and so on.
The copy costs one reading of B and pays for itself, since each number of it is used HEIGHT times.

The sum over K has one order, whatever the number of rows: cut a batch into pieces, and each row
of the result has the same bits.

Source: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", figure 8.
"""

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
WIDTH = 256
HEIGHT = 40 * ROWS
ABREAST = 16  # strips copied side by side: they lie so that the cache has few lines for them all
LINE = 16  # numbers in a line of the cache: a vector that lies across two is read more slowly
_write = make_tile(ROWS, VECTORS, add=False)
_add = make_tile(ROWS, VECTORS, add=True)


@kernel
def multiply_large(c, a, b, a_turned, b_turned):
    """C = A @ B, for any numbers of rows and columns; all matrices in order of memory.

    Args:    c (M, N) float32, is filled; a (M, K), or (K, M) if a_turned: then C = aᵀ @ B;
             b (K, N), or (N, K) if b_turned: then C = A @ bᵀ.
    """
    M, N = c.shape
    K = a.shape[0] if a_turned else a.shape[1]
    steps = ceil(K, ceil(K, STEPS))  # equal parts, and no short one at the end
    whole = M // ROWS * ROWS  # rows that fill strips; what is left makes one more
    copied = 0 if a_turned else whole  # from this row on, strips of A are copies
    strips = aligned((ceil(M, ROWS) * ROWS - copied) * steps)
    panel, corner = aligned(WIDTH * steps), np.empty((ROWS, COLUMNS), np.float32)
    for k in range(0, K, steps):
        count = min(steps, K - k)
        if a_turned:
            _strips(strips, a, k, count, 0, M, ROWS)
        else:
            _strips_turned(strips, a, k, count, whole, M - whole, ROWS)
        for n in range(0, N, WIDTH):
            width = min(WIDTH, N - n)
            if b_turned:
                _strips_turned(panel, b, k, count, n, width, COLUMNS)
            else:
                _strips(panel, b, k, count, n, width, COLUMNS)
            for m in range(0, M, HEIGHT):
                for j in range(0, width, COLUMNS):
                    b_strip = at(panel, j * count)
                    for i in range(m, min(m + HEIGHT, M), ROWS):
                        if i < copied:
                            a_strip, row, step = place(a, i, k), a.strides[0], 4
                        else:
                            a_strip, row, step = at(strips, (i - copied) * count), 4, 4 * ROWS
                        if i < whole and j + COLUMNS <= width:
                            target = place(c, i, n + j)
                            _tile(
                                k > 0, a_strip, row, step, b_strip, 4 * COLUMNS,
                                target, c.strides[0], count,
                            )  # fmt: skip
                        else:
                            target = place(corner, 0, 0)
                            _tile(
                                False, a_strip, row, step, b_strip, 4 * COLUMNS,
                                target, 4 * COLUMNS, count,
                            )  # fmt: skip
                            for r in range(min(ROWS, M - i)):
                                for q in range(min(COLUMNS, width - j)):
                                    before = c[i + r, n + j + q] if k > 0 else f32(0)
                                    c[i + r, n + j + q] = before + corner[r, q]


@kernel
def _tile(add, a, a_row, a_step, b, b_step, c, c_row, steps):
    """One tile: C = A @ B, or C += A @ B if add; the arguments are make_tile's."""
    if add:
        _add(a, a_row, a_step, b, b_step, c, c_row, steps)
    else:
        _write(a, a_row, a_step, b, b_step, c, c_row, steps)


@kernel
def _strips(strips, x, k, count, start, size, wide):
    """Copy columns of x into strips: x[k + s, start + j] for s < count and j < size.

    Args:    strips, flat; x; k, count; start, size; wide, the numbers of a strip's step, either
             ROWS or COLUMNS. The last strip is filled up with zeros.
    """
    whole = size // wide * wide
    for some in range(0, whole, ABREAST * wide):
        for s in range(count):
            for j in range(some, min(some + ABREAST * wide, whole), wide):
                source, target = place(x, k + s, start + j), at(strips, j * count + s * wide)
                if wide == ROWS:
                    _copy_rows(source, target)
                else:
                    _copy_columns(source, target)
    for s in range(count):
        for j in range(whole, whole + (wide if whole < size else 0)):
            number = x[k + s, start + j] if j < size else f32(0)
            strips[whole * count + s * wide + j - whole] = number


@kernel
def _strips_turned(strips, x, k, count, start, size, wide):
    """As _strips, from the rows of x: x[start + j, k + s]."""
    squares = count // LANES * LANES if wide % LANES == 0 else 0
    for j in range(0, ceil(size, wide) * wide, min(wide, LANES)):
        first = j // wide * wide * count + j % wide  # where column j of the strips begins
        done = 0
        if squares and j + LANES <= size:
            for s in range(0, squares, LANES):
                transpose_square(
                    place(x, start + j, k + s), x.strides[0],
                    at(strips, first + s * wide), 4 * wide,
                )  # fmt: skip
            done = squares
        for s in range(done, count):
            for q in range(min(wide, LANES)):
                number = x[start + j + q, k + s] if j + q < size else f32(0)
                strips[first + s * wide + q] = number


def _make_copy(count):
    """An intrinsic that copies numbers from one address to another, all at once."""
    vector = ir.VectorType(ir.FloatType(), count)

    def generate(context, builder, signature, args):
        source, target = (builder.inttoptr(z, vector.as_pointer()) for z in args)
        numbers = builder.load(source)
        numbers.align = 4
        builder.store(numbers, target).align = 4
        return context.get_dummy_value()

    @intrinsic
    def copy(_, source, target):
        return types.void(types.uintp, types.uintp), generate

    return copy


_copy_rows, _copy_columns = _make_copy(ROWS), _make_copy(COLUMNS)


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
