"""Step 1: what comes next, if the last letter is all that is known?

After a q comes a u; after a full stop, a space. A table has a row for each letter, and in it a
score for each letter that may follow. To predict is to look the row up. So the model is a
single embedding, whose rows are as wide as the vocabulary: its output is the logits themselves.

Trained, the row of a letter holds the logarithms of how often each letter followed it, but for a
number added to the whole row, which the softmax does not see: counting would have found the
same. But counting can't be made deeper, and this can.
"""

import sys

from lectures.common import run
from npgpt.layers import embedding_backward, embedding_forward

T = 32  # letters in a piece; each is predicted from the one before it alone


def init(rng, V):
    return {"table": 0.02 * rng.standard_normal((V, V), dtype="float32")}


def forward(p, ids):
    logits, cache = embedding_forward(ids, p["table"])  # (B, T, V)
    return logits, cache


def backward(dlogits, cache):
    return {"table": embedding_backward(dlogits, cache)}


if __name__ == "__main__":
    sys.exit(run(__doc__, init, forward, backward, T, steps=5000, lr=1e-2))
