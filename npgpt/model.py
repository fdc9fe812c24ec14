"""The GPT: layers composed, and the composition read upwards.

A GPT reads tokens and says, at each place, which token it expects next. A stream of
C channels a token runs from the bottom to the top. Each of L blocks reads the
stream twice, once through attention, where tokens meet, and once through the MLP,
where each token is worked on alone, and each time adds what it found:

    x = wte[ids]                      and + wpe, where positions are learned
    L times:  x = x + attention(norm(x))
              x = x + mlp(norm(x))
    logits = norm(x) @ wteᵀ

What a block is made of, a GPTConfig says by name (block.py). So the same few lines are a
Llama (rmsnorm, rope, swiglu), a GPT-2 (layernorm, learned, gelu_tanh, bias), and what
lies between them.

Backward is the same list read from the bottom line to the top, each layer's
backward in the place of its forward. Only two things are not in a layer file, and
both are the same fact, that a value used twice receives two gradients, which add:

    x + f(x)      x goes through the branch f, and past it. Past it the gradient stays
                  what it is, as the slope of a sum is 1; what came back through
                  the branch, and last through its norm, is added;
    tied wte      the table is used at the bottom, as embedding, and at the top, as
                  lm_head. Its gradient is the sum of both. Forget one, and the
                  model still learns, a little worse, and nothing tells you.

Parameters come by name, and gradients go by name: see parameters.py.

Source: Radford et al. 2019 (GPT-2), the pre-norm block and the scaled initialisation of
    section 2.3; Touvron et al. 2023 (LLaMA), section 2.2: RMSNorm, SwiGLU and RoPE in it;
    Press & Wolf 2017, "Using the Output Embedding to Improve Language Models": tying.
"""

import itertools

import numpy as np

from npgpt.backend.fused import fused
from npgpt.block import (
    MLPS,
    NORMS,
    block_backward,
    block_forward,
    matrix_backward,
    matrix_forward,
    norm_backward,
    norm_forward,
)
from npgpt.chance import Chance, drop_backward, drop_forward
from npgpt.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
    position_backward,
    position_forward,
    rope_table,
    smooth_cross_entropy_backward,
    smooth_cross_entropy_forward,
)
from npgpt.parameters import (
    POSITIONS,
    GPTConfig,
    Parameters,
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


def forward(params, ids, config, past=None, chance=None, last=None):
    """Score every token of the vocabulary as the next one, at every place.

    Args:    params, Parameters or any dict of their names; ids (B, T) int, T ≤ block_size;
             config; past, the keys and values of earlier tokens when sampling
             (sampling.KVCache), None in training; chance, a Chance in training, None for no
             dropout; last, at how many of the last places scores are wanted: all, with None,
             and in training.
    Returns: logits (B, T, V), or (B, last, V); cache, a dict by layer name for backward.
    Raises:  ValueError if the ids are not (B, T), or reach past the context.
    """
    x, cache = stream_forward(params, ids, config, past, chance)  # (B, T, C)
    if last is not None:  # the head is the widest matrix of all: nothing goes through it in vain
        x = x[:, -last:]  # (B, last, C)
    logits, kept = head_forward(x, params, config)  # (B, T, V)
    return logits, cache | kept


def stream_forward(params, ids, config, past=None, chance=None):
    """Forward up to the head: x (B, T, C), what the last block puts out, and the cache so far."""
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
    return x, cache


def head_forward(x, params, config):
    """The rest: scores for every token of the vocabulary.

    Args:    x (B, T, C), the stream above the last block, or some places of it; params; config.
    Returns: logits (B, T, V); cache, a dict by layer name.
    """
    cache = {}
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
    dx = head_backward(dlogits, cache, grads, config)  # (B, T, C)
    stream_backward(dx, cache, grads, config)


def head_backward(dlogits, cache, grads, config):
    """Undo the head: the dx (B, T, C) of what the last block put out, on backward's way down."""
    # forward: logits = x @ lm_head, and + lm_head_bias
    dhead = head_of(grads, config)  # if it is tied, the table's first use, read upwards
    dx = matrix_backward(dlogits, cache["lm_head"], dhead, "lm_head")  # (B, T, C)
    # forward: x = norm(x)
    return norm_backward(dx, cache["norm"], grads, "norm", config)  # (B, T, C)


def stream_backward(dx, cache, grads, config):
    """Go on from there: from dx (B, T, C) of what the last block put out, down to the ids."""
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


def head_of(p, config):
    """The parameters, or gradients, with lm_head (C, V) among them: a tied one is wte, turned."""
    return {**p, "lm_head": p["wte"].T} if config.tie else p


@fused
def embedding_backward_into(dx, cache, g):
    """embedding_backward, and the sum that its dw goes into: a kernel adds the rows that are met.

    Args:    dx (B, T, C); cache of embedding_forward; g (V, C), the table's gradient so far.
    """
    g += embedding_backward(dx, cache)  # (V, C)


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
    params, grads, ids, targets, config, scale=1.0, chance=None, smoothing=0.0, parts=1
):  # fmt: skip
    """Run forward and backward once: the part of a training step that knows the model.

    The logits are the widest tensor of all. As each place has its own, and the loss is their mean,
    the head may take some places after the others, forward and backward, in the same memory.

    Args:    params; grads, Parameters that the gradients of scale · loss are added to;
             ids, targets (B, T) int; config; scale, 1/k when k batches are accumulated, a
             Python float, or on a GPU an array () float32;
             chance, None for no dropout; smoothing of the targets, 0 for none; parts, into how
             many the T places are cut for the head.
    Returns: loss, a scalar, not scaled.
    """
    x, cache = stream_forward(params, ids, config, chance=chance)  # (B, T, C)
    T, loss, dx = ids.shape[1], 0.0, []
    for places in cut(0, T, -(-T // parts)):
        share = (places.stop - places.start) / T  # of the mean over all places
        logits, kept = head_forward(x[:, places], params, config)  # (B, t, V)
        part, dlogits = loss_and_dlogits(logits, targets[:, places], scale * share, smoothing)
        del logits
        loss = loss + share * part
        dx.append(head_backward(dlogits, kept, grads, config))  # (B, t, C)
        del dlogits
    dx = dx[0] if len(dx) == 1 else np.concatenate(dx, axis=1)  # (B, T, C)
    stream_backward(dx, cache, grads, config)
    return loss


def cut(start, stop, most):
    """Cut start … stop − 1 into the fewest equal parts of `most` or less: slices."""
    n = -(-(stop - start) // most)
    bounds = [start + i * (stop - start) // n for i in range(n + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
