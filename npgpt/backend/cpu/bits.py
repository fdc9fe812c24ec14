"""Machine instructions that Python has no word for: 64 bytes at once, and the bits of a mask.

A processor compares 64 bytes with a number as fast as one, and the answer is 64 bits: a mask, in
which bit j speaks of byte j. Then one operation on the mask is the same operation on 64 places of
a text: `a & b << 1` is where b was one place earlier and a is now. What remains of interest
are a few set bits, and these are walked from the lowest up:

    while mask:
        j = lowest_bit(mask)
        ...
        mask &= mask - 1        # clears the lowest set bit

Each function here is a few lines of the compiler's own language (LLVM), which knows the best
instruction of every processor: on one with AVX-512 a mask is two instructions.

They take an address, from pointer(array), instead of the array. Numba counts the references to an
array whenever it is handed on, in a way that is safe between threads and therefore slow, and
asks at each access whether the index is negative. An address has neither, and no protection
either: whoever reads through it must know that the array is alive and the place within it.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

BIT, BYTE, INT32, INT64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
WINDOW = 64  # bytes that one mask speaks of


@intrinsic
def pointer(_, array):
    """The address of an array's first element, to be indexed like it: pointer(a)[i] is a[i].

    For arrays that come from outside the kernel. One that it has made itself is gone after the
    last line that names it, and then the address leads nowhere.
    """

    def generate(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def eight_bytes(_, text, start):
    """The 8 bytes from text[start] on as one number, the first in the lowest bits.

    Args:    text, a pointer to uint8; start.
    Returns: uint64. (On a machine that counts from the other end, another number as good.)
    """

    def generate(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.load(builder.bitcast(place, INT64.as_pointer()), align=1)

    return types.uint64(text, types.int64), generate


@intrinsic
def byte_mask(_, text, start, first, last):
    """Which of 64 bytes lie in a range.

    Args:    text, a pointer to uint8; start; first and last, the range, both included.
    Returns: uint64, in which bit j is set where first <= text[start + j] <= last.
    """
    row = ir.VectorType(BYTE, WINDOW)

    def everywhere(builder, number):
        one = builder.insert_element(ir.Constant(row, ir.Undefined), number, INT32(0))
        zeros = ir.Constant(ir.VectorType(INT32, WINDOW), None)
        return builder.shuffle_vector(one, ir.Constant(row, ir.Undefined), zeros)

    def generate(context, builder, signature, arguments):
        text, start, first, last = arguments
        place = builder.gep(text, [start])
        window = builder.load(builder.bitcast(place, row.as_pointer()), align=1)
        first, last = builder.trunc(first, BYTE), builder.trunc(last, BYTE)
        # Below first the difference wraps round to a large number: one comparison, not two.
        above = builder.sub(window, everywhere(builder, first))
        width = everywhere(builder, builder.sub(last, first))
        return builder.bitcast(builder.icmp_unsigned("<=", above, width), INT64)

    return types.uint64(text, types.int64, types.int64, types.int64), generate


@intrinsic
def lowest_bit(_, mask):
    """The place of the lowest set bit of a uint64, 0 to 63; 64 if there is none."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], BIT(0))

    return types.int64(types.uint64), generate


@intrinsic
def highest_bit(_, mask):
    """The place of the highest set bit of a uint64, 0 to 63; -1 if there is none."""

    def generate(context, builder, signature, arguments):
        return builder.sub(INT64(63), builder.ctlz(arguments[0], BIT(0)))

    return types.int64(types.uint64), generate


@intrinsic
def bit_count(_, mask):
    """How many bits of a uint64 are set."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate
