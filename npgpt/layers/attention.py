"""Causal attention: every token looks back, and takes what it is looking for.

Why
    All other layers treat each token alone; here tokens meet. Each one sends out a
    query q ("what am I looking for?"), and offers a key k ("what am I?") and a
    value v ("what do I give?"). The score of a query and a key is their dot
    product; a softmax turns the scores of one query into weights that add up to 1;
    and the output is the average of the values, so weighted. A model that predicts
    the next token must not see it, so a query scores only its own place and those
    before it: the mask. Several heads do this side by side, on D channels each, and
    can look for different things.

    Grouped heads: G key/value heads may serve H = G·R query heads, R each. The query
    head h reads the key/value head h // R. G = H is the ordinary case. Fewer of them
    change nothing in the formulas but save memory when sampling, where the keys and
    values of the whole past are kept.

Forward, for one head: the query at place t and all keys s ≤ t
    scoresₜₛ = qₜ · kₛ / √D                      −∞ where s > t
    lseₜ     = log Σₛ exp(scoresₜₛ)              the logarithm of the softmax's denominator
    probsₜₛ  = exp(scoresₜₛ − lseₜ)              the softmax, and exactly 0 where masked
    yₜ       = Σₛ probsₜₛ · vₛ

    Why √D: the dot product of two random vectors, of D channels with variance 1 each, has
    variance D. And a softmax of scores that lie far apart is nearly a maximum: one
    weight is 1, the others are 0, and there hardly any gradient comes through.
    Why lse by way of the maximum: log Σ exp(z) = m + log Σ exp(z − m) for every m,
    and with m = max z no exponent is positive, so nothing overflows.

Backward: given dy = ∂L/∂y, find dq, dk, dv; the forward read upwards
    The average, y = probs @ v, is a matrix product, so as in the linear layer
        dv = probsᵀ @ dy
        dprobs = dy @ vᵀ

    The softmax: p = exp(z) / Σ exp(z), with z for one row of scores. The score zⱼ acts
    on its own pⱼ, and through the denominator on every pᵢ. By the quotient rule
        ∂pᵢ/∂zⱼ = pᵢ (δᵢⱼ − pⱼ)                 δᵢⱼ is 1 where i = j, else 0
        dzⱼ = Σᵢ dpᵢ · pᵢ (δᵢⱼ − pⱼ) = pⱼ · (dpⱼ − Σᵢ pᵢ dpᵢ)
    Only the distance from an average counts: as the weights add up to 1, one of them can
    grow only at the others' cost. The average is one number a row, and there is a shorter
    way to it, where · is the dot product:
        Σᵢ pᵢ dpᵢ = Σᵢ pᵢ (dy · vᵢ) = dy · Σᵢ pᵢ vᵢ = dy · y
    Masked places have p = 0, so dz = 0 there: no gradient leaks from the future.

    The scores, scores = q @ kᵀ / √D, are a matrix product again:
        dq = dscores @ k / √D
        dk = dscoresᵀ @ q / √D
    A key/value head that serves R query heads gets R gradients, and they add.

Cached
    q, k, v and y by reference, and lse: one number for each query and head. The
    weights are T numbers for each query and head, which at T = 1024 is more than
    all else in the layer together; exp(scores − lse) makes them again.

Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1; grouped heads: Ainslie
    et al. 2023, "GQA"; Σ p·dp = dy·y: Dao et al. 2022, "FlashAttention", appendix B.2
    (D_i = dO_iᵀ O_i); of the softmax only lse: Dao 2023, "FlashAttention-2", section 3.1.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def attention_forward(q, k, v):
    """Average the values of the visible past, weighted by softmax(q · k / √D).

    Args:    q (B, T, H, D); k, v (B, S, G, D) with G dividing H and S ≥ T: the
             queries are the last T of S places, so T = S when training.
    Returns: y (B, T, H, D); cache = (q, k, v, y, lse), with lse (B, G, R, T, 1).
    Raises:  ValueError if k or v does not fit q.
    """
    B, T, H, D = q.shape
    S, G = k.shape[1:3]
    if k.shape != (B, S, G, D) or S < T or H % G:
        raise ValueError(
            f"attention: k has shape {k.shape}, but q {q.shape} needs "
            f"({B}, S ≥ {T}, a divisor of {H}, {D})"
        )
    if v.shape != k.shape:
        raise ValueError(f"attention: v has shape {v.shape}, but k {k.shape} needs the same")
    scores = _scores(q, k)  # (B, G, R, T, S)
    peak = np.max(scores.real, axis=-1, keepdims=True)  # (B, G, R, T, 1)
    weights = np.exp(scores - peak)  # (B, G, R, T, S), probs but for the denominator
    total = np.sum(weights, axis=-1, keepdims=True)  # (B, G, R, T, 1), the denominator
    y = _join_heads((weights @ _split_heads(v, G)) / total)  # (B, T, H, D), one division a row
    return y, (q, k, v, y, peak + np.log(total))


@fused
def attention_backward(dy, cache):
    """Undo attention_forward.

    Args:    dy (B, T, H, D) = ∂L/∂y; cache from the forward.
    Returns: dq (B, T, H, D); dk, dv (B, S, G, D).
    """
    q, k, v, y, lse = cache
    G, scale = k.shape[2], q.shape[3] ** -0.5
    dyh, qh = _split_heads(dy, G), _split_heads(q, G)  # (B, G, R, T, D)
    kh, vh = _split_heads(k, G), _split_heads(v, G)  # (B, G, 1, S, D)
    # forward: probs = exp(scores − lse), made again
    probs = np.exp(_scores(q, k) - lse)  # (B, G, R, T, S)
    # forward: y = probs @ v
    dv = np.sum(np.swapaxes(probs, -1, -2) @ dyh, axis=2, keepdims=True)  # (B, G, 1, S, D)
    dprobs = dyh @ np.swapaxes(vh, -1, -2)  # (B, G, R, T, S)
    # forward: probs = softmax(scores), and Σ probs · dprobs = dy · y
    average = _split_heads(np.sum(dy * y, axis=-1, keepdims=True), G)  # (B, G, R, T, 1)
    dscores = probs * (dprobs - average)  # (B, G, R, T, S)
    # forward: scores = q @ kᵀ / √D
    dq = scale * (dscores @ kh)  # (B, G, R, T, D)
    dk = scale * np.sum(np.swapaxes(dscores, -1, -2) @ qh, axis=2, keepdims=True)  # (B, G, 1, S, D)
    return _join_heads(dq), _join_heads(dk), _join_heads(dv)


def _scores(q, k):
    """q @ kᵀ / √D for every head, −∞ where a key lies in the query's future."""
    T, S, G, D = q.shape[1], k.shape[1], k.shape[2], q.shape[3]
    query = _split_heads(q * D**-0.5, G)  # (B, G, R, T, D)
    key = _split_heads(k, G)  # (B, G, 1, S, D)
    place = np.arange(S, like=k)  # (S,)
    future = place > place[S - T :, None]  # (T, S)
    scores = query @ np.swapaxes(key, -1, -2)  # (B, G, R, T, S)
    scores += np.where(future, -np.inf, 0.0).astype(scores.dtype)  # (B, G, R, T, S)
    return scores


def _split_heads(x, G):
    """Order (B, T, H, D) by groups of heads, as matrices of T rows: (B, G, H/G, T, D)."""
    B, T, H, D = x.shape
    return np.moveaxis(x.reshape(B, T, G, H // G, D), 1, 3)


def _join_heads(x):
    """Undo _split_heads: (B, G, R, T, D) to (B, T, G·R, D)."""
    B, G, R, T, D = x.shape
    return np.moveaxis(x, 3, 1).reshape(B, T, G * R, D)
