"""The GPT: layers composed, and the composition read upwards.

A GPT reads tokens and says, at each place, which token it expects next. A stream of
C channels a token runs from the bottom to the top. Each of L blocks reads the
stream twice, once through attention, where tokens meet, and once through the MLP,
where each token is worked on alone, and each time adds what it found:

    x = wte[ids]
    L times:  x = x + attention(norm(x))
              x = x + mlp(norm(x))
    logits = norm(x) @ wteᵀ

Backward is the same list read from the bottom line to the top, each layer's
backward in the place of its forward. Only three things are not in a layer file, and
all three are the same fact, that a value used twice receives two gradients, which add:

    x + f(x)      the stream's gradient goes on unchanged, and f's is added to it;
    norm(x)       the part that went through the branch joins the part that went past it;
    tied wte      the table is used at the bottom, as embedding, and at the top, as
                  lm_head. Its gradient is the sum of both. Forget one, and the
                  model still learns, a little worse, and nothing tells you.

Parameters are named views into one flat buffer, and gradients too: so the optimizer,
the gradient's norm and the zeroing are one call each over one array.

Source: Radford et al. 2019 (GPT-2), the pre-norm block and the scaled initialisation of
    section 2.3; Touvron et al. 2023 (LLaMA), section 2.2: RMSNorm, SwiGLU and RoPE in it;
    Press & Wolf 2017, "Using the Output Embedding to Improve Language Models": tying.
"""

from dataclasses import dataclass

import numpy as np

from npgpt.errors import UserError
from npgpt.layers import (
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_backward,
    rope_forward,
    rope_table,
    swiglu_backward,
    swiglu_forward,
)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model; the defaults are the 40M one, 38.7 million parameters."""

    vocab_size: int = 10_000  # V
    block_size: int = 128  # the largest T: how far the model looks back
    n_layer: int = 8  # L
    n_head: int = 8  # H
    n_kv_head: int | None = None  # G; None means as many as n_head
    n_embd: int = 512  # C
    n_hidden: int = 2048  # F
    rope_theta: float = 10_000.0  # base of RoPE's wavelengths
    norm_eps: float = 1e-5  # in the units of the stream, squared
    tie: bool = True  # one table for wte and lm_head

    def __post_init__(self):
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        for name in (
            "vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but it must be at least 1")
        if self.n_embd % self.n_head or self.head_dim % 2:
            raise UserError(
                f"n_embd {self.n_embd} does not split into n_head {self.n_head} heads of an even "
                f"number of channels: choose n_embd as a multiple of {2 * self.n_head}"
            )
        if self.n_head % self.n_kv_head:
            raise UserError(
                f"n_kv_head {self.n_kv_head} must divide n_head {self.n_head}: "
                "each key/value head serves the same number of query heads"
            )
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, but it must be above 0")

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


def parameter_shapes(config):
    """Name every parameter: those that weight decay pulls on first, the gains last.

    Args:    config, a GPTConfig.
    Returns: (decayed, free), two dicts from name to shape, in the order of the flat buffer.
    """
    C, F, V, D = config.n_embd, config.n_hidden, config.vocab_size, config.head_dim
    H, G = config.n_head, config.n_kv_head
    decayed, free = {"wte": (V, C)}, {}
    for i in range(config.n_layer):
        decayed[f"blocks.{i}.wqkv"] = (C, (H + 2 * G) * D)
        decayed[f"blocks.{i}.wo"] = (H * D, C)
        decayed[f"blocks.{i}.w_gate_up"] = (C, 2 * F)
        decayed[f"blocks.{i}.w_down"] = (F, C)
        free[f"blocks.{i}.attn_norm"] = (C,)
        free[f"blocks.{i}.mlp_norm"] = (C,)
    free["norm"] = (C,)
    if not config.tie:
        decayed["lm_head"] = (C, V)
    return decayed, free


def count_parameters(config):
    """The number of parameters, a tied table counted once."""
    decayed, free = parameter_shapes(config)
    return sum(int(np.prod(shape)) for shape in [*decayed.values(), *free.values()])


class Parameters(dict):
    """Named views into one flat buffer; writing to a view writes to the buffer.

    Args:    config, a GPTConfig; flat, the buffer, of any float or complex dtype and on any
             device, with count_parameters(config) entries.
    Attributes: flat (P,); num_decayed, how many entries at its beginning are weight-decayed.
    Raises:  ValueError if flat has another size.
    """

    def __init__(self, config, flat):
        if flat.shape != (count_parameters(config),):
            raise ValueError(
                f"Parameters: flat has shape {flat.shape}, "
                f"but this GPTConfig needs ({count_parameters(config)},)"
            )
        decayed, free = parameter_shapes(config)
        self.config, self.flat = config, flat
        self.num_decayed = sum(int(np.prod(shape)) for shape in decayed.values())
        start = 0
        for name, shape in {**decayed, **free}.items():
            size = int(np.prod(shape))
            self[name] = flat[start : start + size].reshape(shape)
            start += size

    def block(self, i):
        """The parameters of block i by their short names, as views."""
        prefix = f"blocks.{i}."
        return {k.removeprefix(prefix): w for k, w in self.items() if k.startswith(prefix)}

    def zeros_like(self):
        """Another set of the same shapes, all zeros: the gradients, say."""
        return Parameters(self.config, np.zeros_like(self.flat))


def init_parameters(config, seed, dtype=np.float32):
    """Draw the weights at the start of training.

    Gains are 1. Matrices are normal with standard deviation 1/(2√C), so that a normalised row of
    C channels has half its size behind a matrix. The first scores of attention are then a
    quarter, and all places weigh nearly the same: a head should be drawn to a place by what
    is worth finding there, not by chance. (GPT-2's 0.02 at C = 768 is 0.55/√C.) Each block
    adds to the stream twice, so wo and w_down, the last matrix of each branch, are drawn
    smaller by √(2L): the stream at the top then has the same size whatever the depth.

    A wte of its own begins at 1/2, for the stream should not forget which token it began as
    while the blocks learn what to add; and its lm_head at 0.02, for a model that has seen
    nothing should say that all tokens are alike: the first loss is log V. A tied table cannot
    be both. It is drawn at 1/√C, and so are the other matrices: what the blocks add must drown
    the token that the stream began as, or the head will see itself, and say that token again.

    Args:    config; seed, an int; dtype of the flat buffer.
    Returns: Parameters, on the host.
    """
    params = Parameters(config, np.zeros(count_parameters(config), dtype))
    rng = np.random.default_rng([seed, 0])
    usual = config.n_embd**-0.5 if config.tie else 0.5 * config.n_embd**-0.5
    untied = {} if config.tie else {"wte": 0.5, "lm_head": 0.02}
    for name, w in params.items():
        if w.ndim == 1:
            w[...] = 1.0
        else:
            std = untied.get(name, usual)
            if name.endswith((".wo", ".w_down")):
                std *= (2 * config.n_layer) ** -0.5
            w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
    return params


def forward(params, ids, config, past=None):
    """Score every token of the vocabulary as the next one, at every place.

    Args:    params, Parameters or any dict of their names; ids (B, T) int, T ≤ block_size;
             config; past, the keys and values of earlier tokens when sampling
             (sampling.KVCache), None in training.
    Returns: logits (B, T, V); cache, a dict by layer name for backward.
    Raises:  ValueError if the ids are not (B, T), or reach past the context.
    """
    start = 0 if past is None else past.length
    if ids.ndim != 2 or start + ids.shape[1] > config.block_size:
        raise ValueError(
            f"forward: ids have shape {ids.shape} after {start} earlier tokens, "
            f"but block_size {config.block_size} needs (B, T ≤ {config.block_size - start})"
        )
    T, cache = ids.shape[1], {}
    rope = rope_table(start, start + T, config.head_dim, config.rope_theta, like=params["norm"])
    x, cache["wte"] = embedding_forward(ids, params["wte"])  # (B, T, C)
    for i in range(config.n_layer):
        extend = None if past is None else past.layer(i)
        x, cache[i] = block_forward(x, params.block(i), rope, config, extend)  # (B, T, C)
    x, cache["norm"] = rmsnorm_forward(x, params["norm"], config.norm_eps)  # (B, T, C)
    lm_head = params["wte"].T if config.tie else params["lm_head"]  # (C, V)
    logits, cache["lm_head"] = linear_forward(x, lm_head)  # (B, T, V)
    return logits, cache


def backward(dlogits, cache, grads, config):
    """Undo forward, and add every parameter's gradient to grads.

    Args:    dlogits (B, T, V) = ∂L/∂logits; cache from forward; grads, Parameters that
             are added to; config.
    Returns: nothing: tokens have no gradient.
    """
    # forward: logits = x @ lm_head
    dx, dw = linear_backward(dlogits, cache["lm_head"])  # (B, T, C)
    if config.tie:
        grads["wte"] += dw.T  # the table's first use, read upwards
    else:
        grads["lm_head"] += dw
    # forward: x = norm(x)
    dx, dw = rmsnorm_backward(dx, cache["norm"])  # (B, T, C)
    grads["norm"] += dw
    # forward: x = block(x), L times
    for i in reversed(range(config.n_layer)):
        dx = block_backward(dx, cache[i], grads.block(i), config)  # (B, T, C)
    # forward: x = wte[ids]
    grads["wte"] += embedding_backward(dx, cache["wte"])  # and its second use: they add


def block_forward(x, p, rope, config, extend=None):
    """One block: tokens meet in attention, then each is worked on alone in the MLP.

    Args:    x (B, T, C), the stream; p, the block's parameters by short name; rope, the
             (cos, sin) of these places; config; extend, None or the function of a KVCache
             that appends this layer's keys and values and returns all so far.
    Returns: x (B, T, C); cache, a dict by layer name.
    """
    cache = {}
    h, cache["attn_norm"] = rmsnorm_forward(x, p["attn_norm"], config.norm_eps)  # (B, T, C)
    qkv, cache["wqkv"] = linear_forward(h, p["wqkv"])  # (B, T, (H + 2G)·D)
    q, k, v = split_qkv(qkv, config)  # (B, T, H, D), (B, T, G, D) twice
    q, cache["rope_q"] = rope_forward(q, *rope)  # (B, T, H, D)
    k, cache["rope_k"] = rope_forward(k, *rope)  # (B, T, G, D)
    v = np.copy(v)  # (B, T, G, D): a view would keep all of qkv in memory for its sake
    if extend is not None:
        k, v = extend(k, v)  # (B, S, G, D): what the earlier tokens left for this one
    a, cache["attention"] = attention_forward(q, k, v)  # (B, T, H, D)
    h, cache["wo"] = linear_forward(a.reshape(*x.shape[:2], -1), p["wo"])  # (B, T, C)
    x = x + h  # (B, T, C)
    h, cache["mlp_norm"] = rmsnorm_forward(x, p["mlp_norm"], config.norm_eps)  # (B, T, C)
    h, cache["w_gate_up"] = linear_forward(h, p["w_gate_up"])  # (B, T, 2F)
    h, cache["swiglu"] = swiglu_forward(h)  # (B, T, F)
    h, cache["w_down"] = linear_forward(h, p["w_down"])  # (B, T, C)
    x = x + h  # (B, T, C)
    return x, cache


def block_backward(dx, cache, g, config):
    """Undo block_forward, and add its parameters' gradients to g.

    Args:    dx (B, T, C) = ∂L/∂(block's output); cache; g, the block's gradients by short
             name, added to; config.
    Returns: dx (B, T, C) = ∂L/∂(block's input).
    """
    # forward: x = x + w_down(swiglu(w_gate_up(mlp_norm(x))))
    dh, dw = linear_backward(dx, cache["w_down"])  # (B, T, F)
    g["w_down"] += dw
    dh = swiglu_backward(dh, cache["swiglu"])  # (B, T, 2F)
    dh, dw = linear_backward(dh, cache["w_gate_up"])  # (B, T, C)
    g["w_gate_up"] += dw
    dh, dw = rmsnorm_backward(dh, cache["mlp_norm"])  # (B, T, C)
    g["mlp_norm"] += dw
    dx = dx + dh  # (B, T, C): past the branch, and through it
    # forward: x = x + wo(attention(rope(q), rope(k), v)), with q, k, v = wqkv(attn_norm(x))
    da, dw = linear_backward(dx, cache["wo"])  # (B, T, H·D)
    g["wo"] += dw
    da = da.reshape(*dx.shape[:2], config.n_head, config.head_dim)  # (B, T, H, D)
    dq, dk, dv = attention_backward(da, cache["attention"])  # (B, T, H, D), (B, T, G, D) twice
    dk = rope_backward(dk, cache["rope_k"])  # (B, T, G, D)
    dq = rope_backward(dq, cache["rope_q"])  # (B, T, H, D)
    dqkv = join_qkv(dq, dk, dv)  # (B, T, (H + 2G)·D)
    dh, dw = linear_backward(dqkv, cache["wqkv"])  # (B, T, C)
    g["wqkv"] += dw
    dh, dw = rmsnorm_backward(dh, cache["attn_norm"])  # (B, T, C)
    g["attn_norm"] += dw
    return dx + dh  # (B, T, C)


def split_qkv(qkv, config):
    """Cut (B, T, (H + 2G)·D) into heads: q (B, T, H, D), k and v (B, T, G, D), as views."""
    B, T, _ = qkv.shape
    H, G = config.n_head, config.n_kv_head
    heads = qkv.reshape(B, T, H + 2 * G, config.head_dim)  # (B, T, H + 2G, D)
    return heads[:, :, :H], heads[:, :, H : H + G], heads[:, :, H + G :]


def join_qkv(q, k, v):
    """Undo split_qkv; and as it only moves numbers, this is its backward too."""
    B, T, _, _ = q.shape
    return np.concatenate([q, k, v], axis=2).reshape(B, T, -1)


def loss_and_gradients(params, grads, ids, targets, config, scale=1.0):
    """Run forward and backward once: the part of a training step that knows the model.

    Args:    params; grads, Parameters that the gradients of scale · loss are added to;
             ids, targets (B, T) int; config; scale, 1/k when k batches are accumulated.
    Returns: loss, a scalar, not scaled.
    """
    logits, cache = forward(params, ids, config)  # (B, T, V)
    loss, loss_cache = cross_entropy_forward(logits, targets)  # ()
    dlogits = cross_entropy_backward(scale, loss_cache)  # (B, T, V)
    del logits, loss_cache  # the widest tensor of all: its memory serves what comes now
    backward(dlogits, cache, grads, config)
    return loss
