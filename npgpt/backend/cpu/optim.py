"""The optimizer on a CPU: each parameter, its gradient and its two means are read once."""

import math

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel

f32 = np.float32


def sum_of_squares(g):
    if g.ndim != 1 or not g.flags.c_contiguous:
        return NotImplemented
    return np.float64(_sum_of_squares(g))


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay, clip=1.0):
    arrays = p, g, m, v
    if p.ndim != 1 or not all(z.shape == p.shape and z.flags.c_contiguous for z in arrays):
        return NotImplemented
    m_scale = 1.0 / (1.0 - beta1**step)
    v_scale = 1.0 / (1.0 - beta2**step)
    keep, length, root_scale = 1.0 - lr * weight_decay, lr * m_scale, math.sqrt(v_scale)
    _adamw(p, g, m, v, keep, length, root_scale, beta1, beta2, eps, clip)


@kernel(fastmath=REORDER)
def _sum_of_squares(g):
    """Σ g², read at four places at once: of one place alone memory answers half as fast."""
    total, quarter = 0.0, g.size // 4
    a, b, c, d = g[:quarter], g[quarter:], g[2 * quarter :], g[3 * quarter :]
    for i in range(quarter):
        total += np.float64(a[i] * a[i]) + np.float64(b[i] * b[i])
        total += np.float64(c[i] * c[i]) + np.float64(d[i] * d[i])
    for i in range(quarter, d.size):
        total += np.float64(d[i] * d[i])
    return total


@kernel
def _adamw(p, g, m, v, keep, length, root_scale, beta1, beta2, eps, clip):
    """p = keep · p − length · m / (√v · root_scale + eps), after m and v have learned clip · g."""
    keep, length, root_scale, eps = f32(keep), f32(length), f32(root_scale), f32(eps)
    clip = f32(clip)
    b1, new1, b2, new2 = f32(beta1), f32(1.0 - beta1), f32(beta2), f32(1.0 - beta2)
    for i in range(p.size):
        gradient = clip * g[i]
        m[i] = b1 * m[i] + new1 * gradient
        v[i] = b2 * v[i] + new2 * (gradient * gradient)
        p[i] = keep * p[i] - length * m[i] / (np.sqrt(v[i]) * root_scale + eps)
