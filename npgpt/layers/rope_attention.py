"""RoPE and attention in one: queries and keys are turned on their way to being compared.

Why
    Between the product that makes queries, keys and values, and the attention that uses them,
    stands RoPE, which only turns numbers. As a layer of its own it reads all queries and
    keys from memory and writes them back, turned; and on a processor that computes faster
    than it remembers, reading and writing is what costs. Attention reads them anyway. So
    turn them there, between memory and the product, and write nothing.

    This file holds no new mathematics, and that is its point: a composition of layers is a
    layer, and its backward is the composition of theirs, in reverse. The text below says
    just that. A kernel of the same name may do all of it in one pass.

Forward, with the two layers as functions
    q, k, v = the heads of qkv
    y = attention(rope(q), rope(k), v)

Backward: given dy = ∂L/∂y, find dqkv
    The chain rule, read from the outside in. With q′ = rope(q) and k′ = rope(k),
        dq′, dk′, dv = attention's backward of dy
        dq = rope's backward of dq′, the turn back; and dk of dk′ the same
    A head of qkv is read once, so its gradient is one of these, at the same place.

Cached
    qkv, cos and sin by reference, and attention's y and lse. The turned queries and keys are
    as wide as q and k, and turning is cheap: they are made again.

Source: RoPE as in rope.py and attention as in attention.py; nothing else is here.
"""

import numpy as np

from npgpt.backend.fused import fused
from npgpt.layers.attention import attention_backward, attention_forward
from npgpt.layers.rope import rope_backward, rope_forward


@fused
def rope_attention_forward(qkv, cos, sin, n_head):
    """Attention over the heads of one array, with queries and keys turned by RoPE.

    Args:    qkv (B, T, (H + 2G)·D), the heads of queries, keys and values side by side;
             cos, sin (T, D/2) from rope_table; n_head, H.
    Returns: y (B, T, H, D); cache = (qkv, cos, sin, y, lse), with lse (B, G, R, T, 1).
    Raises:  ValueError if qkv is not made of H query heads, and key and value heads that fit.
    """
    q, k, v = _heads(qkv, cos, n_head)  # (B, T, H, D), (B, T, G, D) twice
    q, _ = rope_forward(q, cos, sin)  # (B, T, H, D)
    k, _ = rope_forward(k, cos, sin)  # (B, T, G, D)
    y, (*_, lse) = attention_forward(q, k, v)  # (B, T, H, D)
    return y, (qkv, cos, sin, y, lse)


@fused
def rope_attention_backward(dy, cache):
    """Undo rope_attention_forward.

    Args:    dy (B, T, H, D) = ∂L/∂y; cache from the forward.
    Returns: dqkv (B, T, (H + 2G)·D); the angles are constants.
    """
    qkv, cos, sin, y, lse = cache
    q, k, v = _heads(qkv, cos, y.shape[2])  # (B, T, H, D), (B, T, G, D) twice
    # forward: q = rope(q) and k = rope(k), made again
    q, _ = rope_forward(q, cos, sin)  # (B, T, H, D)
    k, _ = rope_forward(k, cos, sin)  # (B, T, G, D)
    # forward: y = attention(q, k, v)
    dq, dk, dv = attention_backward(dy, (q, k, v, y, lse))  # (B, T, H, D), (B, T, G, D) twice
    # forward: q = rope(q) and k = rope(k)
    dq = rope_backward(dq, (cos, sin))  # (B, T, H, D)
    dk = rope_backward(dk, (cos, sin))  # (B, T, G, D)
    # forward: q, k, v are parts of qkv
    return np.concatenate([dq, dk, dv], axis=2).reshape(qkv.shape)  # (B, T, (H + 2G)·D)


def _heads(qkv, cos, H):
    """Cut (B, T, (H + 2G)·D) into q (B, T, H, D), k and v (B, T, G, D), as views."""
    (B, T, channels), D = qkv.shape, 2 * cos.shape[1]
    G, rest = divmod(channels - H * D, 2 * D)
    if rest or G < 1:
        raise ValueError(
            f"rope_attention: qkv has shape {qkv.shape}, but {H} query heads of {D} channels need "
            f"({B}, {T}, ({H} + 2G)·{D})"
        )
    heads = qkv.reshape(B, T, H + 2 * G, D)  # (B, T, H + 2G, D)
    return heads[:, :, :H], heads[:, :, H : H + G], heads[:, :, H + G :]
