"""Embedding: give every token of the vocabulary a vector of its own.

Why
    A network computes with real numbers, and a token is only a name. So each
    token t owns one row of a table, and to read a text is to look up its rows.
    The rows start as noise; training moves the rows of tokens that are used
    alike to places that are alike.

Forward, for the token id t at one place of the text
    x = w[t]                                     the t-th row, C channels

Backward: given dx = ∂L/∂x, find dw = ∂L/∂w
    A lookup is a linear layer in disguise: with the one-hot vector eₜ, which is 1
    at t and 0 elsewhere, x = eₜ @ w. The linear layer's dw = xᵀ @ dy becomes
        dw = Σ_places eₜᵀ @ dx
    and a product with a one-hot column writes dx into row t and zeros elsewhere.
    So: for each place of the text, add its dx to the row of its token,
        dw[t] += dx

    The `+=` is the whole content of this file. A token that occurs twice receives
    two gradients, and they must add. The tempting `dw[ids] += dx` does not do that:
    NumPy reads dw[ids] once, adds, and writes back, so of the repeated ids the last
    one wins. `np.add.at` adds one place after the other.

    The ids themselves have no gradient: there is no token between two tokens.

Cached
    ids and w, by reference; w only for its shape and dtype.

Source: Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language
    Model", section 2, where the table is called C.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def embedding_forward(ids, w):
    """Look up the row of w for each id.

    Args:    ids (B, T) int, each in [0, V); w (V, C).
    Returns: x (B, T, C); cache = (ids, w).
    Raises:  ValueError if w is not a matrix or ids are not whole numbers.
    Note:    a negative id would count from the end of the table, and an id of V or
             more fails in NumPy; the ids are checked where text becomes tokens, once.
    """
    if w.ndim != 2:
        raise ValueError(f"embedding: w has shape {w.shape}, but ids {ids.shape} need (V, C)")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"embedding: ids {ids.shape} are {ids.dtype}, but w {w.shape} needs ints")
    x = w[ids]  # (B, T, C)
    return x, (ids, w)


@fused
def embedding_backward(dx, cache):
    """Undo embedding_forward.

    Args:    dx (B, T, C) = ∂L/∂x; cache from the forward.
    Returns: dw (V, C); the ids have no gradient.
    """
    ids, w = cache
    # forward: x = w[ids], so each row of dx goes back to the row it came from
    dw = np.zeros_like(w)  # (V, C)
    np.add.at(dw, ids, dx)  # (V, C)
    return dw
