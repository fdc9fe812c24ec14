"""RoPE: turn each query and key by an angle that grows with its position.

Why
    Attention compares vectors and does not know where they stand: shuffle the
    past, and every score stays the same. RoPE writes the position into the
    vectors themselves, as a rotation. Take two channels of a head as a point in
    the plane, and turn it by the angle p·ω at position p. The score of a query
    at position m and a key at position n is a dot product, and a dot product
    of two turned vectors only sees the difference of the turns:
        (R(mω) q) · (R(nω) k) = q · (R(mω)ᵀ R(nω) k) = q · R((n − m)ω) k
    So a score depends on how far apart two tokens are, not on where they are,
    and no weight had to be learned for it.

    The D channels of a head make D/2 such planes, each with an ω of its own: the
    first turns by one radian a token and tells neighbours apart, the last ones
    turn so slowly that they tell one end of the text from the other.

Forward, for one head's row x at position p; half-split: plane j pairs channels j and j + D/2
    ωⱼ = theta^(−2j/D)              j = 0 … D/2 − 1
    c, s = cos(p·ω), sin(p·ω)
    y₁ = x₁ · c − x₂ · s            x₁, x₂ and y₁, y₂ are the two halves of x and y
    y₂ = x₂ · c + x₁ · s

Backward: given dy = ∂L/∂y, find dx = ∂L/∂x
    Read the two lines column by column. x₁ goes into y₁ with weight c, and into
    y₂ with weight s; x₂ goes into y₁ with weight −s, and into y₂ with weight c:
        dx₁ =  dy₁ · c + dy₂ · s
        dx₂ = −dy₁ · s + dy₂ · c
    That is the forward with s replaced by −s: a turn by −p·ω. It has to be. The
    gradient of y = R x is dx = Rᵀ dy, and the transpose of a rotation is the
    rotation back. So |dx| = |dy|: this layer can't make a gradient vanish or explode.

Stretched, to read on where training ended
    A model that was trained on T places has not seen the angles of later ones. Turn more slowly by
    a factor f, ωⱼ/f in place of ωⱼ, and place p gets the angle that p/f had: after a little
    training the model reads f·T places. But the fast planes, which tell neighbours apart, lose by
    it, and have no need: they have been full circle many times within T. So Llama 3 goes by the
    wavelength λⱼ = 2π/ωⱼ, in tokens. Waves up to the length `kept` stay, waves from the length
    `stretched` on are stretched, and between these two lengths the one passes into the other:
        aⱼ = (1/λⱼ − 1/stretched) / (1/kept − 1/stretched), no less than 0 and no more than 1
        ωⱼ becomes aⱼ · ωⱼ + (1 − aⱼ) · ωⱼ/f
    The angles are constants still, and backward does not change.

Cached
    cos and sin, by reference; a linear layer without weights needs nothing of x.

Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", eqs. 14–16 and 34. The paper pairs neighbouring channels (2j, 2j + 1);
    the half-split pairing is the same layer with its channels in another order.
    Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
    Interpolation", eq. 4: all waves stretched. By their length: Llama 3.1's released code.
"""

import numpy as np

from npgpt.backend.fused import fused


def rope_table(start, stop, head_dim, theta, like, stretch=None):
    """Make the cosines and sines for the positions start … stop − 1.

    Args:    start, stop, positions; head_dim D, even; theta, the base of the wavelengths; like,
             an array whose device and dtype the tables get (float32, where it is bfloat16);
             stretch, None or (factor, kept, stretched) of stretch_waves.
    Returns: cos, sin (T, D/2) with T = stop − start.
    Raises:  ValueError if head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rope: head_dim is {head_dim}, but its channels must come in pairs")
    position = np.arange(start, stop, dtype=np.float64, like=like)  # (T,)
    plane = np.arange(head_dim // 2, dtype=np.float64, like=like)  # (D/2,)
    omega = theta ** (-2.0 * plane / head_dim)  # (D/2,) in radians a token
    if stretch is not None:
        omega = stretch_waves(omega, *stretch)  # (D/2,)
    angle = position[:, None] * omega  # (T, D/2), float64: float32 is off by 1e-3 at p = 10⁴
    dtype = like.dtype if like.dtype.kind in "fc" else np.float32  # bfloat16's 3 digits are too few
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def stretch_waves(omega, factor, kept=0.0, stretched=0.0):
    """Turn the planes of long wavelength more slowly.

    Args:    omega (D/2,) in radians a token; factor f; kept, the length in tokens up to which waves
             stay as they are; stretched, the length from which they are stretched as a whole; 0
             for both stretches all.
    Returns: omega (D/2,).
    """
    waves = omega / (2.0 * np.pi)  # (D/2,) 1/λ
    stay = 0.0
    if stretched:
        stay = np.clip((waves - 1.0 / stretched) / (1.0 / kept - 1.0 / stretched), 0.0, 1.0)
    return stay * omega + (1.0 - stay) * omega / factor  # (D/2,)


@fused
def rope_forward(x, cos, sin):
    """Turn each plane of x by the angle of its position.

    Args:    x (B, T, H, D); cos, sin (T, D/2) from rope_table.
    Returns: y (B, T, H, D); cache = (cos, sin).
    Raises:  ValueError if cos or sin does not have one angle for each position and plane.
    """
    B, T, H, D = x.shape
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (T, D // 2) or D % 2:
            raise ValueError(
                f"rope: {name} has shape {table.shape}, but x {x.shape} needs ({T}, {D} / 2)"
            )
    c, s = cos[:, None, :], sin[:, None, :]  # (T, 1, D/2): all heads turn alike
    x1, x2 = x[..., : D // 2], x[..., D // 2 :]  # (B, T, H, D/2) each
    y = np.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], axis=-1)  # (B, T, H, D)
    return y, (cos, sin)


@fused
def rope_backward(dy, cache):
    """Undo rope_forward.

    Args:    dy (B, T, H, D) = ∂L/∂y; cache from the forward.
    Returns: dx (B, T, H, D); the angles are constants.
    """
    cos, sin = cache
    # forward: y = R(p·ω) x, so dx = R(p·ω)ᵀ dy = R(−p·ω) dy, and only the sine is odd
    dx, _ = rope_forward(dy, cos, -sin)  # (B, T, H, D)
    return dx
