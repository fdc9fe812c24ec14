"""Small matrix products at the speed of the processor: a tile of the result stays in registers.

A product reads each number many times. What makes it fast is that the sums being built never
leave the processor's registers: a tile of ROWS × COLUMNS of them is held there, and each step
along the common axis loads one row of B, a few numbers of A, and makes ROWS · COLUMNS
multiplications and additions of them. No loop that a compiler is given turns out so reliably, so
the tile is written in the compiler's own language, as a Numba intrinsic.

There is no blocking for caches here: matmul.py does that, and attention brings matrices that fit.
"""

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel

# A tile is ROWS × COLUMNS sums, in VECTORS vectors of LANES a row. AVX-512 has 32 registers of
# 16 numbers, AVX2 16 registers of 8; NEON's 32 of 4 serve as 16 of 8.
LANES = 16 if get_host_cpu_features().get("avx512f", False) else 8
VECTORS = 2
ROWS = 8 if LANES == 16 else 6
COLUMNS = VECTORS * LANES
AT_ONCE = 4  # steps between two looks at whether all are done


class Float32:
    """The numbers of a tile: float32."""

    factor = ir.FloatType()

    @staticmethod
    def multiply_add(builder, x, y, sums):
        """sums + x · y, rounded once, for vectors of LANES numbers."""
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(sums.type, [sums.type] * 3), f"llvm.fma.v{LANES}f32"
        )
        return builder.call(fma, [x, y, sums])


def make_tile(rows, vectors, add, turned=False, numbers=Float32, elsewhere=False):
    """An intrinsic that multiplies a strip of A with a strip of B.

    The intrinsic's arguments are addresses, and strides in bytes:
        tile(a, a_stride, b, b_step, c, c_row, steps)
    C[i, :] = Σ_k A[i, k] · B[k, :] for rows i and steps k ≥ 1, where A[i, k] is at
    a + i · a_stride + 4k, the row of B at b + k · b_step, and that of C at c + i · c_row.

    Args:    rows, vectors, the size of the tile; add, whether the products are added to C;
             turned, whether A lies in memory step by step: A[i, k] is at a + k · a_stride + 4i;
             numbers, of what A and B are made, 4 bytes each: the sums are float32; elsewhere,
             whether the products are added to another tile than C, whose address and stride
             are two arguments more, after C's.
    Returns: the intrinsic.
    """
    f32, i32, i64, byte = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
    vector, factors = ir.VectorType(f32, LANES), ir.VectorType(numbers.factor, LANES)
    broadcast = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
    undefined = ir.Constant(factors, ir.Undefined)

    def generate(context, builder, signature, args):
        a, a_stride, b, b_step, c, c_row, *other, steps = args
        d, d_row = other or (c, c_row)  # what is added to

        def away(address, offset):
            """A pointer some bytes from an address."""
            offset = ir.Constant(i64, offset) if isinstance(offset, int) else offset
            return builder.gep(builder.load(address), [offset])

        def load(place, kind):
            number = builder.load(builder.bitcast(place, kind.as_pointer()))
            number.align = 4
            return number

        def variable(value):
            return cgutils.alloca_once_value(builder, value)

        # What changes is a variable on the stack: the compiler finds registers for all of them.
        a_now, b_now, c_now, d_now = (
            variable(builder.inttoptr(z, byte.as_pointer())) for z in (a, b, c, d)
        )
        zero = ir.Constant(vector, [0.0] * LANES)
        sums = [[variable(zero) for _ in range(vectors)] for _ in range(rows)]
        a_rows = [builder.mul(a_stride, ir.Constant(i64, i)) for i in range(rows)]
        c_rows = [builder.mul(c_row, ir.Constant(i64, i)) for i in range(rows)]
        d_rows = [builder.mul(d_row, ir.Constant(i64, i)) for i in range(rows)]

        def step():
            b_row = [load(away(b_now, 4 * LANES * j), factors) for j in range(vectors)]
            for i in range(rows):
                number = load(away(a_now, 4 * i if turned else a_rows[i]), numbers.factor)
                first = builder.insert_element(undefined, number, ir.Constant(i32, 0))
                everywhere = builder.shuffle_vector(first, undefined, broadcast)
                for j in range(vectors):
                    before = builder.load(sums[i][j])
                    after = numbers.multiply_add(builder, everywhere, b_row[j], before)
                    builder.store(after, sums[i][j])
            builder.store(away(a_now, a_stride if turned else 4), a_now)
            builder.store(away(b_now, b_step), b_now)

        if add:  # what will be added to is called into the cache, and is there in time
            prefetch = builder.module.declare_intrinsic(
                "llvm.prefetch", [byte.as_pointer()],
                ir.FunctionType(ir.VoidType(), [byte.as_pointer(), i32, i32, i32]),
            )  # fmt: skip
            for i in range(rows):
                start = away(d_now, d_rows[i])
                for offset in (*range(0, 4 * LANES * vectors, 64), 4 * LANES * vectors - 4):
                    line = builder.gep(start, [ir.Constant(i64, offset)])
                    builder.call(prefetch, [line, i32(1), i32(3), i32(1)])
        at_once = ir.Constant(i64, AT_ONCE)
        with cgutils.for_range(builder, builder.udiv(steps, at_once)):
            for _ in range(AT_ONCE):
                step()
        with cgutils.for_range(builder, builder.urem(steps, at_once)):
            step()
        for i in range(rows):
            start, before = away(c_now, c_rows[i]), away(d_now, d_rows[i])
            for j in range(vectors):
                offset = ir.Constant(i64, 4 * LANES * j)
                place = builder.gep(start, [offset])
                result = builder.load(sums[i][j])
                if add:
                    result = builder.fadd(load(builder.gep(before, [offset]), vector), result)
                builder.store(result, builder.bitcast(place, vector.as_pointer())).align = 4
        return context.get_dummy_value()

    p, n = types.uintp, types.intp

    @intrinsic
    def tile(_, a, a_stride, b, b_step, c, c_row, steps):
        return types.void(p, n, p, n, p, n, n), generate

    @intrinsic
    def tile_elsewhere(_, a, a_stride, b, b_step, c, c_row, d, d_row, steps):
        return types.void(p, n, p, n, p, n, p, n, n), generate

    return tile_elsewhere if elsewhere else tile


_write_rows, _write_columns = (make_tile(ROWS, VECTORS, False, turned) for turned in (False, True))
_add_rows, _add_columns = (make_tile(ROWS, VECTORS, True, turned) for turned in (False, True))


@kernel
def place(x, i, j):
    """The address of x[i, j]."""
    return np.uintp(x.ctypes.data + i * x.strides[0] + j * x.strides[1])


@kernel
def multiply(add, c, a, b):
    """C = A @ B, or C += A @ B if add, for matrices that fit into the cache.

    Args:    add; c (M, N), a (M, K), b (K, N) float32; N a multiple of COLUMNS; the rows of b
             and c without gaps between their numbers, and the rows of a too, or else its columns.
             Rows of a and c are read and written up to the next multiple of ROWS: there must be
             memory for them.
    """
    for i in range(0, c.shape[0], ROWS):
        for j in range(0, c.shape[1], COLUMNS):
            strips = place(a, i, 0), max(a.strides[0], a.strides[1]), place(b, 0, j), b.strides[0]
            target = place(c, i, j), c.strides[0]
            if a.strides[1] == a.itemsize:
                if add:
                    _add_rows(*strips, *target, b.shape[0])
                else:
                    _write_rows(*strips, *target, b.shape[0])
            elif add:
                _add_columns(*strips, *target, b.shape[0])
            else:
                _write_columns(*strips, *target, b.shape[0])


@intrinsic
def transpose_square(_, x, x_row, y, y_row):
    """Y = Xᵀ for LANES × LANES numbers; arguments as a tile's: addresses, and strides in bytes.

    Halves change places first, then the halves of halves: after log₂ LANES rounds, in which each
    row is mixed with one other, all numbers are where they belong.
    """
    f32, i32, i64, byte = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
    vector, order = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)

    def generate(context, builder, signature, args):
        x, x_row, y, y_row = args

        def row(address, stride, i):
            base = builder.inttoptr(address, byte.as_pointer())
            place = builder.gep(base, [builder.mul(stride, ir.Constant(i64, i))])
            return builder.bitcast(place, vector.as_pointer())

        rows = []
        for i in range(LANES):
            rows.append(builder.load(row(x, x_row, i)))
            rows[i].align = 4
        half = LANES // 2
        while half:
            upper = [j if j & half == 0 else LANES + j - half for j in range(LANES)]
            lower = [j + half if j & half == 0 else LANES + j for j in range(LANES)]
            for i in range(LANES):
                if i & half == 0:
                    pair = rows[i], rows[i + half]
                    rows[i] = builder.shuffle_vector(*pair, ir.Constant(order, upper))
                    rows[i + half] = builder.shuffle_vector(*pair, ir.Constant(order, lower))
            half //= 2
        for i in range(LANES):
            builder.store(rows[i], row(y, y_row, i)).align = 4
        return context.get_dummy_value()

    p, n = types.uintp, types.intp
    return types.void(p, n, p, n), generate


@kernel
def transpose(y, x):
    """Y = Xᵀ.

    Args:    y (N, M), x (M, N) float32, rows without gaps; M and N multiples of LANES.
    """
    for i in range(0, x.shape[0], LANES):
        for j in range(0, x.shape[1], LANES):
            transpose_square(place(x, i, j), x.strides[0], place(y, j, i), y.strides[0])


def round_up(n, multiple):
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple
