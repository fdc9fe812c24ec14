"""ReLU and GELU on a CPU: Φ and tanh live in registers, and are never written to memory.

The sum for Φ is that of npgpt/layers/mlp.py, with a longer step: float32 has 24 bits, and for them
seven fractions do (the error of the sum is below 1e-9 at h = 0.95).
"""

import math

import numpy as np

from npgpt.backend.cpu.compile import kernel
from npgpt.backend.cpu.exp import exp

f32 = np.float32
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
STEP = 0.95
SQUARES = [((n + 0.5) * STEP) ** 2 for n in range(7)]  # sₙ²
S0, S1, S2, S3, S4, S5, S6 = (f32(s) for s in SQUARES)
W0, W1, W2, W3, W4, W5, W6 = (  # 2h · φ(sₙ)
    f32(2.0 * STEP * math.exp(-0.5 * s) / math.sqrt(2.0 * math.pi)) for s in SQUARES
)
TURN = f32(2.0 * math.pi / STEP)
PEAK = f32(1.0 / math.sqrt(2.0 * math.pi))  # φ(0)
ROOT8, CUBE = f32(2.0 * math.sqrt(2.0 / math.pi)), f32(0.044715)
CUBE3 = f32(3.0 * 0.044715)


def relu_forward(x):
    y = _each(relu, x)
    return y if y is NotImplemented else (y, (y,))


def relu_backward(dy, cache):
    return _each(_relu_slope, *cache, dy)


def gelu_forward(x):
    y = _each(gelu, x)
    return y if y is NotImplemented else (y, (x,))


def gelu_backward(dy, cache):
    return _each(_gelu_slope, *cache, dy)


def gelu_tanh_forward(x):
    y = _each(gelu_tanh, x)
    return y if y is NotImplemented else (y, (x,))


def gelu_tanh_backward(dy, cache):
    return _each(_gelu_tanh_slope, *cache, dy)


def _each(function, *arrays):
    """Run a kernel over the numbers of arrays of one shape: what it writes, in that shape."""
    if arrays[0].size == 0 or arrays[0].shape != arrays[-1].shape:
        return NotImplemented
    rows = [np.ascontiguousarray(x).reshape(-1) for x in arrays]
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    function(*rows, out.reshape(-1))
    return out


@kernel
def _phi(x):
    """φ(x)."""
    return PEAK * exp(-HALF * x * x)


@kernel
def _cdf(x, phi):
    """Φ(x), given φ(x)."""
    q = x * x
    total = W0 / (q + S0) + W1 / (q + S1) + W2 / (q + S2) + W3 / (q + S3)
    total += W4 / (q + S4) + W5 / (q + S5) + W6 / (q + S6)
    return ONE / (ONE + exp(-TURN * x)) - x * phi * total


@kernel
def relu(x, y):
    """y = relu(x), for rows of numbers (N,)."""
    for i in range(x.size):
        y[i] = ZERO if x[i] <= ZERO else x[i]


@kernel
def _relu_slope(y, dy, dx):
    for i in range(y.size):
        dx[i] = ZERO if y[i] <= ZERO else dy[i]


@kernel
def gelu(x, y):
    """y = x · Φ(x), for rows of numbers (N,)."""
    for i in range(x.size):
        y[i] = x[i] * _cdf(x[i], _phi(x[i]))


@kernel
def _gelu_slope(x, dy, dx):
    for i in range(x.size):
        phi = _phi(x[i])
        dx[i] = dy[i] * (_cdf(x[i], phi) + x[i] * phi)


@kernel
def gelu_tanh(x, y):
    """y = x · σ(2u), for ½ (1 + tanh u) is the sigmoid of 2u; rows of numbers (N,)."""
    for i in range(x.size):
        v = x[i]
        y[i] = v / (ONE + exp(-ROOT8 * (v + CUBE * v * v * v)))


@kernel
def _gelu_tanh_slope(x, dy, dx):
    for i in range(x.size):
        v = x[i]
        u = ROOT8 * (v + CUBE * v * v * v)
        e = exp(-abs(u))
        larger = ONE / (ONE + e)  # of σ(u) and 1 − σ(u); the other one is e times that
        sigma = larger if u >= ZERO else e * larger
        slope = e * larger * larger  # σ · (1 − σ), with no difference of numbers near 1
        dx[i] = dy[i] * (sigma + v * slope * ROOT8 * (ONE + CUBE3 * v * v))
