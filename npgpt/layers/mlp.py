"""ReLU and GELU: the bend between the two matrices of an MLP.

Why
    A stack of linear layers is one linear layer; something between them has to bend: the
    activation function. ReLU is the simplest bend there is: what is negative becomes zero.
    GELU rounds the corner. It asks how likely it is that a normally distributed number is
    smaller than x, and lets through that share of x: hardly anything at −3, half at 0,
    nearly all at 3. GPT-2 makes Φ out of a tanh, and so a curve within 5e-4 of GELU.

Forward, for one channel x
    relu       y = x where x > 0, else 0
    gelu       y = x · Φ(x)                     Φ(x) = ∫ φ from −∞ to x,  φ(s) = exp(−s²/2) / √2π
    gelu_tanh  y = x · ½ (1 + tanh u)           u = √(2/π) · (x + 0.044715 x³)

Backward: given dy = ∂L/∂y, find dx = ∂L/∂x
    relu. The slope is 1 on the right, 0 on the left; at the corner itself, where there
        is none, it is taken as 0:               dx = dy where y > 0, else 0
    gelu. The product rule, and Φ′ = φ:          dx = dy · (Φ + x · φ)
    gelu_tanh. The product rule, with tanh′ = 1 − tanh² and the chain rule for u:
        dx = dy · (½ (1 + tanh u) + ½ x (1 − tanh² u) · √(2/π) (1 + 3 · 0.044715 x²))

How to compute Φ, to the last digit and of complex numbers too: NumPy does not have it
    1. An integral for the tail, x > 0. Write 1/(x² + s²) = ∫ exp(−(x² + s²) r) dr over r > 0,
       integrate over s first (a Gaussian: 1/√(1 + 2r)), and put v = x √(1 + 2r):
           1 − Φ(x) = x φ(x) · ∫ φ(s) / (x² + s²) ds                        over all s
    2. Replace the integral by a sum, h Σ over the midpoints s = (n + ½) h. For a smooth bell
       this is far better than it looks. Poisson's formula tells its error: φ leaves one
       of exp(−2π²/h²), which at h = 0.72 is 3e-17; and the fraction, which is infinite at
       s = ±ix, one that is known exactly, 1/(1 + exp(2πx/h)). Add it, and nothing is left.
    3. As 1/(1 + exp(2a)) = ½ − ½ tanh a, and s and −s give the same term,
           Φ(x) = ½ + ½ tanh(πx/h) − 2h · x φ(x) · Σ_{n ≥ 0} φ(sₙ) / (x² + sₙ²)
       What follows the ½ is odd in x, so it holds for x ≤ 0 too. The 12th term is below
       1e-17: eleven fractions do. gradcheck sees that its slope is φ, in all fifteen digits.

Cached
    relu: y by reference, which the matrix that reads it keeps anyway: so this costs nothing.
    gelu: x by reference. Φ and tanh are as wide as x, and are made again.

Source: Nair & Hinton 2010, "Rectified Linear Units Improve Restricted Boltzmann Machines";
    Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2; the sum for Φ:
    Chiarella & Reichel 1968, "On the evaluation of integrals related to the error function".
"""

import numpy as np

from npgpt.backend.fused import fused

# Python's own floats: a NumPy float64 would turn float32 arrays into float64.
STEP = 0.72  # h
NODES = [(n + 0.5) * STEP for n in range(11)]  # sₙ
PEAK = float((2.0 * np.pi) ** -0.5)  # φ(0)
WEIGHTS = [PEAK * float(np.exp(-0.5 * s * s)) for s in NODES]  # φ(sₙ)
ROOT, CUBE = float((2.0 / np.pi) ** 0.5), 0.044715


@fused
def relu_forward(x):
    """Let through what is positive.

    Args:    x (...).
    Returns: y (...); cache = (y,).
    """
    y = np.where(x.real <= 0, 0.0, x)  # (...), and what is not a number stays
    return y, (y,)


@fused
def relu_backward(dy, cache):
    """Undo relu_forward.

    Args:    dy (...) = ∂L/∂y; cache from the forward.
    Returns: dx (...).
    """
    (y,) = cache
    # forward: y = x where x > 0, so y > 0 just where x was
    return np.where(y.real <= 0, 0.0, dy)  # (...)


@fused
def gelu_forward(x):
    """Let through of x the share Φ(x).

    Args:    x (...).
    Returns: y (...); cache = (x,).
    """
    y = x * _normal_cdf(x)  # (...)
    return y, (x,)


@fused
def gelu_backward(dy, cache):
    """Undo gelu_forward.

    Args:    dy (...) = ∂L/∂y; cache from the forward.
    Returns: dx (...).
    """
    (x,) = cache
    # forward: y = x · Φ(x)
    return dy * (_normal_cdf(x) + x * _normal_pdf(x))  # (...)


@fused
def gelu_tanh_forward(x):
    """GELU by way of tanh, as GPT-2 has it.

    Args:    x (...).
    Returns: y (...); cache = (x,).
    """
    y = 0.5 * x * (1.0 + np.tanh(ROOT * (x + CUBE * (x * x * x))))  # (...)
    return y, (x,)


@fused
def gelu_tanh_backward(dy, cache):
    """Undo gelu_tanh_forward.

    Args:    dy (...) = ∂L/∂y; cache from the forward.
    Returns: dx (...).
    """
    (x,) = cache
    # forward: y = ½ x (1 + tanh u), with u = √(2/π) · (x + 0.044715 x³)
    t = np.tanh(ROOT * (x + CUBE * (x * x * x)))  # (...)
    du = ROOT * (1.0 + 3.0 * CUBE * (x * x))  # (...), ∂u/∂x
    return dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du)  # (...)


def _normal_pdf(x):
    """φ(x), the density of the normal distribution."""
    return PEAK * np.exp(-0.5 * (x * x))


def _normal_cdf(x):
    """Φ(x), by the sum that is derived above."""
    square = x * x
    total = sum(weight / (square + s * s) for s, weight in zip(NODES, WEIGHTS))
    return 0.5 + 0.5 * np.tanh((np.pi / STEP) * x) - (2.0 * STEP) * x * _normal_pdf(x) * total
