"""Linear: every output channel is a weighted sum of the input channels.

Why
    All that a GPT learns to compute, it computes here: queries, keys and values,
    the two halves of the MLP, and at the end one score for every token of the
    vocabulary are matrix products. Unless the context is long, nine tenths of the
    arithmetic of a training step happen in this file, three products for each
    weight matrix: one forward, two backward.

Forward, for one row x of C channels and a matrix w of C rows and N columns
    yₙ = Σ_c x_c · w_cn                          that is, y = x @ w

    A layer may also move its output, by a number of its own for each channel:
        y = x @ w + b

What backward means, here and in every file
    At the end of the model stands one number, the loss L: how wrong was it? (See loss.py.)
    Training asks how L changes with each weight. The question travels from L downwards,
    layer by layer, and a layer needs to know little to pass it on. It is told how L
    changes with each number that it put out: dy, or ∂L/∂y. It answers how L changes with
    each number that went in, dx, and with each of its weights, dw. Its input is the output
    of the layer below, to which this dx is dy.

Backward: given dy = ∂L/∂y, find dx = ∂L/∂x, dw = ∂L/∂w and db = ∂L/∂b
    The input. The channel x_c reaches the loss through every output yₙ, with
    ∂yₙ/∂x_c = w_cn. The chain rule adds up its paths:
        dx_c = Σₙ dyₙ · w_cn                     dx = dy @ wᵀ

    The weight. w_cn touches the one output yₙ, with ∂yₙ/∂w_cn = x_c. But all the
    rows of the batch share the one w, so their contributions add. With rows r,
        dw_cn = Σᵣ x_rc · dy_rn                  dw = xᵀ @ dy

    There is nothing to memorise. Each product must give back the shape of the
    thing it is the gradient of, and only one arrangement of the two factors does:
        x (R, C)   w (C, N)   dy (R, N)   →   dy @ wᵀ (R, C)   xᵀ @ dy (C, N)

    The bias. dx and dw are as before, as b is in neither product. Each output contains
    b once, and all rows share it, so their gradients add:
        db = Σᵣ dyᵣ
    It is a weight like those of w, for an input that is always 1.

Cached
    x and w, by reference: both products need them, and neither can be made again.

Source: Rumelhart, Hinton & Williams 1986, "Learning representations by
    back-propagating errors", eqs. 1, 6 and 7.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def linear_forward(x, w):
    """Multiply each row of x by w.

    Args:    x (..., C); w (C, N).
    Returns: y (..., N); cache = (x, w).
    Raises:  ValueError if w does not have one row for each channel of x.
    """
    if w.ndim != 2 or w.shape[0] != x.shape[-1]:
        raise ValueError(f"linear: w has shape {w.shape}, but x {x.shape} needs ({x.shape[-1]}, N)")
    rows = x.reshape(-1, x.shape[-1])  # (R, C): one large product, not one a sequence
    y = (rows @ w).reshape(*x.shape[:-1], w.shape[1])  # (..., N)
    return y, (x, w)


@fused
def linear_backward(dy, cache):
    """Undo linear_forward.

    Args:    dy (..., N) = ∂L/∂y; cache from the forward.
    Returns: dx (..., C); dw (C, N).
    """
    x, w = cache
    rows = x.reshape(-1, x.shape[-1])  # (R, C)
    drows = dy.reshape(-1, dy.shape[-1])  # (R, N)
    # forward: y = x @ w
    dx = (drows @ w.T).reshape(x.shape)  # (..., C)
    dw = rows.T @ drows  # (C, N)
    return dx, dw


@fused
def affine_forward(x, w, b):
    """Multiply each row of x by w, and move it by b.

    Args:    x (..., C); w (C, N); b (N,).
    Returns: y (..., N); cache = (x, w), as of linear_forward.
    Raises:  ValueError if w or b does not fit.
    """
    y, cache = linear_forward(x, w)  # (..., N)
    if b.shape != y.shape[-1:]:
        raise ValueError(f"affine: b has shape {b.shape}, but w {w.shape} needs {y.shape[-1:]}")
    return y + b, cache  # (..., N)


@fused
def affine_backward(dy, cache):
    """Undo affine_forward.

    Args:    dy (..., N) = ∂L/∂y; cache from the forward.
    Returns: dx (..., C); dw (C, N); db (N,).
    """
    # forward: y = x @ w + b
    dx, dw = linear_backward(dy, cache)  # (..., C), (C, N)
    db = np.sum(dy, axis=tuple(range(dy.ndim - 1)))  # (N,)
    return dx, dw, db
