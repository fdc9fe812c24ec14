"""Step 2: a look back.

The idea that is new: attention. A letter now has C channels in place of a row of scores. Each
place of the text asks a question (q), offers a label (k) and something to tell (v), and gets the
mean of what it and all earlier places tell, weighted by how well their labels answer the question.
From that the logits are made. As a mean does not know where anything stood, each place of the text
adds a vector of its own, learned like a letter's.

Every matrix is a `linear`; backward is forward from the last line to the first. One thing
to see there: h is used three times, for q, k and v, so it receives three gradients, which add.
"""

import sys

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

T, C = 32, 64


def init(rng, V):
    shapes = {"wte": (V, C), "wpe": (T, C), "wq": (C, C), "wk": (C, C), "wv": (C, C), "w": (C, V)}
    return {
        name: rng.standard_normal(shape, dtype="float32") * C**-0.5
        for name, shape in shapes.items()
    }


def forward(p, ids):
    cache = {}
    x, cache["wte"] = embedding_forward(ids, p["wte"])  # (B, T, C)
    h, cache["wpe"] = position_forward(x, p["wpe"])  # (B, T, C)
    q, cache["wq"] = linear_forward(h, p["wq"])  # (B, T, C)
    k, cache["wk"] = linear_forward(h, p["wk"])  # (B, T, C)
    v, cache["wv"] = linear_forward(h, p["wv"])  # (B, T, C)
    one = (*q.shape[:2], 1, C)  # one head of C channels
    a, cache["attention"] = attention_forward(q.reshape(one), k.reshape(one), v.reshape(one))
    logits, cache["w"] = linear_forward(a.reshape(h.shape), p["w"])  # (B, T, V)
    return logits, cache


def backward(dlogits, cache):
    g = {}
    da, g["w"] = linear_backward(dlogits, cache["w"])  # (B, T, C)
    one = (*da.shape[:2], 1, C)
    dq, dk, dv = attention_backward(da.reshape(one), cache["attention"])  # (B, T, 1, C) each
    dh_v, g["wv"] = linear_backward(dv.reshape(da.shape), cache["wv"])  # (B, T, C)
    dh_k, g["wk"] = linear_backward(dk.reshape(da.shape), cache["wk"])  # (B, T, C)
    dh_q, g["wq"] = linear_backward(dq.reshape(da.shape), cache["wq"])  # (B, T, C)
    dx, g["wpe"] = position_backward(dh_q + dh_k + dh_v, cache["wpe"])  # (B, T, C)
    g["wte"] = embedding_backward(dx, cache["wte"])
    return g


if __name__ == "__main__":
    sys.exit(run(__doc__, init, forward, backward, T, steps=5000))
