"""The lecture: one file a layer, each with its idea, formula, derivation, forward and backward.

Read them in this order; each needs only the ones before it.

    linear      y = x @ w + b, the product rule for matrices, and every GEMM of the program
    embedding   a row of a table for each token; its backward is a scatter-add
    rmsnorm     one statistic shared by a row: the first derivative with two paths
    layernorm   two statistics, and so three paths
    position    a vector for each place, added to the token's
    rope        a rotation, whose backward is the rotation back
    attention   the softmax, and how the past is mixed into the present
    rope_attention  the two in one: a composition of layers is a layer
    swiglu      a gate: the product rule, elementwise
    mlp         ReLU and GELU: a bend by itself, and how to compute Φ
    dropout     a mask, drawn at random and yet the same wherever it is made again
    attention_dropout  attention's weights under that mask: one step more in its chain
    loss        softmax and cross-entropy together, where every gradient begins

All are pure functions, `y, cache = name_forward(x, w)` and `dx, dw = name_backward(dy, cache)`,
and run in float32, float64 and complex128. They know no device and no kernel.

Three things to read over at first
    @fused      a compiled kernel of the same name may run in the place of what follows, and
                gives the same up to rounding: see npgpt/backend/fused.py
    like=x      the new array lives where x lives, on a GPU perhaps
    x.real      is x itself, but for a check that moves numbers off the real line, where there
                is no larger and smaller: see gradcheck/numerical.py
"""

from npgpt.layers.attention import attention_backward, attention_forward
from npgpt.layers.attention_dropout import dropped_attention_backward, dropped_attention_forward
from npgpt.layers.dropout import dropout_backward, dropout_forward, dropout_key
from npgpt.layers.embedding import embedding_backward, embedding_forward
from npgpt.layers.layernorm import layernorm_backward, layernorm_forward
from npgpt.layers.linear import affine_backward, affine_forward, linear_backward, linear_forward
from npgpt.layers.loss import (
    cross_entropy_backward,
    cross_entropy_forward,
    smooth_cross_entropy_backward,
    smooth_cross_entropy_forward,
)
from npgpt.layers.mlp import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    relu_backward,
    relu_forward,
)
from npgpt.layers.position import position_backward, position_forward
from npgpt.layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npgpt.layers.rope import rope_backward, rope_forward, rope_table
from npgpt.layers.rope_attention import rope_attention_backward, rope_attention_forward
from npgpt.layers.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "affine_backward",
    "affine_forward",
    "attention_backward",
    "attention_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_backward",
    "dropout_forward",
    "dropout_key",
    "dropped_attention_backward",
    "dropped_attention_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "gelu_tanh_backward",
    "gelu_tanh_forward",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "position_backward",
    "position_forward",
    "relu_backward",
    "relu_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rope_attention_backward",
    "rope_attention_forward",
    "rope_backward",
    "rope_forward",
    "rope_table",
    "smooth_cross_entropy_backward",
    "smooth_cross_entropy_forward",
    "swiglu_backward",
    "swiglu_forward",
]
