"""A row that all rows of a matrix share, on a GPU: it is added, and its gradient is their sum."""

from npgpt.backend.cuda.columns import sum_columns
from npgpt.backend.cuda.compile import FLOAT32, contiguous, empty, source, width_for

THREADS = 128  # of a block, as in shared_row.cu
BLOCKS = 2048  # that fill a large GPU
LEAST_ROWS = 32  # of a block that adds rows up: what it writes is then little beside what it reads


def add_row(x, b, y):
    """y = x + b, for each row of a matrix; rounded once.

    Args:    x (R, C); b (C,), of its dtype; y (R, C), to be filled, without gaps: perhaps x itself.
    """
    R, C = x.shape
    x, b = contiguous(x), contiguous(b)
    kernels, tiles = _kernels(C, x, b, y)
    stripes = min(R, max(BLOCKS // tiles, 1))
    kernels.launch("add_row", (tiles, stripes), (THREADS,), (x, b, y, R, C))


def sum_rows(x):
    """The sum of a matrix's rows (R, C), in float32 and always in the same order: (C,)."""
    R, C = x.shape
    x = contiguous(x)
    kernels, tiles = _kernels(C, x)
    stripes = max(min(R // LEAST_ROWS, BLOCKS // tiles), 1)
    partial = empty((stripes, C), FLOAT32)
    kernels.launch("sum_rows", (tiles, stripes), (THREADS,), (x, partial, R, C))
    return partial.reshape(C) if stripes == 1 else sum_columns(partial)


def _kernels(C, *arrays):
    """The kernels, and how many blocks share a row."""
    width = width_for(C, *arrays)
    return source("shared_row.cu", arrays[0].dtype, WIDTH=width), -(-C // (width * THREADS))
