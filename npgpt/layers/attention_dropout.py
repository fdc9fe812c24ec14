"""Attention that forgets: some weights are dropped, so that no token depends on one other.

Why
    A head can learn a small text by heart: here, look at that one letter, eleven places back.
    If a fifth of a query's weights is missing at each step, and another fifth at the next, then
    what the query is looking for has to be found in several places. Dropout of channels does not
    do that: it takes from what attention has found, and this from where it looks.

Forward, for one head: the query at place t and all keys s ≤ t
    probsₜₛ   = softmax(q · k / √D)              as in attention.py
    droppedₜₛ = probsₜₛ · mₜₛ                    as in dropout.py: m is 0 or 1 / (1 − rate)
    yₜ        = Σₛ droppedₜₛ · vₛ

    The weights that are left add up to 1 in the mean only: nobody divides by their sum
    again. Were scores dropped, and the softmax taken of the rest, the others would take over
    what is missing. Here it is missed, and that is the lesson.

Backward: given dy = ∂L/∂y, find dq, dk, dv
    The chain of the layers, read upwards. The average is a matrix product again, and what
    it averaged with are the dropped weights:
        dv = droppedᵀ @ dy
        ddropped = dy @ vᵀ
    Dropout is linear, with the same m:
        dprobs = m · ddropped
    The softmax was taken before anything was dropped, so its backward is attention's own:
        dscores = probs · (dprobs − Σ probs · dprobs)
    And the shorter way to the average is still there, for m moves from one factor to the other:
        Σᵢ pᵢ dpᵢ = Σᵢ pᵢ mᵢ (dy · vᵢ) = dy · Σᵢ (pᵢ mᵢ) vᵢ = dy · y
    A weight that was dropped has dp = 0, and its score a gradient all the same: it was in
    the denominator.
        dq = dscores @ k / √D,  dk = dscoresᵀ @ q / √D

The place of a weight
    The mask is made out of places, and the weights' are counted in the order batch row, head,
    query, key: as they lie in the array (B, H, T, S). So a row of the batch gets the same mask
    wherever the batch is cut, if `start` says how many weights the rows before it have.

Cached
    q, k, v and y by reference, lse, and the three numbers of the mask. Weights and mask are
    made again.

Source: Radford, Narasimhan, Salimans & Sutskever 2018, "Improving Language Understanding by
    Generative Pre-Training" (GPT), section 4.1: residual, embedding and attention dropouts.
    The rest as in attention.py and dropout.py.
"""

import numpy as np

from npgpt.backend.fused import fused
from npgpt.layers.attention import _join_heads, _scores, _split_heads, attention_forward
from npgpt.layers.dropout import dropout_backward, dropout_forward


@fused
def dropped_attention_forward(q, k, v, rate, key, start=0):
    """Average the visible values by softmax(q · k / √D), a share of these weights set to zero.

    Args:    q (B, T, H, D); k, v (B, S, G, D), as for attention_forward; rate in [0, 1), the
             share; key, an int from dropout_key; start, the place of the first weight in the
             whole batch, in the order (B, H, T, S).
    Returns: y (B, T, H, D); cache = (q, k, v, y, lse, rate, key, start), with lse
             (B, G, R, T, 1).
    Raises:  ValueError if k or v does not fit q, or rate is not in [0, 1).
    """
    _, (*_, lse) = attention_forward(q, k, v)  # (B, G, R, T, 1)
    probs = np.exp(_scores(q, k) - lse)  # (B, G, R, T, S)
    dropped, _ = dropout_forward(probs, rate, key, start)  # (B, G, R, T, S)
    y = _join_heads(dropped @ _split_heads(v, k.shape[2]))  # (B, T, H, D)
    return y, (q, k, v, y, lse, rate, key, start)


@fused
def dropped_attention_backward(dy, cache):
    """Undo dropped_attention_forward.

    Args:    dy (B, T, H, D) = ∂L/∂y; cache from the forward.
    Returns: dq (B, T, H, D); dk, dv (B, S, G, D).
    """
    q, k, v, y, lse, *mask = cache
    G, scale = k.shape[2], q.shape[3] ** -0.5
    dyh, qh = _split_heads(dy, G), _split_heads(q, G)  # (B, G, R, T, D)
    kh, vh = _split_heads(k, G), _split_heads(v, G)  # (B, G, 1, S, D)
    # forward: probs = exp(scores − lse) and dropped = dropout(probs), made again
    probs = np.exp(_scores(q, k) - lse)  # (B, G, R, T, S)
    dropped, drop_cache = dropout_forward(probs, *mask)  # (B, G, R, T, S)
    # forward: y = dropped @ v
    dv = np.sum(np.swapaxes(dropped, -1, -2) @ dyh, axis=2, keepdims=True)  # (B, G, 1, S, D)
    ddropped = dyh @ np.swapaxes(vh, -1, -2)  # (B, G, R, T, S)
    # forward: dropped = dropout(probs)
    dprobs = dropout_backward(ddropped, drop_cache)  # (B, G, R, T, S)
    # forward: probs = softmax(scores), and Σ probs · dprobs = dy · y
    average = _split_heads(np.sum(dy * y, axis=-1, keepdims=True), G)  # (B, G, R, T, 1)
    dscores = probs * (dprobs - average)  # (B, G, R, T, S)
    # forward: scores = q @ kᵀ / √D
    dq = scale * (dscores @ kh)  # (B, G, R, T, D)
    dk = scale * np.sum(np.swapaxes(dscores, -1, -2) @ qh, axis=2, keepdims=True)  # (B, G, 1, S, D)
    return _join_heads(dq), _join_heads(dk), _join_heads(dv)
