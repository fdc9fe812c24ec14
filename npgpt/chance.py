"""What a step of training leaves to chance: which numbers dropout drops, and where.

A mask is made of a key and of places (layers/dropout.py). Here are the keys: one for each step,
each layer, and each place in that layer where something is dropped. So nothing has to be
remembered between forward and backward, or between a run and its resumption, and a batch may be
cut into any pieces: each row knows where it stands in the whole.
"""

from typing import NamedTuple

import numpy as np

from npgpt.layers import (
    dropout_backward,
    dropout_forward,
    dropout_key,
)

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
