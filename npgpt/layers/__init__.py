"""The lecture: one file a layer, each with its idea, formula, derivation, forward and backward.

Read them in this order; each needs only the ones before it.

    linear      y = x @ w, the product rule for matrices, and every GEMM of the program
    embedding   a row of a table for each token; its backward is a scatter-add
    rmsnorm     one statistic shared by a row: the first derivative with two paths
    rope        a rotation, whose backward is the rotation back
    attention   the softmax, and how the past is mixed into the present
    swiglu      a gate: the product rule, elementwise
    loss        softmax and cross-entropy together, where every gradient begins

All are pure functions, `y, cache = name_forward(x, w)` and `dx, dw = name_backward(dy, cache)`,
and run in float32, float64 and complex128. They know no device and no kernel.
"""

from npgpt.layers.attention import attention_backward, attention_forward
from npgpt.layers.embedding import embedding_backward, embedding_forward
from npgpt.layers.linear import linear_backward, linear_forward
from npgpt.layers.loss import cross_entropy_backward, cross_entropy_forward
from npgpt.layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npgpt.layers.rope import rope_backward, rope_forward, rope_table
from npgpt.layers.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "attention_backward",
    "attention_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
    "embedding_forward",
    "linear_backward",
    "linear_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_backward",
    "rope_forward",
    "rope_table",
    "swiglu_backward",
    "swiglu_forward",
]
