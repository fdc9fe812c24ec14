"""Softmax cross-entropy: how surprised was the model by what came next?

Why
    The model gives every token of the vocabulary a score, its logit. A softmax
    makes probabilities of the scores, and the loss is −log of the probability
    that the true next token got: 0 if the model was certain and right, log V if it
    had no idea, in nats. Averaged over many tokens it estimates the cross-entropy
    between the language and the model. exp(loss) is the perplexity, and
    loss · tokens / (log 2 · bytes) the bits per byte of the text, which
    compares models that have different tokenizers.

Forward, for one row z of V logits and the target token t
    lse  = log Σᵥ exp(zᵥ)
    loss = −log(exp(z_t) / Σᵥ exp(zᵥ)) = lse − z_t
    L    = mean of loss over the N rows

    Computed with m = max z taken off both, as log Σ exp(z − m) − (z_t − m): so nothing
    overflows, and a model that is nearly certain does not lose its small loss to rounding.

Label smoothing
    A target that has all the probability asks for a logit of infinity above the others, and
    a model that is never content grows sure of itself. So let the target keep 1 − ε, and
    give ε to the vocabulary, in equal parts: qᵥ = (1 − ε) [v = t] + ε / V. Then
        loss = −Σᵥ qᵥ log pᵥ = lse − Σᵥ qᵥ zᵥ = (lse − z_t) + ε · (z_t − mean(z))
    where p is the softmax. It is least where p = q, and there it is not 0.

Backward: given dL, which is 1 unless the loss is scaled, find dz = ∂L/∂z
    The term −z_t gives −1 at v = t and 0 elsewhere. The other term is
        ∂lse/∂zᵥ = exp(zᵥ) / Σᵤ exp(zᵤ) = pᵥ
    the softmax itself. The mean gives each of the N rows 1/N of the gradient:
        dzᵥ = (pᵥ − [v = t]) · dL / N
    So softmax and cross-entropy are one layer: their two derivatives, each full of
    products, cancel to "what the model said, less what was true". Each row adds up
    to 0, for the loss does not change when all logits of a row move together.

    With label smoothing, qᵥ stands where [v = t] stood:
        dzᵥ = (pᵥ − qᵥ) · dL / N

    Forget the 1/N, and the gradient's direction is still right, and Adam, which
    divides by the gradient's size, hides the fault. Clipping alone feels it: every
    gradient is now too long. Nothing crashes. gradcheck has a mutant for it.

Cached
    logits and targets by reference, and lse: one number a row. The probabilities are
    as wide as the logits, the largest tensor of all, and exp(z − lse) makes them again.

Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network
    outputs", where the softmax, its name and this gradient appear together. Label smoothing:
    Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2016, "Rethinking the Inception Architecture for
    Computer Vision", section 7.
"""

import numpy as np

from npgpt.backend.fused import fused


@fused
def cross_entropy_forward(logits, targets):
    """Mean of −log softmax(logits)[target] over all rows, in nats.

    Args:    logits (..., V); targets (...) int, each in [0, V).
    Returns: loss, a scalar; cache = (logits, targets, lse), with lse (N, 1).
    Raises:  ValueError if there is not one target for each row of logits.
    """
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: targets have shape {targets.shape}, "
            f"but logits {logits.shape} need {logits.shape[:-1]}"
        )
    z = logits.reshape(-1, logits.shape[-1])  # (N, V)
    t = targets.reshape(-1, 1)  # (N, 1)
    peak = np.max(z.real, axis=-1, keepdims=True)  # (N, 1)
    below = z - peak  # (N, V), no exponent above 0, so nothing overflows
    log_total = np.log(np.sum(np.exp(below), axis=-1, keepdims=True))  # (N, 1)
    loss = np.mean(log_total - np.take_along_axis(below, t, axis=-1))  # ()
    return loss, (logits, targets, peak + log_total)


@fused
def cross_entropy_backward(dloss, cache):
    """Undo cross_entropy_forward.

    Args:    dloss = ∂L/∂loss, a number: 1.0, or 1/k when k batches are
             accumulated; cache from the forward.
    Returns: dlogits (..., V); the targets have no gradient.
    """
    logits, targets, lse = cache
    z = logits.reshape(-1, logits.shape[-1])  # (N, V)
    N = z.shape[0]
    # forward: loss = mean(lse(z) − z_t)
    dz = np.exp(z - lse)  # (N, V), the softmax
    dz[np.arange(N, like=targets), targets.reshape(-1)] -= 1.0  # (N, V)
    dz *= dloss / N  # (N, V)
    return dz.reshape(logits.shape)


@fused
def smooth_cross_entropy_forward(logits, targets, smoothing):
    """As cross_entropy_forward, with a share of each target given to the whole vocabulary.

    Args:    logits (..., V); targets (...) int; smoothing ε in [0, 1).
    Returns: loss, a scalar; cache = (that of cross_entropy_forward, smoothing).
    Raises:  ValueError as cross_entropy_forward, or if smoothing is not in [0, 1).
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"cross_entropy: smoothing is {smoothing}, but it must be in [0, 1)")
    loss, cache = cross_entropy_forward(logits, targets)  # ()
    z = logits.reshape(-1, logits.shape[-1])  # (N, V)
    chosen = np.take_along_axis(z, targets.reshape(-1, 1), axis=-1)  # (N, 1)
    above = chosen - np.mean(z, axis=-1, keepdims=True)  # (N, 1)
    loss = loss + smoothing * np.mean(above)  # ()
    return loss, (cache, smoothing)


@fused
def smooth_cross_entropy_backward(dloss, cache):
    """Undo smooth_cross_entropy_forward.

    Args:    dloss = ∂L/∂loss, a number; cache from the forward.
    Returns: dlogits (..., V).
    """
    plain, smoothing = cache
    logits, targets, _ = plain
    # forward: loss = mean(lse(z) − z_t) + ε · mean(z_t − mean(z))
    dz = cross_entropy_backward(dloss, plain).reshape(-1, logits.shape[-1])  # (N, V)
    N, V = dz.shape
    dz -= smoothing * dloss / (N * V)  # (N, V)
    dz[np.arange(N, like=targets), targets.reshape(-1)] += smoothing * dloss / N  # (N, V)
    return dz.reshape(logits.shape)
