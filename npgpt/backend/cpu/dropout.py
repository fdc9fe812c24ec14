"""Dropout on a CPU: each number's 64 bits are made, mixed and compared in registers."""

import numpy as np

from npgpt.backend.cpu.compile import kernel

GAMMA = np.uint64(0x9E3779B97F4A7C15)
SHIFT1, FACTOR1 = np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)
SHIFT2, FACTOR2 = np.uint64(27), np.uint64(0x94D049BB133111EB)
SHIFT3 = np.uint64(31)


def dropout_forward(x, rate, key, start=0):
    if not 0.0 <= rate < 1.0 or x.size == 0:
        return NotImplemented
    return _apply(x, rate, key, start), (rate, key, start)


def dropout_backward(dy, cache):
    return NotImplemented if dy.size == 0 else _apply(dy, *cache)


def _apply(x, rate, key, start):
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    least, scale = np.uint64(int(rate * 2.0**64)), np.float32(1.0 / (1.0 - rate))
    _drop(x.reshape(-1), y.reshape(-1), least, scale, np.uint64(key), np.uint64(start))
    return y


@kernel
def _drop(x, y, least, scale, key, start):
    """y = x · scale where the bits of a number's place are at least `least`, elsewhere x · 0."""
    for i in range(x.size):
        z = (np.uint64(i) + start) * GAMMA + key
        z = (z ^ (z >> SHIFT1)) * FACTOR1
        z = (z ^ (z >> SHIFT2)) * FACTOR2
        z = z ^ (z >> SHIFT3)
        y[i] = x[i] * (scale if z >= least else np.float32(0))
