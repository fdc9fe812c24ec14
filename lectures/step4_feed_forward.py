"""Step 4: time to think about what was seen.

The idea that is new: the MLP. So far what the heads bring back goes to the logits by products
of matrices alone, and a product of products is one product: there was no step in which
something is decided. So widen the channels to 4 C, let through what is positive (ReLU), and
narrow them again. Each place does this for itself: attention is where letters meet, and this is
where each of them draws its conclusions.

It is two lines more in forward, two in backward, and the bend between them.
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
    relu_backward,
    relu_forward,
)

T, C, H, F = 32, 64, 4, 256


def init(rng, V):
    shapes = {
        "wte": (V, C), "wpe": (T, C), "wqkv": (C, 3 * C), "wo": (C, C), "w_up": (C, F),
        "w_down": (F, C), "w": (C, V),
    }  # fmt: skip
    return {
        name: rng.standard_normal(shape, dtype="float32") * (F if name == "w_down" else C) ** -0.5
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
    h, cache["w_up"] = linear_forward(h, p["w_up"])  # (B, T, F)
    h, cache["relu"] = relu_forward(h)  # (B, T, F)
    h, cache["w_down"] = linear_forward(h, p["w_down"])  # (B, T, C)
    logits, cache["w"] = linear_forward(h, p["w"])  # (B, T, V)
    return logits, cache


def backward(dlogits, cache):
    g = {}
    dh, g["w"] = linear_backward(dlogits, cache["w"])  # (B, T, C)
    dh, g["w_down"] = linear_backward(dh, cache["w_down"])  # (B, T, F)
    dh = relu_backward(dh, cache["relu"])  # (B, T, F)
    dh, g["w_up"] = linear_backward(dh, cache["w_up"])  # (B, T, C)
    da, g["wo"] = linear_backward(dh, cache["wo"])  # (B, T, C)
    dqkv = attention_backward(da.reshape(*dh.shape[:2], H, C // H), cache["attention"])
    dqkv = np.concatenate(dqkv, axis=2).reshape(*dh.shape[:2], 3 * C)  # (B, T, 3·C)
    dh, g["wqkv"] = linear_backward(dqkv, cache["wqkv"])  # (B, T, C)
    dx, g["wpe"] = position_backward(dh, cache["wpe"])  # (B, T, C)
    g["wte"] = embedding_backward(dx, cache["wte"])
    return g


if __name__ == "__main__":
    sys.exit(run(__doc__, init, forward, backward, T, steps=5000))
