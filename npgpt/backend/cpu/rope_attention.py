"""RoPE and attention in one, on a CPU: what is turned is never written to memory."""

import numpy as np

from npgpt.backend.cpu import attention


def rope_attention_forward(qkv, cos, sin, n_head):
    if not _fit(qkv, cos, sin, n_head):
        return NotImplemented
    done = attention.forward(*_heads(qkv, cos, n_head), attention.KEEP_ALL, _angles(cos, sin))
    if done is NotImplemented:
        return NotImplemented
    y, (*_, lse) = done
    return y, (qkv, cos, sin, y, lse)


def rope_attention_backward(dy, cache):
    qkv, cos, sin, y, lse = cache
    n_head = y.shape[2]
    if not _fit(qkv, cos, sin, n_head):
        return NotImplemented
    dqkv = np.empty(qkv.shape, qkv.dtype)
    done = attention.backward(
        dy, (*_heads(qkv, cos, n_head), y, lse), attention.KEEP_ALL, _angles(cos, sin),
        _heads(dqkv, cos, n_head),
    )  # fmt: skip
    return NotImplemented if done is NotImplemented else dqkv


def _fit(qkv, cos, sin, n_head):
    """Whether qkv (B, T, (H + 2G)·D) is made of such heads, with an angle for each place."""
    if qkv.ndim != 3 or cos.ndim != 2 or cos.size == 0 or cos.shape != sin.shape:
        return False
    D = 2 * cos.shape[1]
    G, rest = divmod(qkv.shape[2] - n_head * D, 2 * D)
    return cos.shape[0] == qkv.shape[1] and rest == 0 and G > 0


def _heads(qkv, cos, n_head):
    """Cut (B, T, (H + 2G)·D) into q (B, T, H, D), k and v (B, T, G, D), as views."""
    B, T, channels = qkv.shape
    D = 2 * cos.shape[1]
    heads = qkv.reshape(B, T, channels // D, D)  # (B, T, H + 2G, D)
    first_value = (n_head + channels // D) // 2  # H + G
    return heads[:, :, :n_head], heads[:, :, n_head:first_value], heads[:, :, first_value:]


def _angles(cos, sin):
    """The tables, without gaps."""
    return np.ascontiguousarray(cos), np.ascontiguousarray(sin)
