"""Causal attention on a GPU: scores are made and used a tile at a time, and never kept.

There are two sets of kernels of the same names. attention_mma.cu computes with the tensor cores, in
bfloat16 and float16, from Ampere on, and turns queries and keys by RoPE if asked; attention.cu
does everything else, in float32 arithmetic.
"""

from typing import NamedTuple

from npgpt.backend.cuda.compile import (
    FLOAT32,
    Source,
    capability,
    contiguous,
    element_strides,
    empty,
    in_place,
    source,
    width_for,
)
from npgpt.backend.cuda.dropout import no_mask

MOST_CHANNELS = 128
MOST_BLOCKS = 65535  # along the axes of heads and batch
TENSOR_CORES = 80  # the compute capability from which on they take such matrices


def attention_forward(q, k, v):
    return forward(q, k, v)


def attention_backward(dy, cache):
    return backward(dy, cache)


def forward(q, k, v, mask=None):
    """attention_forward, with the weights that a mask (see dropout.mask_of) lets through."""
    if not _fit(q, k, v):
        return NotImplemented
    views = Views.of(q, k, v)
    y, lse = empty(q.shape, q.dtype), empty(views.lse_shape, FLOAT32)
    run_forward(views, plan_for(views, y, drops=mask is not None), y, lse, mask=mask)
    return y, (q, k, v, y, lse)


def backward(dy, cache, mask=None):
    """attention_backward, with the forward's mask."""
    q, k, v, y, lse = cache
    if dy.shape != q.shape or not _fit(q, k, v) or lse.dtype != FLOAT32:
        return NotImplemented
    grads = tuple(empty(z.shape, z.dtype) for z in (q, k, v))
    views, dy, y = Views.of(q, k, v), contiguous(dy), contiguous(y)
    plan = plan_for(views, dy, y, *grads, drops=mask is not None)
    run_backward(views, plan, dy, y, contiguous(lse), Views.of(*grads), mask=mask)
    return grads


class Views(NamedTuple):
    """Queries, keys and values, or their gradients, as the kernels read and write them.

    Attributes: q (B, T, H, D); k, v (B, S, G, D), whose channels are neighbours in memory, and
        with the same strides for k and v; strides, q's and k's, in elements, for all axes but
        the channels'.
    """

    q: object
    k: object
    v: object
    strides: tuple

    @classmethod
    def of(cls, q, k, v):
        """The arrays as they are, where they can be read so; otherwise copies."""
        q, k, v = in_place(q), in_place(k), in_place(v)
        if k.strides != v.strides:
            k, v = contiguous(k), contiguous(v)
        return cls(q, k, v, (*element_strides(q)[:3], *element_strides(k)[:3]))

    @property
    def sizes(self):
        """T, S, H, G: places and heads of queries and of keys."""
        return self.q.shape[1], self.k.shape[1], self.q.shape[2], self.k.shape[2]

    @property
    def lse_shape(self):
        """(B, G, R, T, 1): one number for each query and head."""
        (B, T, H, _), G = self.q.shape, self.k.shape[2]
        return B, G, H // G, T, 1


class Plan(NamedTuple):
    """How a set of kernels wants to be launched.

    Attributes: kernels; threads of a block; rows of a tile in the forward, and of queries and of
        keys in the backward; shared memory in bytes; whether they are those of the tensor cores.
    """

    kernels: Source
    threads: int
    forward_rows: int
    query_rows: int
    key_rows: int
    forward_bytes: int
    backward_bytes: int
    tensor_cores: bool


def plan_for(views, *arrays, turn=False, drops=False):
    """Which kernels can work on these arrays, and how. The sizes are those of the .cu files.

    Args:    views, q, k and v; arrays, what else they read and write in rows of D, which may be
             Views themselves; turn, whether q and k are to be turned by RoPE; drops, whether
             weights are to be dropped.
    Returns: a Plan; with turn, None if the tensor cores can't do it.
    """
    D, dtype = views.q.shape[3], views.q.dtype
    if has_tensor_cores(D, dtype, (*views.strides, D), views.q, views.k, views.v, *arrays):
        rows, others, row_bytes = 64, 32 if D > 32 else 64, 2 * (D + 8)
        kernels = source("attention_mma.cu", dtype, WIDTH=8, D=D, TURN=int(turn), DROPS=int(drops))
        forward_bytes, backward_bytes = ((n * rows + 2 * others) * row_bytes for n in (1, 2))
        return Plan(kernels, 128, rows, rows, rows, forward_bytes, backward_bytes, True)
    if turn:
        return None
    length = padded(D) + 1
    rows, others, queries, keys = 64, 32, 32, 16 if padded(D) > 96 else 32
    width = width_for(D, views.q, views.k, views.v, *arrays, strides=views.strides)
    kernels = source("attention.cu", dtype, WIDTH=width, PADDED=padded(D), DROPS=int(drops))
    forward_bytes = 4 * ((rows + others) * length + rows * (others + 1))
    backward_bytes = 4 * (2 * (queries + keys) * length + 2 * queries * (keys + 1))
    return Plan(kernels, 256, rows, queries, keys, forward_bytes, backward_bytes, False)


def has_tensor_cores(D, dtype, strides, *arrays):
    """Whether the tensor cores can work on arrays whose rows of D begin at these strides."""
    fit = dtype.itemsize == 2 and D % 16 == 0 and D <= MOST_CHANNELS
    return fit and width_for(D, *arrays, strides=strides) > 1 and capability() >= TENSOR_CORES


def padded(D):
    """The channels of a head in a tile: a multiple of 16."""
    return -(-D // 16) * 16


def run_forward(views, plan, y, lse, angles=None, mask=None):
    """Launch the forward.

    Args:    views; plan; y (B, T, H, D) and lse, to be filled, without gaps in memory; angles, the
             (cos, sin) of RoPE for a plan that turns; mask, for one that drops.
    """
    (B, _, _, D), (T, _, H, _) = views.q.shape, views.sizes
    tables = (angles or (lse, lse)) if plan.tensor_cores else ()  # nobody reads these two
    channels = () if plan.tensor_cores else (D,)
    plan.kernels.launch(
        "attention_forward", (-(-T // plan.forward_rows), H, B), (plan.threads,),
        (*views[:3], *tables, y, lse, D**-0.5, *(mask or no_mask()), *views.sizes, *channels,
         *views.strides),
        shared_bytes=plan.forward_bytes,
    )  # fmt: skip


def run_backward(views, plan, dy, y, lse, grads, angles=None, mask=None):
    """Launch the backward.

    Args:    views; plan; dy, y (B, T, H, D) and lse, without gaps in memory; grads, the Views
             to be filled; angles and mask, as in run_forward.
    """
    (B, _, _, D), (T, S, H, G) = views.q.shape, views.sizes
    delta = empty((B, H, T), FLOAT32)
    tables = (angles or (lse, lse)) if plan.tensor_cores else ()
    channels = () if plan.tensor_cores else (D,)
    given = *views[:3], *tables, lse, delta
    numbers = D**-0.5, *(mask or no_mask()), *views.sizes, *channels, *views.strides
    plan.kernels.launch(
        "attention_backward_queries", (-(-T // plan.query_rows), H, B), (plan.threads,),
        (dy, y, *given, grads.q, *numbers, *grads.strides[:3]),
        shared_bytes=plan.backward_bytes,
    )  # fmt: skip
    plan.kernels.launch(
        "attention_backward_keys", (-(-S // plan.key_rows), G, B), (plan.threads,),
        (dy, *given, grads.k, grads.v, *numbers, *grads.strides[3:]),
        shared_bytes=plan.backward_bytes,
    )  # fmt: skip


def _fit(q, k, v):
    """Whether the shapes are those of attention, and within what the kernels can do."""
    (B, T, H, D), (S, G) = q.shape, k.shape[1:3]
    shapes = k.shape == v.shape == (B, S, G, D) and S >= T and H % G == 0 and q.size > 0
    return shapes and D <= MOST_CHANNELS and max(B, H) <= MOST_BLOCKS and q.dtype == k.dtype
