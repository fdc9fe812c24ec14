"""One block of the GPT: tokens meet in attention, then each is worked on alone in the MLP.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

The stream x runs through; each branch reads it through a norm, and adds what it found. Which norm,
which bend in the MLP, how a token knows its place, whether the matrices have biases: a GPTConfig
says it by name, and NORMS and MLPS are the names' meaning.

The backward is the forward read upwards, line for line, each layer's backward in the place of its
forward. A value that is used twice receives two gradients, and they add: the stream's goes on
unchanged past the branch, and the branch's own joins it.

Layers return gradients. What is added up, over branches, batches and uses, is added up here and in
model.py, and nowhere else.

Source: Radford et al. 2019 (GPT-2), section 2.3, the norm before each branch; Touvron et al. 2023
    (LLaMA), section 2.2: RMSNorm, SwiGLU and RoPE in it.
"""

import numpy as np

from npgpt.backend.fused import fused
from npgpt.chance import draw, drop_backward, drop_forward
from npgpt.layers import (
    affine_backward,
    affine_forward,
    attention_backward,
    attention_forward,
    dropped_attention_backward,
    dropped_attention_forward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_attention_backward,
    rope_attention_forward,
    rope_backward,
    rope_forward,
    swiglu_backward,
    swiglu_forward,
)
from npgpt.parameters import bias_of

NORMS = {
    "rmsnorm": (rmsnorm_forward, rmsnorm_backward),
    "layernorm": (layernorm_forward, layernorm_backward),
}
MLPS = {  # what bends between the two matrices; "none" is a block of attention alone
    "swiglu": (swiglu_forward, swiglu_backward),
    "gelu": (gelu_forward, gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "relu": (relu_forward, relu_backward),
    "none": None,
}


def block_forward(x, p, rope, config, extend=None, chance=None):
    """One block: tokens meet in attention, then each is worked on alone in the MLP.

    Args:    x (B, T, C), the stream; p, the block's parameters by short name; rope, the
             (cos, sin) of these places, None without rope; config; extend, None or the
             function of a KVCache that appends this layer's keys and values and returns all
             so far; chance, as in forward.
    Returns: x (B, T, C); cache, a dict by layer name.
    """
    cache = {}
    h, cache["attn_norm"] = norm_forward(x, p, "attn_norm", config)  # (B, T, C)
    qkv, cache["wqkv"] = matrix_forward(h, p, "wqkv")  # (B, T, (H + 2G)·D)
    a, kept = attend_forward(qkv, rope, config, extend, chance)  # (B, T, H, D)
    cache |= kept
    a = a.reshape(*x.shape[:2], -1)  # (B, T, H·D)
    x, kept = add_branch(x, a, p, "wo", 0, config, chance)  # (B, T, C)
    cache |= kept
    if config.mlp != "none":
        mlp_forward, _ = MLPS[config.mlp]
        h, cache["mlp_norm"] = norm_forward(x, p, "mlp_norm", config)  # (B, T, C)
        h, cache["w_up"] = matrix_forward(h, p, config.w_up)  # (B, T, F), with gates 2F
        h, cache["mlp"] = mlp_forward(h)  # (B, T, F)
        x, kept = add_branch(x, h, p, "w_down", 1, config, chance)  # (B, T, C)
        cache |= kept
    return x, cache


def block_backward(dx, cache, g, config):
    """Undo block_forward, and add its parameters' gradients to g.

    Args:    dx (B, T, C) = ∂L/∂(block's output); cache; g, the block's gradients by short
             name, added to; config.
    Returns: dx (B, T, C) = ∂L/∂(block's input).
    """
    # forward: x = x + dropout(w_down(mlp(w_up(mlp_norm(x)))))
    if config.mlp != "none":
        _, mlp_backward = MLPS[config.mlp]
        dh = drop_backward(dx, cache["w_down_dropout"])  # (B, T, C)
        dh = matrix_backward(dh, cache["w_down"], g, "w_down")  # (B, T, F)
        dh = mlp_backward(dh, cache["mlp"])  # (B, T, F), with gates 2F
        dh = matrix_backward(dh, cache["w_up"], g, config.w_up)  # (B, T, C)
        # dx went past the branch, and dh through it: here they meet
        dx = norm_backward(dh, cache["mlp_norm"], g, "mlp_norm", config, past=dx)  # (B, T, C)
    # forward: x = x + dropout(wo(attention(rope(q), rope(k), v))), q, k, v = wqkv(attn_norm(x))
    dh = drop_backward(dx, cache["wo_dropout"])  # (B, T, C)
    da = matrix_backward(dh, cache["wo"], g, "wo")  # (B, T, H·D)
    da = da.reshape(*dx.shape[:2], config.n_head, config.head_dim)  # (B, T, H, D)
    dqkv = attend_backward(da, cache)  # (B, T, (H + 2G)·D)
    dh = matrix_backward(dqkv, cache["wqkv"], g, "wqkv")  # (B, T, C)
    return norm_backward(dh, cache["attn_norm"], g, "attn_norm", config, past=dx)  # (B, T, C)


def add_branch(x, h, p, name, place, config, chance):
    """x + dropout(h @ p[name]): a branch ends, and adds what it found to the stream.

    Args:    x (B, T, C), the stream; h (B, T, F), what its last matrix p[name] is given; place, of
             the mask, which tells the two branches apart; config and chance, as for block_forward.
    Returns: x (B, T, C); cache, a dict by layer name.
    """
    cache = {f"{name}_dropout": None}
    if bias_of(name) not in p and (chance is None or config.dropout == 0.0):
        x, cache[name] = linear_forward_onto(x, h, p[name])  # nothing stands between
        return x, cache
    h, cache[name] = matrix_forward(h, p, name)  # (B, T, C)
    h, cache[f"{name}_dropout"] = drop_forward(h, place, config, chance)  # (B, T, C)
    return meet(x, h), cache


def attend_forward(qkv, rope, config, extend=None, chance=None):
    """Attention over the heads of qkv: one of three layers, with RoPE in it or before it.

    Args:    qkv (B, T, (H + 2G)·D); rope, config, extend and chance, as for block_forward.
    Returns: y (B, T, H, D); cache, a dict by layer name.
    """
    drops = chance is not None and config.attention_dropout > 0.0
    if config.position == "rope" and extend is None and not drops:
        y, kept = rope_attention_forward(qkv, *rope, config.n_head)  # (B, T, H, D)
        return y, {"rope_attention": kept}
    cache = {}
    q, k, v = split_qkv(qkv, config)  # (B, T, H, D), (B, T, G, D) twice
    if config.position == "rope":  # the memory keeps keys that are turned already
        q, cache["rope"] = rope_forward(q, *rope)  # (B, T, H, D)
        k, _ = rope_forward(k, *rope)  # (B, T, G, D)
    if extend is not None:
        k, v = extend(k, v)  # (B, S, G, D): what the earlier tokens left for this one
    if drops:
        T = q.shape[1]
        mask = draw(chance, 2, config.n_head * T * T)
        y, cache["dropped_attention"] = dropped_attention_forward(
            q, k, v, config.attention_dropout, *mask
        )  # (B, T, H, D)
    else:
        y, cache["attention"] = attention_forward(q, k, v)  # (B, T, H, D)
    return y, cache


def attend_backward(dy, cache):
    """Undo attend_forward.

    Args:    dy (B, T, H, D) = ∂L/∂y; cache, the block's, in which attend_forward's is a part.
    Returns: dqkv (B, T, (H + 2G)·D).
    """
    if "rope_attention" in cache:
        return rope_attention_backward(dy, cache["rope_attention"])
    if "dropped_attention" in cache:
        dq, dk, dv = dropped_attention_backward(dy, cache["dropped_attention"])
    else:
        dq, dk, dv = attention_backward(dy, cache["attention"])  # (B, T, H or G, D) each
    if "rope" in cache:
        dq = rope_backward(dq, cache["rope"])  # (B, T, H, D)
        dk = rope_backward(dk, cache["rope"])  # (B, T, G, D)
    return join_qkv(dq, dk, dv)  # (B, T, (H + 2G)·D)


def norm_forward(x, p, name, config):
    """The configuration's norm, with the gain p[name], and its bias if it has one."""
    forward, _ = NORMS[config.norm]
    learned = [p[n] for n in (name, bias_of(name)) if n in p]
    return forward(x, *learned, eps=config.norm_eps)


def norm_backward(dy, cache, g, name, config, past=None):
    """Undo norm_forward, add the gradients of gain and bias to g, and return dx.

    With past (B, T, C), the gradient of x's other use, what is returned is the sum of both.
    """
    if past is None:
        _, backward = NORMS[config.norm]
        dx, *dlearned = backward(dy, cache)
    else:
        dx, *dlearned = norm_backward_onto(past, dy, cache, config.norm)
    for n, d in zip((name, bias_of(name)), dlearned):
        if n in g:
            g[n] += d
    return dx


def matrix_forward(x, p, name):
    """Multiply x by the matrix p[name], and add its bias if it has one."""
    bias = bias_of(name)
    return affine_forward(x, p[name], p[bias]) if bias in p else linear_forward(x, p[name])


def matrix_backward(dy, cache, g, name):
    """Undo matrix_forward, add the gradients of matrix and bias to g, and return dx."""
    bias = bias_of(name)
    if bias in g:
        return affine_backward_into(dy, cache, g[name], g[bias])
    return linear_backward_into(dy, cache, g[name])


@fused
def linear_forward_onto(past, x, w):
    """linear_forward, and the sum of its y with the stream: a kernel adds where it multiplies.

    Args:    past (B, T, N), what goes past the branch; x (B, T, C); w (C, N).
    Returns: y (B, T, N); cache of linear_forward.
    """
    y, cache = linear_forward(x, w)  # (B, T, N)
    return meet(past, y), cache


@fused
def linear_backward_into(dy, cache, g):
    """linear_backward, and the sum that its dw goes into: a kernel adds where it multiplies.

    Args:    dy (B, T, N); cache of linear_forward; g (C, N), the gradient of w so far, added to.
    Returns: dx (B, T, C).
    """
    dx, dw = linear_backward(dy, cache)  # (B, T, C), (C, N)
    g += dw  # (C, N)
    return dx


@fused
def affine_backward_into(dy, cache, g, gb):
    """affine_backward, and the sums that its dw and db go into.

    Args:    dy (B, T, N); cache of affine_forward; g (C, N) and gb (N,), the gradients of w and b
             so far, added to.
    Returns: dx (B, T, C).
    """
    dx, dw, db = affine_backward(dy, cache)  # (B, T, C), (C, N), (N,)
    g += dw  # (C, N)
    gb += db  # (N,)
    return dx


@fused
def norm_backward_onto(past, dy, cache, norm):
    """A norm's backward, and the sum of its dx with what went past the branch that it begins.

    Args:    past (B, T, C), the gradient of the stream's other use; dy (B, T, C); cache of the
             norm's forward; norm, its name in NORMS.
    Returns: dx (B, T, C); the gradients of gain and bias, as the norm's backward has them.
    """
    _, backward = NORMS[norm]
    dx, *dlearned = backward(dy, cache)  # (B, T, C), (C,) each
    return meet(past, dx), *dlearned


@fused
def meet(a, b):
    """a + b (B, T, C): the stream and a branch, or the gradients of a value's two uses."""
    return a + b  # (B, T, C)


def split_qkv(qkv, config):
    """Cut (B, T, (H + 2G)·D) into heads: q (B, T, H, D), k and v (B, T, G, D), as views."""
    B, T, _ = qkv.shape
    H, G = config.n_head, config.n_kv_head
    heads = qkv.reshape(B, T, H + 2 * G, config.head_dim)  # (B, T, H + 2G, D)
    return heads[:, :, :H], heads[:, :, H : H + G], heads[:, :, H + G :]


@fused
def join_qkv(q, k, v):
    """Undo split_qkv; and as it only moves numbers, this is its backward too."""
    B, T, _, _ = q.shape
    return np.concatenate([q, k, v], axis=2).reshape(B, T, -1)
