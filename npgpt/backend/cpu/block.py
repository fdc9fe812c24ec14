"""Between a block's layers on a CPU: a weight's gradient is added to where it is made."""

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.linear import backward_into
from npgpt.backend.cpu.memory import in_rows

# The rows of a bias's gradient are added up in groups, as one long sum would gather errors.
GROUP = 32


def linear_backward_into(dy, cache, g):
    return backward_into(dy, cache, g, True)


def affine_backward_into(dy, cache, g, gb):
    dx = backward_into(dy, cache, g, True)
    if dx is not NotImplemented:
        _add_rows(in_rows(dy), gb)
    return dx


@kernel
def _add_rows(rows, total):
    """total (N,) += the sum of rows (R, N)."""
    R, N = rows.shape
    some = np.empty(N, np.float32)
    for start in range(0, R, GROUP):
        some[:] = 0
        for r in range(start, min(start + GROUP, R)):
            for n in range(N):
                some[n] += rows[r, n]
        for n in range(N):
            total[n] += some[n]
