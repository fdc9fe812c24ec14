"""LayerNorm: move a vector's channels to mean 0 and variance 1, then to where training wants them.

Why
    The elder sister of RMSNorm, and the norm of GPT-2. Here too each row is brought to a
    known scale before a layer reads it; but first its mean is taken away, so that a
    push which all channels got alike is forgotten as well. Then each channel is
    scaled by a learned gain and, if the model has biases, moved by a learned one.

Forward, for one row x of C channels
    μ    = mean(x)
    rstd = 1 / √(mean((x − μ)²) + eps)
    x̂    = (x − μ) · rstd
    y    = x̂ · w + b

Backward: given dy = ∂L/∂y, find dw, db and dx
    Gain and bias. y is linear in both, and all rows share them, so the rows add:
        dw = Σ_rows dy · x̂
        db = Σ_rows dy

    The input. Call g = dy · w the gradient that reaches x̂. A channel xⱼ has three
    paths: to its own x̂ⱼ; to every x̂ᵢ through the mean; to every x̂ᵢ through rstd.
        dxⱼ = gⱼ · rstd + Σᵢ gᵢ · (−∂μ/∂xⱼ) · rstd + Σᵢ gᵢ (xᵢ − μ) · ∂rstd/∂xⱼ
    The mean has the slope 1/C in each channel, so the second path takes away rstd · mean(g).
    For the third, call s = mean((x − μ)²) the variance. xⱼ acts on it by its own
    square, and through μ on all of them; but this last part is nothing, since the
    distances to a mean add up to zero:
        ∂s/∂xⱼ = 2 (xⱼ − μ) / C − 2/C · mean(x − μ) = 2 (xⱼ − μ) / C
        ∂rstd/∂xⱼ = −½ (s + eps)^(−3/2) · ∂s/∂xⱼ = −rstd³ · (xⱼ − μ) / C
    All three together, with x − μ written as x̂ / rstd:
        dxⱼ = rstd · (gⱼ − mean(g) − x̂ⱼ · mean(g · x̂))

    Read the last line aloud: take from g its part along (1, …, 1), and its part along
    x̂. The first would move all channels alike, the second would change the
    length, and this layer forgets both. It also tells why to test it with a random dy:
    dy = 1 at w = 1 lies wholly along (1, …, 1), and dx is 0 whatever else is wrong.

Cached
    x and w by reference, and μ and rstd: two numbers a row, from which x̂ is one
    subtraction and one multiplication away.

Source: Ba, Kiros & Hinton 2016, "Layer Normalization", eqs. 3 and 4.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def layernorm_forward(x, w, b=None, eps=1e-5):
    """Move each row of x to mean 0 and variance 1; scale it by w, and move it by b.

    Args:    x (..., C); w (C,) gain; b (C,) bias, or None for none; eps, in the units of x²,
             keeps rows of equal channels finite.
    Returns: y (..., C); cache = (x, w, mean, rstd), with mean and rstd (..., 1).
    Raises:  ValueError if w or b does not have one number per channel of x.
    """
    for name, z in (("w", w), ("b", b)):
        if z is not None and z.shape != x.shape[-1:]:
            raise ValueError(
                f"layernorm: {name} has shape {z.shape}, but x {x.shape} needs {x.shape[-1:]}"
            )
    mean = np.mean(x, axis=-1, keepdims=True)  # (..., 1)
    centred = x - mean  # (..., C)
    rstd = (np.mean(centred * centred, axis=-1, keepdims=True) + eps) ** -0.5  # (..., 1)
    y = centred * rstd * w + (0.0 if b is None else b)  # (..., C)
    return y, (x, w, mean, rstd)


@fused
def layernorm_backward(dy, cache):
    """Undo layernorm_forward.

    Args:    dy (..., C) = ∂L/∂y; cache from the forward.
    Returns: dx (..., C); dw (C,); db (C,), which a forward without b has no use for.
    """
    x, w, mean, rstd = cache
    # forward: x̂ = (x − μ) · rstd, made again
    xhat = (x - mean) * rstd  # (..., C)
    # forward: y = x̂ · w + b
    dw = np.sum(dy * xhat, axis=tuple(range(dy.ndim - 1)))  # (C,)
    db = np.sum(dy, axis=tuple(range(dy.ndim - 1)))  # (C,)
    g = dy * w  # (..., C)
    # forward: x̂ = (x − μ(x)) · rstd(x): the direct path, less the parts along (1, …, 1) and x̂
    along = np.mean(g * xhat, axis=-1, keepdims=True)  # (..., 1)
    dx = rstd * (g - np.mean(g, axis=-1, keepdims=True) - xhat * along)  # (..., C)
    return dx, dw, db
