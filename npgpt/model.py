"""The GPT: layers composed, and the composition read upwards.

A GPT reads tokens and says, at each place, which token it expects next. A stream of
C channels a token runs from the bottom to the top. Each of L blocks reads the
stream twice, once through attention, where tokens meet, and once through the MLP,
where each token is worked on alone, and each time adds what it found:

    x = wte[ids]                      and + wpe, where positions are learned
    L times:  x = x + attention(norm(x))
              x = x + mlp(norm(x))
    logits = norm(x) @ wteᵀ

Which norm, which bend in the MLP, how a token knows its place, and whether the matrices
have biases, a GPTConfig says by name; NORMS and MLPS are the names' meaning. So the same
few lines are a Llama (rmsnorm, rope, swiglu), a GPT-2 (layernorm, learned, gelu_tanh, bias),
and what lies between them.

Backward is the same list read from the bottom line to the top, each layer's
backward in the place of its forward. Only three things are not in a layer file, and
all three are the same fact, that a value used twice receives two gradients, which add:

    x + f(x)      the stream's gradient goes on unchanged, and f's is added to it;
    norm(x)       the part that went through the branch joins the part that went past it;
    tied wte      the table is used at the bottom, as embedding, and at the top, as
                  lm_head. Its gradient is the sum of both. Forget one, and the
                  model still learns, a little worse, and nothing tells you.

Parameters come by name, and gradients go by name: see parameters.py.

Source: Radford et al. 2019 (GPT-2), the pre-norm block and the scaled initialisation of
    section 2.3; Touvron et al. 2023 (LLaMA), section 2.2: RMSNorm, SwiGLU and RoPE in it;
    Press & Wolf 2017, "Using the Output Embedding to Improve Language Models": tying.
"""

from typing import NamedTuple

import numpy as np

from npgpt.backend.fused import fused
from npgpt.layers import (
    affine_backward,
    affine_forward,
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    dropout_key,
    dropped_attention_backward,
    dropped_attention_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_backward,
    relu_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_attention_backward,
    rope_attention_forward,
    rope_backward,
    rope_forward,
    rope_table,
    smooth_cross_entropy_backward,
    smooth_cross_entropy_forward,
    swiglu_backward,
    swiglu_forward,
)
from npgpt.parameters import (
    POSITIONS,
    GPTConfig,
    Parameters,
    bias_of,
    count_parameters,
    init_parameters,
    parameter_shapes,
)

__all__ = [
    "MLPS",
    "NORMS",
    "POSITIONS",
    "Chance",
    "GPTConfig",
    "Parameters",
    "backward",
    "count_parameters",
    "forward",
    "init_parameters",
    "loss_and_gradients",
    "parameter_shapes",
]

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


PLACES = 3  # of a block's masks: the two branches, and attention's weights


class Chance(NamedTuple):
    """What is left to chance in one step of training: what dropout drops.

    Whoever has none to give, as in evaluation and sampling, drops nothing.

    Attributes: seed; step; row, the place of ids' first row in the step's whole batch; layer,
                filled in by forward: 0 for the embedding, 1 … L for the blocks; keys, None, or
                what mask_keys makes of these, in a GPU's memory: there a step that was recorded
                once, numbers and all, finds the keys of each new step.
    """

    seed: int
    step: int
    row: int = 0
    layer: int = 0
    keys: object = None


def forward(params, ids, config, past=None, chance=None):
    """Score every token of the vocabulary as the next one, at every place.

    Args:    params, Parameters or any dict of their names; ids (B, T) int, T ≤ block_size;
             config; past, the keys and values of earlier tokens when sampling
             (sampling.KVCache), None in training; chance, a Chance in training, None for no
             dropout.
    Returns: logits (B, T, V); cache, a dict by layer name for backward.
    Raises:  ValueError if the ids are not (B, T), or reach past the context.
    """
    start = 0 if past is None else past.length
    if ids.ndim != 2 or start + ids.shape[1] > config.block_size:
        raise ValueError(
            f"forward: ids have shape {ids.shape} after {start} earlier tokens, "
            f"but block_size {config.block_size} needs (B, T ≤ {config.block_size - start})"
        )
    T, rope, cache = ids.shape[1], None, {}
    x, cache["wte"] = embedding_forward(ids, params["wte"])  # (B, T, C)
    if config.position == "learned":
        x, cache["wpe"] = position_forward(x, params["wpe"], start)  # (B, T, C)
    if config.position == "rope":
        rope = rope_table(start, start + T, config.head_dim, config.rope_theta, params["norm"],
                          config.rope_stretch)  # fmt: skip
    x, cache["dropout"] = drop_forward(x, 0, config, chance)  # (B, T, C)
    for i in range(config.n_layer):
        extend = None if past is None else past.layer(i)
        draw = None if chance is None else chance._replace(layer=i + 1)
        block = x, params.block(i), rope, config, extend, draw
        x, kept = block_forward(*block)  # (B, T, C)
        cache[i] = block if config.recompute else kept
    x, cache["norm"] = norm_forward(x, params, "norm", config)  # (B, T, C)
    head = head_of(params, config)
    logits, cache["lm_head"] = matrix_forward(x, head, "lm_head")  # (B, T, V)
    return logits, cache


def backward(dlogits, cache, grads, config):
    """Undo forward, and add every parameter's gradient to grads.

    Args:    dlogits (B, T, V) = ∂L/∂logits; cache from forward; grads, Parameters that
             are added to; config.
    Returns: nothing: tokens have no gradient.
    """
    # forward: logits = x @ lm_head, and + lm_head_bias
    dhead = head_of(grads, config)  # if it is tied, the table's first use, read upwards
    dx = matrix_backward(dlogits, cache["lm_head"], dhead, "lm_head")  # (B, T, C)
    # forward: x = norm(x)
    dx = norm_backward(dx, cache["norm"], grads, "norm", config)  # (B, T, C)
    # forward: x = block(x), L times
    for i in reversed(range(config.n_layer)):
        dx = block_backward(dx, recall(cache[i], config), grads.block(i), config)  # (B, T, C)
    # forward: x = dropout(wte[ids] + wpe)
    dx = drop_backward(dx, cache["dropout"])  # (B, T, C)
    if config.position == "learned":
        dx, dwpe = position_backward(dx, cache["wpe"])  # (B, T, C)
        grads["wpe"] += dwpe
    embedding_backward_into(dx, cache["wte"], grads["wte"])  # and its second use: they add


def recall(kept, config):
    """The cache of a block: as it was kept, or made again.

    What a block's forward keeps is some twenty times as wide as the stream, and all of it waits
    until backward comes down to that block. With config.recompute only what the block was
    given is kept, and its forward runs once more when its cache is wanted: a third more
    arithmetic, for memory that no longer grows with all that a block does, times the blocks.
    The same function on the same numbers, so not a bit of any gradient changes.

    Source: Chen, Xu, Zhang & Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    return block_forward(*kept)[1] if config.recompute else kept


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
    h, cache["wo"] = matrix_forward(a.reshape(*x.shape[:2], -1), p, "wo")  # (B, T, C)
    h, cache["wo_dropout"] = drop_forward(h, 0, config, chance)  # (B, T, C)
    x = meet(x, h)  # (B, T, C)
    if config.mlp != "none":
        mlp_forward, _ = MLPS[config.mlp]
        h, cache["mlp_norm"] = norm_forward(x, p, "mlp_norm", config)  # (B, T, C)
        h, cache["w_up"] = matrix_forward(h, p, config.w_up)  # (B, T, F), with gates 2F
        h, cache["mlp"] = mlp_forward(h)  # (B, T, F)
        h, cache["w_down"] = matrix_forward(h, p, "w_down")  # (B, T, C)
        h, cache["w_down_dropout"] = drop_forward(h, 1, config, chance)  # (B, T, C)
        x = meet(x, h)  # (B, T, C)
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
        dh = norm_backward(dh, cache["mlp_norm"], g, "mlp_norm", config)  # (B, T, C)
        dx = meet(dx, dh)  # (B, T, C): past the branch, and through it
    # forward: x = x + dropout(wo(attention(rope(q), rope(k), v))), q, k, v = wqkv(attn_norm(x))
    dh = drop_backward(dx, cache["wo_dropout"])  # (B, T, C)
    da = matrix_backward(dh, cache["wo"], g, "wo")  # (B, T, H·D)
    da = da.reshape(*dx.shape[:2], config.n_head, config.head_dim)  # (B, T, H, D)
    dqkv = attend_backward(da, cache)  # (B, T, (H + 2G)·D)
    dh = matrix_backward(dqkv, cache["wqkv"], g, "wqkv")  # (B, T, C)
    dh = norm_backward(dh, cache["attn_norm"], g, "attn_norm", config)  # (B, T, C)
    return meet(dx, dh)  # (B, T, C)


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


def norm_backward(dy, cache, g, name, config):
    """Undo norm_forward, add the gradients of gain and bias to g, and return dx."""
    _, backward = NORMS[config.norm]
    dx, *dlearned = backward(dy, cache)
    for n, d in zip((name, bias_of(name)), dlearned):
        if n in g:
            g[n] += d
    return dx


def head_of(p, config):
    """The parameters, or gradients, with lm_head (C, V) among them: a tied one is wte, turned."""
    return {**p, "lm_head": p["wte"].T} if config.tie else p


def matrix_forward(x, p, name):
    """Multiply x by the matrix p[name], and add its bias if it has one."""
    bias = bias_of(name)
    return affine_forward(x, p[name], p[bias]) if bias in p else linear_forward(x, p[name])


def matrix_backward(dy, cache, g, name):
    """Undo matrix_forward, add the gradients of matrix and bias to g, and return dx."""
    bias = bias_of(name)
    if bias not in g:
        return linear_backward_into(dy, cache, g[name])
    dx, dw, db = affine_backward(dy, cache)
    g[name] += dw
    g[bias] += db
    return dx


def drop_forward(x, place, config, chance):
    """Drop a share of x, if there is a chance; place tells a layer's masks apart."""
    if chance is None or config.dropout == 0.0:
        return x, None
    return dropout_forward(x, config.dropout, *draw(chance, place, x.size // x.shape[0]))


def drop_backward(dy, cache):
    """Undo drop_forward."""
    return dy if cache is None else dropout_backward(dy, cache)


def draw(chance, place, row_size):
    """The key of a mask, and where in it these rows begin, each of row_size numbers."""
    if chance.keys is None:
        key = dropout_key(chance.seed, chance.step, chance.layer, place)
    else:
        key = chance.keys[chance.layer, place : place + 1]  # (1,)
    return key, chance.row * row_size


def mask_keys(chance, config):
    """The keys of all masks of a step, (L + 1, PLACES) uint64."""
    layers = [chance._replace(layer=layer) for layer in range(config.n_layer + 1)]
    keys = [[draw(of_layer, place, 0)[0] for place in range(PLACES)] for of_layer in layers]
    return np.array(keys, np.uint64)


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
def embedding_backward_into(dx, cache, g):
    """embedding_backward, and the sum that its dw goes into: a kernel adds the rows that are met.

    Args:    dx (B, T, C); cache of embedding_forward; g (V, C), the table's gradient so far.
    """
    g += embedding_backward(dx, cache)  # (V, C)


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


@fused
def loss_and_dlogits(logits, targets, scale, smoothing=0.0):
    """The loss and the gradient of its logits, as nothing stands between forward and backward.

    Args:    logits (B, T, V), given away: a kernel may write dlogits over them, for there is no
             larger tensor; targets (B, T) int; scale, a number; smoothing of the targets.
    Returns: loss, a scalar, not scaled; dlogits (B, T, V), the gradient of scale · loss.
    """
    if smoothing:
        loss, cache = smooth_cross_entropy_forward(logits, targets, smoothing)  # ()
        return loss, smooth_cross_entropy_backward(scale, cache)  # (B, T, V)
    loss, cache = cross_entropy_forward(logits, targets)  # ()
    return loss, cross_entropy_backward(scale, cache)  # (B, T, V)


def loss_and_gradients(
    params, grads, ids, targets, config, scale=1.0, chance=None, smoothing=0.0
):  # fmt: skip
    """Run forward and backward once: the part of a training step that knows the model.

    Args:    params; grads, Parameters that the gradients of scale · loss are added to;
             ids, targets (B, T) int; config; scale, 1/k when k batches are accumulated, a
             Python float, or on a GPU an array () float32;
             chance, None for no dropout; smoothing of the targets, 0 for none.
    Returns: loss, a scalar, not scaled.
    """
    logits, cache = forward(params, ids, config, chance=chance)  # (B, T, V)
    loss, dlogits = loss_and_dlogits(logits, targets, scale, smoothing)  # (), (B, T, V)
    del logits  # the widest tensor of all: its memory serves what comes now
    backward(dlogits, cache, grads, config)
    return loss
