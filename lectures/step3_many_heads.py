"""Step 3: four looks back, for four different things.

The idea that is new: heads. One head has one set of weights at each place: to look for the last
vowel and for the beginning of the word at once, it would have to mix both. So cut the C channels
of q, k and v into H heads of D, and let each look for itself. The cut costs nothing: it is a
`reshape`, and its backward is the `reshape` back. A last matrix, wo, combines the heads' answers.
(Two matrices with nothing between them are one, and the next could do its work. From step 5 on
something stands between.)

As all three of q, k and v are made of the same h, they are now one matrix of width 3 C: then
their gradients add inside the product, and backward has one line for three.
"""

import sys

import numpy as np

from lectures.common import run
from npgpt.layers import (
    attention_backward,
    attention_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
)

T, C, H = 32, 64, 4


def init(rng, V):
    shapes = {"wte": (V, C), "wpe": (T, C), "wqkv": (C, 3 * C), "wo": (C, C), "w": (C, V)}
    return {
        name: rng.standard_normal(shape, dtype="float32") * C**-0.5
        for name, shape in shapes.items()
    }


def forward(p, ids):
    cache = {}
    x, cache["wte"] = embedding_forward(ids, p["wte"])  # (B, T, C)
    h, cache["wpe"] = position_forward(x, p["wpe"])  # (B, T, C)
    qkv, cache["wqkv"] = linear_forward(h, p["wqkv"])  # (B, T, 3·C)
    q, k, v = np.split(qkv.reshape(*h.shape[:2], 3 * H, C // H), 3, axis=2)  # (B, T, H, D) each
    a, cache["attention"] = attention_forward(q, k, v)  # (B, T, H, D)
    h, cache["wo"] = linear_forward(a.reshape(h.shape), p["wo"])  # (B, T, C)
    logits, cache["w"] = linear_forward(h, p["w"])  # (B, T, V)
    return logits, cache


def backward(dlogits, cache):
    g = {}
    dh, g["w"] = linear_backward(dlogits, cache["w"])  # (B, T, C)
    da, g["wo"] = linear_backward(dh, cache["wo"])  # (B, T, C)
    dqkv = attention_backward(da.reshape(*dh.shape[:2], H, C // H), cache["attention"])
    dqkv = np.concatenate(dqkv, axis=2).reshape(*dh.shape[:2], 3 * C)  # (B, T, 3·C)
    dh, g["wqkv"] = linear_backward(dqkv, cache["wqkv"])  # (B, T, C)
    dx, g["wpe"] = position_backward(dh, cache["wpe"])  # (B, T, C)
    g["wte"] = embedding_backward(dx, cache["wte"])
    return g


if __name__ == "__main__":
    sys.exit(run(__doc__, init, forward, backward, T, steps=5000))
