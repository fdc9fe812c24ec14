"""Dot products of rows with vectors, as fast as the memory delivers the rows.

A tile takes a few rows and a few vectors, and keeps the sums of all their pairs in registers: a
weight is loaded once, and meets all vectors of the tile while it is there. Two more things make
the difference between this and a plain loop, which gets two thirds of the memory's speed in bf16:

    It asks for memory in time. While a line of 64 bytes is used, the one AHEAD of it is
    requested. The processor also guesses by itself what will be read, but begins to guess anew
    in each page of 4096 bytes.

    It has two sums for each pair, of the even lines and of the odd. An addition takes four steps,
    and the next one to the same sum has to wait for it.

All tiles add in the same order, whatever their shape: the result for one vector does not depend
on what is computed beside it. A loop that a compiler is given has no such order, so tiles are
written in the compiler's own language, as Numba intrinsics.
"""

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel


def compiled_for(feature):
    """Whether kernels may use some instructions: this processor has them, or Numba was told so."""
    if config.CPU_NAME or config.CPU_FEATURES:
        return f"+{feature}" in (config.CPU_FEATURES or "").split(",")
    return bool(get_host_cpu_features().get(feature, False))


HAS_AVX512, HAS_VNNI = compiled_for("avx512f"), compiled_for("avx512vnni")
LINE = 64  # bytes that memory delivers at a time
STEP = 2 * LINE  # bytes of a row that a tile takes at a time: rows are filled up to these
AHEAD = 4096  # bytes
# The sums of a tile are 2 · ROWS · VECTORS vectors of LANES numbers. AVX-512 has 32 registers of
# 16, AVX2 16 of 8, and NEON 32 of 4, which serve as 16 of 8.
LANES = 16 if HAS_AVX512 else 8
ROWS, VECTORS = 2, 4 if HAS_AVX512 else 2

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32 = ir.FloatType()


class Float32:
    """float32 rows and vectors."""

    weight_size, code_size = 4, 4  # bytes of a number
    sums = ir.VectorType(_f32, LANES)

    @classmethod
    def load_weights(cls, builder, address):
        """A line of a row, as registers."""
        return _load(builder, address, cls.sums, LINE)

    @classmethod
    def load_codes(cls, builder, address):
        """The part of a vector that meets a line of a row, as registers."""
        return _load(builder, address, cls.sums, LINE * cls.code_size // cls.weight_size)

    @classmethod
    def multiply_add(cls, builder, weights, codes, sums):
        return _call(builder, f"llvm.fmuladd.v{LANES}f32", cls.sums, [weights, codes, sums])

    @classmethod
    def add(cls, builder, a, b):
        return builder.fadd(a, b)

    @classmethod
    def add_up(cls, builder, sums):
        """The sum of a register's numbers, in the order that suits the processor ("reassoc")."""
        zero = ir.Constant(_f32, 0.0)
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        return _call(builder, name, _f32, [zero, sums], fastmath=("reassoc",))


class BFloat16(Float32):
    """bf16 rows, which are upper halves of float32, as uint16; and float32 vectors.

    To widen them costs more than to multiply them. It is cheapest two by two: where a 32-bit word
    holds two weights, a shift makes float32 of the one, and a mask of the other. So that they then
    stand beside the right numbers of the vector, `in_pairs` orders a row.
    """

    weight_size = 2

    @classmethod
    def load_weights(cls, builder, address):
        words = ir.VectorType(_i32, LANES)
        sixteen, upper = (ir.Constant(words, [n] * LANES) for n in (16, -0x10000))  # 0xFFFF0000
        return [
            builder.bitcast(half, cls.sums)
            for both in _load(builder, address, words, LINE)
            for half in (builder.shl(both, sixteen), builder.and_(both, upper))
        ]


def in_pairs(rows):
    """Order bf16 rows (N, K), K a multiple of 2 · LANES, as a tile reads them.

    Of each 2 · LANES weights the first half becomes the lower halves of words, the second half
    the upper halves.
    """
    halves = rows.reshape(len(rows), rows.shape[1] // (2 * LANES), 2, LANES)
    return np.ascontiguousarray(np.swapaxes(halves, 2, 3)).reshape(rows.shape)


class Int8:
    """int8 rows and int16 vectors, on any processor.

    Neighbouring products are added in pairs, for which x86 has had an instruction since MMX.
    """

    weight_size, code_size = 1, 2
    sums = ir.VectorType(_i32, LANES)

    @classmethod
    def load_weights(cls, builder, address):
        return cls._widened(builder, _load(builder, address, ir.VectorType(_i8, 2 * LANES), LINE))

    @classmethod
    def load_codes(cls, builder, address):
        pieces = _load(builder, address, ir.VectorType(_i16, 2 * LANES), 2 * LINE)
        return cls._widened(builder, pieces)

    @staticmethod
    def _widened(builder, pieces):
        return [builder.sext(piece, ir.VectorType(_i32, 2 * LANES)) for piece in pieces]

    @classmethod
    def multiply_add(cls, builder, weights, codes, sums):
        products = builder.mul(weights, codes)
        even, odd = (
            builder.shuffle_vector(products, products, ir.Constant(cls.sums, places))
            for places in (list(range(0, 2 * LANES, 2)), list(range(1, 2 * LANES, 2)))
        )
        return builder.add(sums, builder.add(even, odd))

    @classmethod
    def add(cls, builder, a, b):
        return builder.add(a, b)

    @classmethod
    def add_up(cls, builder, sums):
        return _call(builder, f"llvm.vector.reduce.add.v{cls.sums.count}i32", _i32, [sums])


class Int8VNNI(Int8):
    """int8 rows and vectors, 64 products an instruction, where there is AVX-512 VNNI.

    vpdpbusd multiplies bytes without a sign with bytes that have one. So 128 is added to each
    weight, by a flip of its highest bit, and the dot product is 128 · Σ codes too large.
    """

    code_size = 1
    sums = ir.VectorType(_i32, LINE // 4)

    @classmethod
    def load_weights(cls, builder, address):
        highest_bits = ir.Constant(cls.sums, [-0x7F7F7F80] * cls.sums.count)  # 0x80808080
        (line,) = _load(builder, address, cls.sums, LINE)
        return [builder.xor(line, highest_bits)]

    @classmethod
    def load_codes(cls, builder, address):
        return _load(builder, address, cls.sums, LINE)

    @classmethod
    def multiply_add(cls, builder, weights, codes, sums):
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", cls.sums, [sums, weights, codes])


KINDS = {  # by the types of rows and vectors
    (types.float32, types.float32): Float32,
    (types.uint16, types.float32): BFloat16,
    (types.int8, types.int16): Int8,
    (types.int8, types.int8): Int8VNNI,
}


def make_tile(num_rows, num_vectors):
    """An intrinsic that makes the dot products of some rows with some vectors.

    The intrinsic is tile(rows, n, vectors, b, totals), which writes
        totals[j, i] = rows[n + i] · vectors[b + j]       i < num_rows, j < num_vectors
    for rows (N, K) and vectors (B, K) whose types are in KINDS, without gaps in memory, a row's
    bytes being a multiple of STEP; totals of at least (num_vectors, num_rows), float32 or int32.

    Args:    num_rows, num_vectors, the size of the tile.
    Returns: the intrinsic.
    """
    pairs = [(i, j) for i in range(num_rows) for j in range(num_vectors)]

    def generate(context, builder, signature, args):
        kind = KINDS[signature.args[0].dtype, signature.args[2].dtype]
        rows, row_size = _addresses(context, builder, signature, args, 0, num_rows)
        vectors, _ = _addresses(context, builder, signature, args, 2, num_vectors)
        totals, _ = _addresses(context, builder, signature, [*args, _number(0)], 4, num_vectors)
        zeros = ir.Constant(kind.sums, None)
        sums = {
            (i, j, parity): cgutils.alloca_once_value(builder, zeros)
            for i, j in pairs
            for parity in (0, 1)
        }
        with cgutils.for_range_slice(builder, _number(0), row_size, _number(STEP)) as (start, _):
            for parity in (0, 1):
                place = builder.add(start, _number(LINE * parity))
                code_place = builder.mul(place, _number(kind.code_size // kind.weight_size))
                lines = [builder.add(row, place) for row in rows]
                for line in lines:
                    _fetch(builder, builder.add(line, _number(AHEAD)))
                w = [kind.load_weights(builder, line) for line in lines]
                x = [kind.load_codes(builder, builder.add(v, code_place)) for v in vectors]
                for i, j in pairs:
                    total = builder.load(sums[i, j, parity])
                    for weights, codes in zip(w[i], x[j]):
                        total = kind.multiply_add(builder, weights, codes, total)
                    builder.store(total, sums[i, j, parity])
        for i, j in pairs:
            even, odd = (builder.load(sums[i, j, parity]) for parity in (0, 1))
            total = kind.add_up(builder, kind.add(builder, even, odd))
            place = builder.add(totals[j], _number(4 * i))
            builder.store(total, builder.inttoptr(place, total.type.as_pointer()))
        return context.get_dummy_value()

    @intrinsic
    def tile(_, rows, n, vectors, b, totals):
        return types.void(rows, types.intp, vectors, types.intp, totals), generate

    return tile


def _addresses(context, builder, signature, args, position, count):
    """Addresses of some rows of the matrix at a position of args, from that in the next one on.

    Returns: a list of count addresses; the bytes from one row to the next.
    """
    matrix = context.make_array(signature.args[position])(context, builder, args[position])
    row_size, _ = cgutils.unpack_tuple(builder, matrix.strides)
    start = builder.ptrtoint(matrix.data, _i64)
    places = [builder.add(args[position + 1], _number(i)) for i in range(count)]
    return [builder.add(start, builder.mul(place, row_size)) for place in places], row_size


def _number(n):
    return ir.Constant(_i64, n)


def _call(builder, name, result, args, **options):
    """Call a function of LLVM by its full name."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **options)


def _load(builder, address, register, size):
    """Load some bytes into as many registers as they fill: a list of vectors of that type."""
    register_size = register.count * getattr(register.element, "width", 32) // 8  # a float has none
    values = []
    for place in range(0, size, register_size):
        pointer = builder.inttoptr(builder.add(address, _number(place)), register.as_pointer())
        values.append(builder.load(pointer))
        values[-1].align = 1
    return values


def _fetch(builder, address):
    """Ask for the line at an address. Where there is no memory, nothing happens."""
    pointer = builder.inttoptr(address, _i8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    to_read, into_level_2, data = (ir.Constant(_i32, n) for n in (0, 2, 1))
    builder.call(function, [pointer, to_read, into_level_2, data])


_tile, _tile_of_one_vector, _tile_of_one = (
    make_tile(*size) for size in ((ROWS, VECTORS), (ROWS, 1), (1, 1))
)


@kernel
def multiply(rows, scale, vectors, unit, offset, y, first, last):
    """y[:, first:last] = x @ wᵀ for some rows of w, each of which is read once for all x.

    Args:    rows (N, K), scale (N,), packed weights; vectors (B, K), unit (B,), offset (B,), x as
             prepared for them; y (B, N) float32; first, last, which rows.
    """
    totals = np.empty((VECTORS, ROWS), offset.dtype)
    n = first
    while n < last:
        # Two rows at a time pay where the arithmetic counts; a single stream is read faster.
        num_rows = ROWS if n + ROWS <= last and len(vectors) > 1 else 1
        b = 0
        while b < len(vectors):
            num_vectors = VECTORS if num_rows == ROWS and b + VECTORS <= len(vectors) else 1
            if num_vectors == VECTORS:
                _tile(rows, n, vectors, b, totals)
            elif num_rows == ROWS:
                _tile_of_one_vector(rows, n, vectors, b, totals)
            else:
                _tile_of_one(rows, n, vectors, b, totals)
            for j in range(num_vectors):
                for i in range(num_rows):
                    total = np.float32(totals[j, i] - offset[b + j])
                    y[b + j, n + i] = total * (scale[n + i] * unit[b + j])
            b += num_vectors
        n += num_rows
