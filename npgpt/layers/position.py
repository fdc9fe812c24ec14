"""Learned positions: give every place a vector of its own, and add it to the token's.

Why
    Attention compares vectors and does not know where they stand: shuffle the past, and
    every score stays the same. RoPE turns queries and keys by an angle. The older way, that
    of GPT-2, is a second table: as each token of the vocabulary owns a row of wte, each
    place of the context owns a row of wpe, and what enters the first block is the sum of
    both rows. Training finds what a place should say. The price: a place that no text
    of the training reached has learned nothing, so the context ends where the table ends.

Forward, for the row x of the stream at place t
    y = x + wpe[t]                               t counts from the beginning of the text

Backward: given dy = ∂L/∂y, find dx = ∂L/∂x and dwpe
    y is a sum, so both its terms get all of its gradient:
        dx = dy
        dwpe[t] = dy                             for one text

    It is an embedding, with the ids 0, 1, 2, …; but no id repeats within a text, so no
    scatter is needed. All B texts of the batch share the table, so theirs add:
        dwpe[t] = Σ_B dy[:, t]
    The rows of places that the batch did not reach get zero.

Cached
    wpe by reference, only for its shape and dtype; and start, the place of x[:, 0].

Source: Gehring, Auli, Grangier, Yarats & Dauphin 2017, "Convolutional Sequence to Sequence
    Learning", section 3.1; Radford et al. 2018 (GPT), section 3.1, where the table is W_p.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def position_forward(x, wpe, start=0):
    """Add to each place of x the row of wpe that is its own.

    Args:    x (B, T, C); wpe (P, C), a row for each place; start, the place of x[:, 0].
    Returns: y (B, T, C); cache = (wpe, start).
    Raises:  ValueError if wpe does not have a row of C channels for each place.
    """
    T, C = x.shape[-2:]
    if wpe.ndim != 2 or wpe.shape[1] != C or start + T > wpe.shape[0]:
        raise ValueError(
            f"position: wpe has shape {wpe.shape}, "
            f"but x {x.shape} from place {start} on needs (≥ {start + T}, {C})"
        )
    y = x + wpe[start : start + T]  # (B, T, C)
    return y, (wpe, start)


@fused
def position_backward(dy, cache):
    """Undo position_forward.

    Args:    dy (B, T, C) = ∂L/∂y; cache from the forward.
    Returns: dx (B, T, C), which is dy itself; dwpe (P, C).
    """
    wpe, start = cache
    T = dy.shape[-2]
    # forward: y = x + wpe[t]
    dwpe = np.zeros_like(wpe)  # (P, C)
    dwpe[start : start + T] = np.sum(dy, axis=0)  # (T, C)
    return dy, dwpe
