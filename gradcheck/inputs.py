"""Inputs on which functions are tried.

Each function here returns another, which takes a random generator and draws the inputs: a dict, by
the names that the layer's forward gives its arguments.
"""

import numpy as np

from npgpt import model
from npgpt.layers import dropout_key, rope_table


def normal(scale=1.0, **shapes):
    """Arrays of random numbers of one scale, one for each name and shape."""
    return lambda rng: {n: scale * rng.standard_normal(shape) for n, shape in shapes.items()}


def biased(x, w):
    """Affine's inputs: x, w, and a bias for each column of w."""
    return normal(x=x, w=w, b=w[1:])


def tied(x, w):
    """Linear's inputs with w as the transpose of a table: a view, not in order of memory."""
    return lambda rng: {"x": rng.standard_normal(x), "w": rng.standard_normal(w[::-1]).T}


def tokens(ids, V, C, used=None):
    """Embedding's inputs: ids as listed, or drawn from the first `used` tokens for a shape."""

    def make(rng):
        some = np.array(ids) if used is None else rng.integers(0, used, ids)
        return {"ids": some, "w": rng.standard_normal((V, C))}

    return make


def rows(shape, scale=1.0, unit_gain=False, zero_row=False, eps=1e-5, bias=False, shift=0.0):
    """A norm's inputs: x of a scale, moved by a shift, gains around 1, and perhaps a bias."""

    def make(rng):
        x = shift + scale * rng.standard_normal(shape)
        if zero_row:
            x[..., -1, :] = shift
        w = 1.0 + (0.0 if unit_gain else 0.5) * rng.standard_normal(shape[-1:])
        b = {"b": rng.standard_normal(shape[-1:])} if bias else {}
        return {"x": x, "w": w, "eps": eps, **b}

    return make


def places(shape, wpe, start=0):
    """Position's inputs: x (B, T, C), a table of `wpe` rows, and where x begins."""
    return lambda rng: {**normal(x=shape, wpe=(wpe, shape[-1]))(rng), "start": start}


def turned(shape, start=0, theta=100.0):
    """RoPE's inputs: x (B, T, H, D), and the tables from position `start` on."""

    def make(rng):
        x = rng.standard_normal(shape)
        cos, sin = rope_table(start, start + shape[1], shape[3], theta, like=x)
        return {"x": x, "cos": cos, "sin": sin}

    return make


def turned_heads(B, T, H, G, D, theta=100.0):
    """The inputs of RoPE and attention in one: qkv of H + 2G heads, and the tables."""

    def make(rng):
        qkv = rng.standard_normal((B, T, (H + 2 * G) * D))
        cos, sin = rope_table(0, T, D, theta, like=qkv)
        return {"qkv": qkv, "cos": cos, "sin": sin, "n_head": H}

    return make


def heads(B, T, H, D, G=None, S=None, scale=1.0, loud_future=False, shift=0.0):
    """Attention's inputs: T queries for H heads, S places of keys and values for G heads."""

    def make(rng):
        q = scale * rng.standard_normal((B, T, H, D))
        k = scale * rng.standard_normal((B, S or T, G or H, D))
        if loud_future:  # each key is the more wanted, the later it stands
            q, ramp = np.abs(q), np.arange(S or T)[:, None, None]
            k = np.abs(k) * ramp
        if shift:  # all scores of a query rise by about shift / √D, and no key is large
            q[..., 0] += 0.5 * shift
            k[..., 0] = 2.0
        return {"q": q, "k": k, "v": rng.standard_normal(k.shape)}

    return make


def gates(shape, scale=1.0, spread=None):
    """SwiGLU's inputs; with `spread`, the gates run evenly from −spread to spread."""

    def make(rng):
        x, F = scale * rng.standard_normal(shape), shape[-1] // 2
        if spread is not None:
            x[..., :F] = np.linspace(-spread, spread, x[..., :F].size).reshape(x[..., :F].shape)
        return {"x": x}

    return make


def channels(shape, scale=1.0, spread=None):
    """The inputs of ReLU and GELU; with `spread`, they run evenly from −spread to spread."""

    def make(rng):
        if spread is None:
            return {"x": scale * rng.standard_normal(shape)}
        return {"x": np.linspace(-spread, spread, int(np.prod(shape))).reshape(shape)}

    return make


def masked(shape, rate, start=0):
    """Dropout's inputs: x, the share that is dropped, and where in the batch x stands."""
    return lambda rng: {
        "x": rng.standard_normal(shape), "rate": rate, "key": dropout_key(5, 6), "start": start,
    }  # fmt: skip


def forgetful(make, rate, start=0):
    """Dropped attention's inputs: those of heads, the share, and where in the batch they stand."""
    return lambda rng: {**make(rng), "rate": rate, "key": dropout_key(7, 8), "start": start}


def guesses(shape, scale=1.0, shift=0.0, targets=None, smoothing=None):
    """The loss's inputs: logits of a shape, random targets unless they are given, and smoothing."""

    def make(rng):
        logits = shift + scale * rng.standard_normal(shape)
        drawn = rng.integers(0, shape[-1], shape[:-1])
        made = {"logits": logits, "targets": np.array(drawn if targets is None else targets)}
        return made if smoothing is None else {**made, "smoothing": smoothing}

    return make


def tiny(**changes):
    """The configuration of a model so small that every weight of it can be moved."""
    shape = dict(
        vocab_size=5, block_size=4, n_layer=2, n_head=2, n_embd=4, n_hidden=3, rope_theta=100.0
    )
    return model.GPTConfig(**{**shape, **changes})


def weights(rng, config, prefix=""):
    """Random parameters by name: matrices that keep the stream's size, gains around 1, biases
    around 0."""
    decayed, free = model.parameter_shapes(config)
    drawn = {}
    for name, shape in {**decayed, **free}.items():
        z = rng.standard_normal(shape)
        if len(shape) == 1:
            drawn[name] = 0.3 * z + name.endswith("norm")
        else:
            drawn[name] = z * shape[0] ** -0.5
    return {n.removeprefix(prefix): w for n, w in drawn.items() if n.startswith(prefix)}


def one_block(config, B, T, start=0):
    """A block's inputs: the stream, the angles of its places if it has any, and every parameter."""

    def make(rng):
        given = {"x": rng.standard_normal((B, T, config.n_embd)), "config": config}
        if config.position == "rope":
            angles = start, start + T, config.head_dim, config.rope_theta
            given["cos"], given["sin"] = rope_table(*angles, like=given["x"])
        return {**given, **weights(rng, config, "blocks.0.")}

    return make


def whole_model(config, *shape, targets=True, **more):
    """A model's inputs: ids (and targets) of a shape, every parameter, and what else it takes."""

    def make(rng):
        given = {"ids": rng.integers(0, config.vocab_size, shape), "config": config}
        if targets:
            given["targets"] = rng.integers(0, config.vocab_size, shape)
        return {**given, **more, **weights(rng, config)}

    return make
