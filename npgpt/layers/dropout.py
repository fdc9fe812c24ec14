"""Dropout: forget a random share of the channels, so that no other layer can rely on one.

Why
    A large model can learn a small text by heart: it finds, for each sentence, some channels
    that only this sentence lights up. If a fifth of all channels is missing, and another
    fifth at each step, no such agreement lasts, and what is useful has to be
    known in many places. That is worse on the text that is learned, and better on new ones.

Forward, for the channel x at place i of the batch, counted through all its rows
    u = a number in [0, 1), made of key and i
    m = 1 / (1 − rate) where u ≥ rate, else 0
    y = x · m

    Why the fraction: the mean of m is (1 − rate) · 1/(1 − rate) = 1. So the layers above
    see channels of the same mean, whether something is dropped or not, and outside of
    training nothing is: a model that is asked, rather than taught, uses all it has.

Backward: given dy = ∂L/∂y, find dx = ∂L/∂x
    m does not depend on x, so y is linear in x:
        dx = dy · m
    with the same m: what was not let through has not touched the loss.

The mask, out of nothing but its place
    A generator of random numbers has a state, which each number changes. Then the mask would
    depend on who drew before, and would have to be kept for backward. So here number i is
    computed directly, as SplitMix64 does: key + i · γ, and then its 64 bits are mixed, until
    changing a single one of them changes each of the result's with a chance of one half. (γ is
    2⁶⁴ over the golden ratio: its multiples fall evenly.) The key is made in the same
    way of the seed, the step and the layer. So a run that goes on draws the masks that it
    would have drawn; a batch may be shared by any number of threads; every device agrees.

Cached
    rate, key and start: three numbers. The mask is made again.

Source: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, "Dropout: A Simple Way to
    Prevent Neural Networks from Overfitting", section 4, and 10 for the scaling in
    training; Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators":
    SplitMix64; Salmon, Moraes, Dror & Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
"""

import numpy as np

from npgpt.backend.fused import fused

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
    (np.uint64(31), np.uint64(1)),
)


@fused
def dropout_forward(x, rate, key, start=0):
    """Set a share of x to zero, and scale up the rest.

    Args:    x (...); rate in [0, 1), the share; key, an int from dropout_key; start, the place
             of x's first number in the whole batch.
    Returns: y (...); cache = (rate, key, start).
    Raises:  ValueError if rate is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: rate is {rate}, but it must be in [0, 1)")
    y = x * _mask(x, rate, key, start)  # (...)
    return y, (rate, key, start)


@fused
def dropout_backward(dy, cache):
    """Undo dropout_forward.

    Args:    dy (...) = ∂L/∂y; cache from the forward.
    Returns: dx (...).
    """
    rate, key, start = cache
    # forward: y = x · m
    return dy * _mask(dy, rate, key, start)  # (...)


def dropout_key(*numbers):
    """Make one number of several, such that other numbers make another: (seed, step, layer)."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        key = _mix((key ^ np.uint64(number)) + GAMMA)
    return int(key[0])


def _mask(x, rate, key, start):
    """m for every number of x: 0, or 1 / (1 − rate)."""
    i = np.arange(x.size, dtype=np.uint64, like=x) + np.uint64(start)
    bits = _mix(i * GAMMA + np.uint64(key))
    kept = bits >= np.uint64(int(rate * 2.0**64))  # u ≥ rate, with u = bits / 2⁶⁴
    return (kept.astype(x.dtype) * (1.0 / (1.0 - rate))).reshape(x.shape)


def _mix(z):
    """SplitMix64's mixing of 64 bits; a product that overflows keeps its lower 64."""
    for shift, factor in MIX:
        z = (z ^ (z >> shift)) * factor
    return z
