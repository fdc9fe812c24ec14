"""RMSNorm: keep a vector's direction, reset its length.

Why
    Every block adds its output to the residual stream, so the stream grows as it
    flows upward, while each layer that reads it would like inputs of a known
    scale. LayerNorm takes away the mean and divides by the standard deviation.
    RMSNorm keeps only the division: each row is divided by its root mean square,
    and one learned gain per channel scales it again.

Forward, for one row x of C channels
    rstd = 1 / √(mean(x²) + eps)
    x̂    = x · rstd
    y    = x̂ · w

Backward: given dy = ∂L/∂y, find dw = ∂L/∂w and dx = ∂L/∂x
    The gain. y is linear in w, and all rows share the one w, so their
    contributions add:
        dw = Σ_rows dy · x̂

    The input. Call g = dy · w the gradient that reaches x̂. A channel xⱼ acts
    twice: directly on x̂ⱼ, and on every x̂ᵢ through the rstd that they share:
        dxⱼ = gⱼ · rstd + Σᵢ gᵢ xᵢ · ∂rstd/∂xⱼ
    The chain rule on the first line of the forward gives
        ∂rstd/∂xⱼ = −½ (mean(x²) + eps)^(−3/2) · 2xⱼ/C = −rstd³ · xⱼ / C
    and putting it in,
        dxⱼ = rstd · gⱼ − rstd³ · xⱼ · mean(g · x)
            = rstd · (gⱼ − x̂ⱼ · mean(g · x̂))

    Read the last line aloud: take from g its part along x̂. To move along x̂ is
    to change only the length of x, and the length is what this layer forgets.
    (The part along x̂ is x̂ · Σ g·x̂ / Σ x̂², and with eps = 0 the last sum is C.)
    So with eps = 0, Σ dx · x = 0 in every row: a check you can do by hand.

Cached
    x and w by reference, and rstd: one number a row. x̂ is one multiplication
    away, so storing its B·T·C numbers would cost more than making them again.

Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def rmsnorm_forward(x, w, eps=1e-5):
    """Divide each row of x by its root mean square, and scale it by w.

    Args:    x (..., C); w (C,) gain; eps, in the units of x², keeps rows of zeros finite.
    Returns: y (..., C); cache = (x, w, rstd), with rstd (..., 1).
    Raises:  ValueError if w does not have one gain per channel of x.
    """
    if w.shape != x.shape[-1:]:
        raise ValueError(f"rmsnorm: w has shape {w.shape}, but x {x.shape} needs {x.shape[-1:]}")
    rstd = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5  # (..., 1)
    y = x * rstd * w  # (..., C)
    return y, (x, w, rstd)


@fused
def rmsnorm_backward(dy, cache):
    """Undo rmsnorm_forward.

    Args:    dy (..., C) = ∂L/∂y; cache from the forward.
    Returns: dx (..., C); dw (C,).
    """
    x, w, rstd = cache
    # forward: x̂ = x · rstd, made again
    xhat = x * rstd  # (..., C)
    # forward: y = x̂ · w
    dw = np.sum(dy * xhat, axis=tuple(range(dy.ndim - 1)))  # (C,)
    g = dy * w  # (..., C)
    # forward: x̂ = x · rstd(x), the direct path less the part along x̂
    dx = rstd * (g - xhat * np.mean(g * xhat, axis=-1, keepdims=True))  # (..., C)
    return dx, dw
