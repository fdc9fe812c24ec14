"""What kernels do with memory: whole rows in order, rows of views, and ids that may point at rows.

The model computes queries, keys and values in one product, and cuts the result: each is a view
whose heads lie side by side, with gaps between the places of the text. Numba's type of such a
view does not say that the numbers of a head are neighbours, and code compiled for it reads
them one by one. These helpers tell it.
"""

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel


def in_rows(x):
    """x as a matrix whose rows are its last axis, in order of memory: a view where it can be."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def ids_below(stop, ids):
    """The ids in a row (N,), or None if one of them is not in [0, stop): a kernel must not read it.

    Args:    stop; ids, whole numbers of any shape.
    """
    flat = np.ascontiguousarray(ids, np.int64).reshape(-1)
    return flat if _all_below(stop, flat) else None


@kernel
def _all_below(stop, ids):
    low, high = np.int64(0), np.int64(0)
    for i in ids:
        low, high = min(low, i), max(high, i)
    return low >= 0 and high < stop


def heads_in_place(x):
    """x itself if each of its last axes is without gaps in memory, otherwise a copy of it.

    Args:    x (B, T, H, D) float32.
    Returns: an array of the same numbers, whose rows row_at can give.
    """
    return x if x.strides[3] == x.itemsize or x.shape[3] == 1 else np.ascontiguousarray(x)


@intrinsic
def _pointer(_, address):
    """The address of a float32, as a pointer to it."""
    signature = types.CPointer(types.float32)(types.uintp)

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return signature, generate


@kernel
def part_of_row(x, n, start, count):
    """x[n, start : start + count] of a matrix in order of memory, faster than as a slice.

    Numba counts the references to a slice, in a way that is safe between threads and so takes
    longer than the work on a short row. Nobody counts those to what is made from an address.
    """
    place = n * x.strides[0] + start * x.itemsize
    return carray(_pointer(np.uintp(x.ctypes.data + place)), count)


@kernel
def address_of_row(x, b, t, h):
    """Where x[b, t, h] begins in memory."""
    return np.uintp(x.ctypes.data + b * x.strides[0] + t * x.strides[1] + h * x.strides[2])


@kernel
def row_at(x, b, t, h):
    """x[b, t, h] as an array without gaps; of an x from heads_in_place."""
    return carray(_pointer(address_of_row(x, b, t, h)), x.shape[3])
