"""Step 5: all of it three times. This is a GPT.

What was built so far, a look back and a thought, makes one block. Three of them on top of one
another, as they stand, learn badly: a gradient that has to pass through every matrix on its way
down is worn out when it arrives. Three ideas make depth possible, and belong together:

    residuals       x = x + block(x): each block adds to a stream that runs past it. In
                    backward the gradient of a sum goes to both terms, so it has a way down on
                    which nothing is multiplied.
    normalisation   as all add to it, the stream grows; each branch reads it brought back to
                    mean 0 and variance 1 (LayerNorm).
    dropout         a model this size begins to learn its text by heart; so at each training
                    step, and never else, a tenth of what a branch adds is left out.

Now go on to npgpt/model.py: it is this file, with a choice of parts.
"""

import sys

import numpy as np

from lectures.common import run
from npgpt.layers import (
    attention_backward,
    attention_forward,
    dropout_backward,
    dropout_forward,
    dropout_key,
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_backward,
    relu_forward,
)

T, C, H, F, L = 32, 64, 4, 256, 3
RATE = 0.1  # of dropout


def init(rng, V):
    shapes = {"wte": (V, C), "wpe": (T, C)}
    for i in range(L):
        shapes |= {f"wqkv{i}": (C, 3 * C), f"wo{i}": (C, C), f"w_up{i}": (C, F)}
        shapes |= {f"w_down{i}": (F, C), f"norm{i}": (2, C), f"mlp_norm{i}": (2, C)}
    shapes |= {"norm": (2, C), "w": (C, V)}
    p = {n: rng.standard_normal(s, dtype="float32") * s[0] ** -0.5 for n, s in shapes.items()}
    p["wte"] *= 0.1 * len(p["wte"]) ** 0.5
    p["wpe"] *= 0.1 * T**0.5
    for name in p:
        if "norm" in name:
            p[name][:] = [[1.0], [0.0]]  # its two rows are gain and bias
    return p


def forward(p, ids, step=None):
    """With a step, as in training, channels are dropped; without one, nothing is."""
    cache = {}
    x, cache["wte"] = embedding_forward(ids, p["wte"])  # (B, T, C)
    x, cache["wpe"] = position_forward(x, p["wpe"])  # (B, T, C)
    for i in range(L):
        h, cache["norm", i] = layernorm_forward(x, *p[f"norm{i}"])  # (B, T, C)
        qkv, cache["wqkv", i] = linear_forward(h, p[f"wqkv{i}"])  # (B, T, 3·C)
        q, k, v = np.split(qkv.reshape(*x.shape[:2], 3 * H, C // H), 3, axis=2)  # (B, T, H, D)
        a, cache["attention", i] = attention_forward(q, k, v)  # (B, T, H, D)
        h, cache["wo", i] = linear_forward(a.reshape(x.shape), p[f"wo{i}"])  # (B, T, C)
        h, cache["drop", i] = drop(h, step, 2 * i)  # (B, T, C)
        x = x + h  # (B, T, C)
        h, cache["mlp_norm", i] = layernorm_forward(x, *p[f"mlp_norm{i}"])  # (B, T, C)
        h, cache["w_up", i] = linear_forward(h, p[f"w_up{i}"])  # (B, T, F)
        h, cache["relu", i] = relu_forward(h)  # (B, T, F)
        h, cache["w_down", i] = linear_forward(h, p[f"w_down{i}"])  # (B, T, C)
        h, cache["mlp_drop", i] = drop(h, step, 2 * i + 1)  # (B, T, C)
        x = x + h  # (B, T, C)
    x, cache["norm"] = layernorm_forward(x, *p["norm"])  # (B, T, C)
    logits, cache["w"] = linear_forward(x, p["w"])  # (B, T, V)
    return logits, cache


def backward(dlogits, cache):
    g = {}
    dx, g["w"] = linear_backward(dlogits, cache["w"])  # (B, T, C)
    dx, *g["norm"] = layernorm_backward(dx, cache["norm"])  # (B, T, C)
    for i in reversed(range(L)):
        dh = dropout_backward(dx, cache["mlp_drop", i])  # (B, T, C)
        dh, g[f"w_down{i}"] = linear_backward(dh, cache["w_down", i])  # (B, T, F)
        dh = relu_backward(dh, cache["relu", i])  # (B, T, F)
        dh, g[f"w_up{i}"] = linear_backward(dh, cache["w_up", i])  # (B, T, C)
        dh, *g[f"mlp_norm{i}"] = layernorm_backward(dh, cache["mlp_norm", i])  # (B, T, C)
        dx = dx + dh  # (B, T, C): past the branch, and through it
        dh = dropout_backward(dx, cache["drop", i])  # (B, T, C)
        da, g[f"wo{i}"] = linear_backward(dh, cache["wo", i])  # (B, T, C)
        dqkv = attention_backward(da.reshape(*dx.shape[:2], H, C // H), cache["attention", i])
        dqkv = np.concatenate(dqkv, axis=2).reshape(*dx.shape[:2], 3 * C)  # (B, T, 3·C)
        dh, g[f"wqkv{i}"] = linear_backward(dqkv, cache["wqkv", i])  # (B, T, C)
        dh, *g[f"norm{i}"] = layernorm_backward(dh, cache["norm", i])  # (B, T, C)
        dx = dx + dh  # (B, T, C)
    dx, g["wpe"] = position_backward(dx, cache["wpe"])  # (B, T, C)
    g["wte"] = embedding_backward(dx, cache["wte"])
    return {name: np.stack(dw) if "norm" in name else dw for name, dw in g.items()}


def drop(x, step, place):
    """Dropout, at a rate of 0 where there is no step."""
    return dropout_forward(x, 0.0 if step is None else RATE, dropout_key(step or 0, place))


if __name__ == "__main__":
    sys.exit(
        run(__doc__, init, forward, backward, T, steps=5000, lr=2e-3, training_forward=forward)
    )
