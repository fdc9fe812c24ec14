"""The optimizer on a GPU: AdamW over all the parameters in one launch, and the gradient's norm."""

import math

import numpy as np

from npgpt.backend.cuda.compile import ELEMENTS, FLOAT32, empty, from_host, source, width_for

THREADS, PARTS = 256, 1024  # of a block, and blocks, as in optim.cu
FLOAT64 = np.dtype(np.float64)


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay, clip=1.0):
    arrays = p, g, m, v
    if p.ndim != 1 or p.size == 0 or not all(_flat(z, p.shape, "float32") for z in arrays):
        return NotImplemented
    knobs = from_host(step_knobs(step, lr, beta1, beta2, weight_decay, clip))
    adamw(p, g, m, v, None, p.size, knobs, beta1, beta2, eps)


def sum_of_squares(g):
    if g.ndim != 1 or g.size == 0 or not _flat(g, g.shape, "float32"):
        return NotImplemented
    parts, total = empty((PARTS,), FLOAT64), empty((), FLOAT64)
    kernels = _kernels(width_for(g.size, g))
    kernels.launch("squares", (PARTS,), (THREADS,), (g, parts, g.size))
    kernels.launch("squares_total", (1,), (PARTS,), (parts, total))
    return total


def step_knobs(step, lr, beta1, beta2, weight_decay, clip=1.0):
    """What adamw must know of a step, computed in float64.

    Args:    as those of npgpt.optim.adamw_update.
    Returns: (4,) float32, on the host: keep, length, root and clip, see optim.cu.
    """
    length, root = lr / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)
    return np.array([1.0 - lr * weight_decay, length, root, clip], np.float32)


def adamw(p, g, m, v, shadow, decayed, knobs, beta1, beta2, eps):
    """One AdamW step for all parameters: nothing of it waits for the host.

    Args:    p, g, m, v (n,) float32: parameters, gradients and the two running means; p, m and v
             change in place. shadow (n,) bfloat16 or float16 gets p rounded; None for none.
             decayed, how many at the beginning are weight-decayed. knobs (4,) float32 on the
             device: step_knobs, and the last is the factor that clips g. beta1, beta2, eps, as in
             npgpt.optim.
    Raises:  ValueError if the arrays are not flat, of one size, and without gaps in memory.
    """
    others = () if shadow is None else (shadow,)
    if not all(_flat(z, p.shape, "float32") for z in (p, g, m, v)) or not all(
        z.shape == p.shape and z.dtype.itemsize == 2 and z.flags.c_contiguous for z in others
    ):
        raise ValueError(f"adamw: p has shape {p.shape}, and g, m, v and shadow need the same")
    width = width_for(p.size, p, g, m, v, *others)
    _kernels(width, *others).launch(
        "adamw_and_shadow" if others else "adamw", (-(-p.size // (width * THREADS)),), (THREADS,),
        (p, g, m, v, *others, knobs, p.size, decayed,
         beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps),
    )  # fmt: skip


def _kernels(width, shadow=None):
    """The kernels, for a dtype of the shadow if there is one."""
    rounded = "bf16" if shadow is None else ELEMENTS[shadow.dtype.name]
    return source("optim.cu", FLOAT32, WIDTH=width, SHADOW=rounded)


def _flat(x, shape, dtype):
    return x.shape == shape and x.dtype.name == dtype and x.flags.c_contiguous
