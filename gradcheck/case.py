"""What a row of the table is: a pair of functions, and inputs on which to try them.

A layer is such a pair already. What is composed of layers, a block and the whole model, is made
one here, so that it is a row like any other.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from npgpt import block, model
from npgpt.layers import layernorm_backward, smooth_cross_entropy_forward


@dataclass(frozen=True)
class Case:
    """One row of the table: a pair of functions, and inputs on which to try them.

    Attributes:
        layer       which layer it belongs to, as in `python -m gradcheck --layer rmsnorm`
        name        what is special about its inputs; no other row of the layer has the same
        note        what the row is for: the fault that it would show
        forward     y, cache = forward(**inputs); y is an array, a scalar, or a tuple of arrays
        backward    gradients = backward(dy, cache): one array, or a tuple in the order of
                    `gradients`; dy is like y, and a Python float where y is a scalar
        make        from a random generator to the inputs, a dict by the forward's own names:
                    float64 arrays, integer arrays, and whatever else the forward takes
        gradients   the names of the inputs that have a gradient, as backward returns them
        zero        those of them whose gradient is zero for a reason, which the note tells
        reach       over which part of an input's size the layer changes its ways: 1, unless the
                    row is about numbers much larger than the differences that matter
        entrywise   False if there are too many numbers to move them one at a time: then only
                    the directional check is made
    """

    layer: str
    name: str
    note: str
    forward: Callable
    backward: Callable
    make: Callable
    gradients: tuple
    zero: tuple = ()
    reach: float = 1.0
    entrywise: bool = True

    def rng(self, purpose):
        """A random generator of this row's own, so that a new row changes no other."""
        return np.random.default_rng(zlib.crc32(f"{self.layer}/{self.name}/{purpose}".encode()))

    def inputs(self, dtype=np.float64):
        """The inputs, the same at every call; arrays of floats in the given dtype."""
        made = self.make(self.rng("inputs"))
        return {
            name: z.astype(dtype) if isinstance(z, np.ndarray) and z.dtype.kind == "f" else z
            for name, z in made.items()
        }

    def upstream(self, y):
        """A random dy for the output y, in its dtype and shape; never ones."""
        rng = self.rng("dy")
        if isinstance(y, tuple):
            return tuple(rng.standard_normal(part.shape).astype(part.dtype) for part in y)
        if np.ndim(y) == 0:
            return float(rng.uniform(0.3, 0.8))  # far from 1, or who ignores it goes unseen
        return rng.standard_normal(y.shape).astype(y.dtype)

    def gradients_of(self, dy, cache):
        """Call backward, and name what it returns: a dict from argument to gradient.

        Raises: ValueError if it doesn't return one gradient for each name in `gradients`.
        """
        grads = self.backward(dy, cache)
        wanted = ", ".join(f"d{name}" for name in self.gradients)
        if grads is None or isinstance(grads, list):
            what = "nothing" if grads is None else "a list"
            raise ValueError(
                f"{self.layer}: backward returned {what}, but it has to end with return {wanted}"
            )
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(self.gradients):
            raise ValueError(
                f"{self.layer}: backward returned {len(grads)} gradient{'s' * (len(grads) != 1)}, "
                f"but what is wanted is {wanted}"
            )
        return dict(zip(self.gradients, grads))

    def replace(self, **changes):
        """The same row with another function in its place: a kernel, an exercise, a mutant."""
        return replace(self, **changes)


# What is composed of layers.


CHANCE = model.Chance(seed=1, step=2, row=3)  # heeded by the rows whose config has dropout


def heads_split_forward(qkv, config):
    return block.split_qkv(qkv, config), None


def heads_split_backward(dy, cache):
    return block.join_qkv(*dy)


def heads_join_forward(q, k, v, config):
    return block.join_qkv(q, k, v), config


def heads_join_backward(dy, cache):
    return block.split_qkv(dy, cache)


def without_bias_backward(dy, cache):
    """layernorm_backward where the forward had no b: its gradient is nobody's."""
    dx, dw, _ = layernorm_backward(dy, cache)
    return dx, dw


def block_forward(x, config, cos=None, sin=None, **params):
    y, cache = block.block_forward(x, params, (cos, sin), config, chance=CHANCE)
    return y, (cache, params, config)


def block_backward(dy, cache):
    cache, params, config = cache
    grads = {name: np.zeros_like(w) for name, w in params.items()}
    # A dict of its own, as the model gives: what is put in place of a buffer is lost.
    dx = block.block_backward(dy, cache, dict(grads), config)
    return dx, *grads.values()


def logits_forward(ids, config, **params):
    params = _one_buffer(config, params)
    logits, cache = model.forward(params, ids, config, chance=CHANCE)
    return logits, (cache, params, config)


def logits_backward(dy, cache):
    cache, params, config = cache
    grads = params.zeros_like()
    model.backward(dy, cache, grads, config)
    return tuple(grads.values())


def loss_forward(ids, targets, config, smoothing=0.0, parts=1, **params):
    """The mean loss of one or more batches, as when gradients are accumulated.

    ids and targets are (k, B, T): k batches, of which each has 1/k of the loss. Backward takes the
    head in parts, as loss_and_gradients does.
    """
    params = _one_buffer(config, params)
    losses = []
    for batch, target in zip(ids, targets):
        logits, _ = model.forward(params, batch, config, chance=CHANCE)
        loss, _ = smooth_cross_entropy_forward(logits, target, smoothing)
        losses.append(loss)
    return sum(losses) * (1.0 / len(losses)), (ids, targets, params, config, smoothing, parts)


def loss_backward(dy, cache):
    ids, targets, params, config, smoothing, parts = cache
    grads = params.zeros_like()
    for batch, target in zip(ids, targets):
        scale = dy / len(ids)
        model.loss_and_gradients(
            params, grads, batch, target, config, scale, CHANCE, smoothing, parts
        )
    return tuple(grads.values())


def _one_buffer(config, params):
    """Parameters by name, put into one flat buffer as the model wants them."""
    flat = np.concatenate([params[name].ravel() for name in parameter_names(config)])
    return model.Parameters(config, flat)


def parameter_names(config):
    """The names of a model's parameters, in the order of its buffer."""
    decayed, free = model.parameter_shapes(config)
    return (*decayed, *free)
