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
    _drop(x.reshape(-1), y.reshape(-1), mask_of(rate, key, start))
    return y


def mask_of(rate, key, start):
    """A mask as kernels want it: the least bits that are kept, what these become, key, start."""
    least, scale = np.uint64(int(rate * 2.0**64)), np.float32(1.0 / (1.0 - rate))
    return least, scale, np.uint64(key), np.uint64(start)


@kernel
def _drop(x, y, mask):
    """y = x · scale where the bits of a number's place are at least `least`, elsewhere x · 0."""
    least, scale, key, start = mask
    for i in range(x.size):
        bits = mixed((np.uint64(i) + start) * GAMMA + key)
        y[i] = x[i] * (scale if bits >= least else np.float32(0))


@kernel
def mixed(z):
    """SplitMix64's mixing of 64 bits."""
    z = (z ^ (z >> SHIFT1)) * FACTOR1
    z = (z ^ (z >> SHIFT2)) * FACTOR2
    return z ^ (z >> SHIFT3)
