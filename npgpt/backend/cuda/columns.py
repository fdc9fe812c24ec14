"""Sums of columns on a GPU: the last step of a gradient that all rows share."""

from npgpt.backend.cuda.compile import FLOAT32, empty, source

COLUMNS, THREADS = 32, 1024  # of a block, as in columns.cu


def sum_columns(partial):
    """Add the rows of a float32 matrix (P, C) up, always in the same order: (C,)."""
    P, C = partial.shape
    sums = empty((C,), FLOAT32)
    blocks = -(-C // COLUMNS)
    source("columns.cu", FLOAT32).launch(
        "sum_columns", (blocks,), (THREADS,), (partial, sums, P, C)
    )
    return sums
