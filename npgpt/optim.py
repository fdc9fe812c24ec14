"""What to do with a gradient: bound it, choose a step length, and take the step.

AdamW, for one parameter p with gradient g at step t = 1, 2, …
    m ← β₁ m + (1 − β₁) g            a running mean of the gradient
    v ← β₂ v + (1 − β₂) g²           a running mean of its square
    m̂ = m / (1 − β₁ᵗ)                both began at 0, and so are too small at first:
    v̂ = v / (1 − β₂ᵗ)                divide by the weight that they have seen so far
    p ← p − lr · λ · p − lr · m̂ / (√v̂ + eps)

    m̂/√v̂ is the gradient in units of its own usual size, close to ±1 when it keeps its
    sign and close to 0 when it does not know where to go. So lr is a length: about
    how far each parameter moves in a step, whatever the scale of the loss.

    The W is for the term lr · λ · p, decoupled weight decay. Had λp been added to g, as
    in plain L2 regularisation, √v̂ would have divided it too, and the parameters with the
    largest gradients would have been pulled on least. It pulls on matrices only: a
    gain of a norm wants to be near 1, not near 0, and a bias moves outputs and does not
    scale them. A table is looked up, not multiplied with: some leave it alone as well.

Clipping
    One bad batch can make a gradient many times the usual, and Adam's memory of g² would
    carry it along for 1/(1 − β₂) steps. So the whole gradient, all parameters taken as one
    vector, is scaled down to a given norm when it is longer. Its direction stays.

The schedule
    Warm up: Adam's first steps rest on few samples of v, so begin with short ones.
    Then half a cosine, from the largest to the smallest learning rate; then stay there.
    Or let the cosine take some steps only, and begin again with the largest (a warm restart), each
    time perhaps for longer: the long steps leave a valley that the short ones have settled in.

Source: Kingma & Ba 2015, "Adam", algorithm 1; Loshchilov & Hutter 2019, "Decoupled Weight Decay
    Regularization", algorithm 2; clipping: Pascanu, Mikolov & Bengio 2013, algorithm 1;
    cosine and restarts: Loshchilov & Hutter 2017, "SGDR", eq. 5.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from npgpt.backend import to_host
from npgpt.backend.fused import fused

# AdamW reads and writes four arrays of all the parameters. It works through them in pieces
# small enough that a piece stays in the processor's cache from the first line to the last. And
# pieces can be given to several threads: their size is fixed, so the result has the same bits
# whatever the number of threads.
PIECE = 1 << 17


def pieces(start, stop):
    """Cut the places start … stop − 1 of a flat buffer: a list of slices of PIECE or less."""
    return [slice(i, min(i + PIECE, stop)) for i in range(start, stop, PIECE)]


@dataclass
class AdamW:
    """The optimizer and its memory.

    Args:    m, v (P,), zeros at the start; num_decayed, how many entries at the beginning of
             the flat buffer are weight-decayed, but for those before first_decayed, the tables
             perhaps; step, how many have been taken.
    """

    m: np.ndarray
    v: np.ndarray
    num_decayed: int
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    step: int = 0
    first_decayed: int = 0

    @classmethod
    def for_parameters(cls, params, **settings):
        """A fresh optimizer for params, on the same device and in the same dtype."""
        zeros = np.zeros_like
        return cls(zeros(params.flat), zeros(params.flat), params.num_decayed, **settings)

    def update(self, p, g, lr, map=map, clip=1.0):
        """Take one step: p, m and v change in place.

        Args:    p, g (P,), the flat parameters and gradients; lr, the learning rate; map, how
                 to go through the pieces: parallel.Workers.map does it on several threads; clip,
                 of clip_factor, by which the step shortens the gradient that it reads.
        """
        self.step += 1

        def update(s):
            decayed = self.first_decayed <= s.start < self.num_decayed
            decay = self.weight_decay if decayed else 0.0
            adamw_update(
                p[s], g[s], self.m[s], self.v[s], self.step,
                lr, self.beta1, self.beta2, self.eps, decay, clip,
            )  # fmt: skip

        bounds = itertools.pairwise((0, self.first_decayed, self.num_decayed, p.size))
        list(map(update, [piece for group in bounds for piece in pieces(*group)]))


@fused
def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay, clip=1.0):
    """One AdamW step for one array of parameters, in place.

    Args:    p, g, m, v (N,): parameters, gradients, and the two running means; step ≥ 1;
             lr; beta1, beta2 in [0, 1); eps, in the units of g; weight_decay, λ; clip, a factor
             of g, which itself stays as it is.
    """
    g = clip * g  # (N,)
    p *= 1.0 - lr * weight_decay  # (N,)
    m *= beta1  # (N,)
    m += (1.0 - beta1) * g  # (N,)
    v *= beta2  # (N,)
    v += (1.0 - beta2) * (g * g)  # (N,)
    m_scale = 1.0 / (1.0 - beta1**step)
    v_scale = 1.0 / (1.0 - beta2**step)
    p -= (lr * m_scale) * m / (np.sqrt(v) * math.sqrt(v_scale) + eps)  # (N,)


@fused
def sum_of_squares(g):
    """Σ g² over a flat array, in float64: float32 would lose the small ones among millions."""
    return np.sum(np.square(g), dtype=np.float64)


def gradient_norm(g, map=map):
    """√(Σ g²) over the flat gradient; map, how to go through its pieces."""
    return math.sqrt(to_host(sum(map(sum_of_squares, [g[s] for s in pieces(0, g.size)]))))


def clip_gradient(g, max_norm, map=map):
    """Scale g in place so that its norm is at most max_norm; 0 means no limit.

    Args:    g (P,), the flat gradient; max_norm; map, how to go through its pieces.
    Returns: the norm before clipping: the number to watch in a training log.
    """
    norm = gradient_norm(g, map)
    factor = clip_factor(norm, max_norm)
    if factor != 1.0:

        def shorten(s):
            g[s] *= factor

        list(map(shorten, pieces(0, g.size)))
    return norm


def clip_factor(norm, max_norm):
    """By what a gradient of some norm is multiplied so that it is max_norm long at most.

    1 for one that is short enough, or with max_norm = 0, no limit; and for one that is not
    finite, which stays as it is, to be seen.
    """
    if 0.0 < max_norm < norm < math.inf:
        return max_norm / (norm + 1e-6)  # 1e-6, as in torch: the result is never too long
    return 1.0


def cosine_schedule(step, warmup_steps, total_steps, max_lr, min_lr, cycle=None, growth=1):
    """The learning rate of a step, the first of which is 0.

    It never leaves (0, max_lr], and after the warm-up never [min_lr, max_lr].

    Args:    step ≥ 0; warmup_steps, of linear growth; total_steps, when min_lr is reached;
             max_lr, min_lr; cycle, None or after how many steps the cosine begins again; growth,
             by which each cycle is longer than the one before.
    Returns: the learning rate, a float.
    """
    if step < warmup_steps:  # 1. warm up: never 0, or the first step would be lost
        return max_lr * (step + 1) / warmup_steps
    if step >= total_steps:  # 2. past the end: the cosine would turn and rise again
        return min_lr
    at, length = step - warmup_steps, cycle or total_steps - warmup_steps
    while cycle and at >= length:  # 3. at a place of the cycle that this step belongs to
        at, length = at - length, length * growth
    fallen = 0.5 * (1.0 - math.cos(math.pi * at / length))  # 0 at first, so max_lr is met exactly
    return max(min_lr, max_lr - (max_lr - min_lr) * fallen)  # and rounding stays above min_lr
