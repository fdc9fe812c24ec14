"""Where did it go wrong? The first tensor of a step that is not finite, by name.

When a gradient is infinite or not a number, all that was computed after the fault is bad too, and
the loss says nothing of where it began. But a step can be taken again: its batch and its
masks are functions of the seed and the step, and the weights are those from before. So take it
again, and look at each tensor in the order in which it was computed.
"""

from dataclasses import replace

import numpy as np

from npgpt.backend import to_host
from npgpt.layers import smooth_cross_entropy_backward, smooth_cross_entropy_forward
from npgpt.model import backward, forward


def first_bad_tensor(params, ids, targets, config, chance=None, smoothing=0.0):
    """Take a step again, without its update, and find the first tensor that is not finite.

    Args:    params; ids, targets (B, T) int, on the device of params; config; chance; smoothing.
    Returns: what it is, in words; None if all are finite.
    """
    config = replace(config, recompute=False)  # so that all that a block makes is there to be seen
    with np.errstate(all="ignore"):
        for name, w in params.items():
            if told := _bad(w, f"the weights {name}"):
                return told
        logits, cache = forward(params, ids, config, chance=chance)
        for name, tensors in _in_order(cache):
            for tensor in tensors:
                if told := _bad(tensor, f"what {name} is given, or makes of it"):
                    return told
        loss, loss_cache = smooth_cross_entropy_forward(logits, targets, smoothing)
        if told := _bad(logits, "the logits") or _bad(loss, "the loss"):
            return told
        grads = params.zeros_like()
        backward(smooth_cross_entropy_backward(1.0, loss_cache), cache, grads, config)
    for name in _as_backward_goes(config, grads):
        if told := _bad(grads[name], f"the gradient of {name}"):
            return told


def _in_order(cache, prefix=""):
    """The layers of a model's cache by name, with the arrays that each keeps, as forward went."""
    for name, kept in cache.items():
        if isinstance(kept, dict):
            yield from _in_order(kept, f"{prefix}blocks.{name}.")
        elif kept is not None:
            floats = [z for z in kept if hasattr(z, "dtype") and z.dtype.kind == "f"]
            yield f"{prefix}{name}", floats


def _as_backward_goes(config, grads):
    """The names of the parameters in the order in which backward finds their gradients."""
    blocks = [f"blocks.{i}." for i in reversed(range(config.n_layer))]
    parts = ("w_down", "b_down", config.w_up, "b" + config.w_up[1:], "mlp_norm", "mlp_norm_bias",
             "wo", "bo", "wqkv", "bqkv", "attn_norm", "attn_norm_bias")  # fmt: skip
    order = ["lm_head", "lm_head_bias", "norm", "norm_bias"]
    order += [*(b + p for b in blocks for p in parts), "wpe", "wte"]
    return [name for name in order if name in grads]


def _bad(tensor, name):
    """A sentence's middle about a tensor that is not finite, or None."""
    finite = to_host(np.isfinite(tensor))
    if np.all(finite):
        return None
    where = tuple(int(i) for i in np.argwhere(~finite)[0])
    return f"{name}, of {finite.size:,} numbers {np.sum(~finite):,}, the first at {where}"
