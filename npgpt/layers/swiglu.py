"""SwiGLU: one half of the channels decides how much of the other half goes through.

Why
    A stack of linear layers is one linear layer; something between them has to
    bend: the activation function. SwiGLU bends by a gate. The linear layer before
    it makes 2F channels: F gates g and F values u. A gate passes through SiLU,
    which is nearly 0 for g ≪ 0 and nearly g for g ≫ 0, and multiplies its value.
    So a channel can be shut, or open in proportion, and the network can compute
    products.

Forward, for one pair of channels g (gate) and u (up), the two halves of x
    σ = 1 / (1 + exp(−g))
    y = g · σ · u                                silu(g) = g · σ

Backward: given dy = ∂L/∂y, find dg = ∂L/∂g and du = ∂L/∂u
    The value. y is linear in u:
        du = dy · g · σ

    The gate. First the sigmoid: with e = exp(−g),
        ∂σ/∂g = e / (1 + e)² = σ · e/(1 + e) = σ · (1 − σ)
    Then the product rule on g · σ, whose two factors both contain g:
        ∂silu/∂g = σ + g · σ (1 − σ) = σ · (1 + g · (1 − σ))
        dg = dy · u · σ · (1 + g · (1 − σ))
    For g ≫ 0 the slope is 1 and for g ≪ 0 it is 0, as it should be; in between
    it overshoots to 1.0998 near g = 2.4, and dips below 0 left of g = −1.278.

Cached
    x by reference. σ is as wide as g, and cheaper to make again than to keep.

Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6 (SwiGLU, without biases);
    SiLU: Elfwing, Uchibe & Doya 2018, and as Swish, Ramachandran, Zoph & Le 2017.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def swiglu_forward(x):
    """Let silu(gate) decide how much of up goes through.

    Args:    x (..., 2F), the gates in its first half and the values in its second.
    Returns: y (..., F); cache = (x,).
    Raises:  ValueError if x has an odd number of channels.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"swiglu: x has shape {x.shape}, but gate and up need (..., 2F)")
    F = x.shape[-1] // 2
    gate, up = x[..., :F], x[..., F:]  # (..., F) each
    y = gate * _sigmoid(gate) * up  # (..., F)
    return y, (x,)


@fused
def swiglu_backward(dy, cache):
    """Undo swiglu_forward.

    Args:    dy (..., F) = ∂L/∂y; cache from the forward.
    Returns: dx (..., 2F).
    """
    (x,) = cache
    F = x.shape[-1] // 2
    gate, up = x[..., :F], x[..., F:]  # (..., F) each
    sigma = _sigmoid(gate)  # (..., F)
    dx = np.empty_like(x)  # (..., 2F)
    # forward: y = g · σ(g) · u, first by its gate, then by its value
    dx[..., :F] = dy * up * sigma * (1.0 + gate * (1.0 - sigma))  # (..., F)
    dx[..., F:] = dy * gate * sigma  # (..., F)
    return dx


def _sigmoid(g):
    """1 / (1 + exp(−g)), by way of tanh: exp(−g) overflows float32 at g = −89, tanh never does."""
    return 0.5 + 0.5 * np.tanh(0.5 * g)
