"""Weights as decoding reads them: a row for each output, in float32, bf16 or int8.

To write one token, each weight is read once and multiplied once. The processor could do that many
times over while the next weight is on its way from memory. So the time of a token is the
bytes of all weights, divided by what the memory delivers: half the bytes, half the time.

    float32   4 bytes   the weights themselves
    bf16      2 bytes   their upper halves, rounded to even: float32's range with 3 digits. A shift
                        makes float32 of them, so any processor can read them.
    int8      1 byte    w = scale · q, where q is a whole number of −127 … 127, and each row has a
                        scale of its own. The vector becomes whole numbers in the same way, once
                        for all rows; then a dot product adds up whole numbers, exactly.

An output is the dot product of x with a column of w (K, N), whose numbers lie N apart in memory.
Packing transposes w, so that each thread reads its rows as one stream. It takes that much memory
beside the parameters; only a tied lm_head in float32 is wte itself, which has its rows already.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.dots import HAS_VNNI, STEP, in_pairs
from npgpt.errors import UserError
from npgpt.layers import rope_table
from npgpt.parameters import bias_of

DTYPES = ("float32", "bf16", "int8")
f32, i32 = np.float32, np.int32


class Matrix(NamedTuple):
    """One matrix of every block, packed, and its biases."""

    packed: Any  # (L, N, K or more)
    scale: Any  # (L, N) float32
    bias: Any  # (L, N) float32; (L, 0) if there is none


class Norm(NamedTuple):
    """One norm of every block. Gains and biases stay float32, whatever the matrices are."""

    gain: Any  # (L, C)
    bias: Any  # (L, C), 0 if there is none


class Weights(NamedTuple):
    """All that decoding reads of a model. What a model does not have, has no entries."""

    wte: Any  # (V, C) float32, whatever the others are
    wpe: Any  # (block_size, C) float32, of learned places
    wqkv: Matrix  # (L, (H + 2G)·D, C)
    wo: Matrix  # (L, C, H·D)
    w_up: Matrix  # (L, F, C); with gates (L, 2F, C): gate 0, up 0, gate 1, up 1, ...
    w_down: Matrix  # (L, C, F)
    lm_head: Matrix  # (1, V, C)
    attn_norm: Norm
    mlp_norm: Norm
    norm: Norm  # (1, C)
    cos: Any  # (block_size, D/2) float32, of rope
    sin: Any


def pack_weights(params, config, dtype):
    """Make Weights of float32 Parameters on the host; dtype is one of DTYPES."""
    C = config.n_embd
    blocks = [params.block(i) for i in range(config.n_layer)]
    top = {**params, "lm_head": params["wte"].T} if config.tie else params

    def matrix(layers, name, order=lambda rows: rows):
        packed, scale = zip(*(pack_rows(order(p[name].T), dtype) for p in layers))
        biases = [order(p[bias_of(name)]) if bias_of(name) in p else _none(0) for p in layers]
        return Matrix(_stack(packed), _stack(scale), _stack(biases))

    def norm(layers, name):
        biases = [p.get(bias_of(name), np.zeros(C, np.float32)) for p in layers]
        return Norm(_stack([p[name] for p in layers]), _stack(biases))

    if config.mlp == "none":
        w_up = w_down = matrix([{"w": _none(C, 0)}], "w")
        mlp_norm = Norm(_none(0, C), _none(0, C))
    else:
        order = {"order": _gates_beside_values} if config.mlp == "swiglu" else {}
        w_up = matrix(blocks, config.w_up, **order)
        w_down, mlp_norm = matrix(blocks, "w_down"), norm(blocks, "mlp_norm")
    cos, sin = _none(config.block_size, 0), _none(config.block_size, 0)
    if config.position == "rope":
        cos, sin = rope_table(
            0, config.block_size, config.head_dim, config.rope_theta, params["norm"],
            config.rope_stretch,
        )  # fmt: skip
    return Weights(
        params["wte"], params.get("wpe", _none(0, C)),
        matrix(blocks, "wqkv"), matrix(blocks, "wo"), w_up, w_down, matrix([top], "lm_head"),
        norm(blocks, "attn_norm"), mlp_norm, norm([top], "norm"), cos, sin,
    )  # fmt: skip


def _none(*shape):
    """What a model does not have: an array without entries."""
    return np.zeros(shape, np.float32)


def _stack(arrays):
    """One array of the same arrays of all blocks; of a single one a view, which costs nothing."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _gates_beside_values(rows):
    """Order the rows (2F, ...) of gates and values as gate 0, value 0, gate 1, ...: one stream."""
    gates, values = np.split(rows, 2)  # (F, ...) each
    return np.stack([gates, values], axis=1).reshape(rows.shape)  # (2F, ...)


def pack_rows(rows, dtype):
    """Store rows of weights for decoding.

    Args:    rows (N, K) float32, the transpose of a linear layer's w; dtype, one of DTYPES.
    Returns: packed (N, K or more), filled up with zeros to a multiple of STEP bytes, in the order
             that dots.py wants; rows itself where nothing is to be done; scale (N,) float32.
    Raises:  UserError if a weight is not finite, for which bf16 and int8 have no room.
    """
    scale = np.ones(len(rows), np.float32)
    if dtype == "float32":
        return _fill_up(rows), scale
    if not np.all(np.isfinite(rows)):
        raise UserError(
            "the model's weights are not finite numbers, so its training has gone wrong: "
            "use an earlier checkpoint, or train again with a lower learning rate"
        )
    if dtype == "bf16":
        return in_pairs(_fill_up(to_bf16(rows))), scale
    largest = np.max(np.abs(rows), axis=1)  # (N,)
    scale[largest > 0] = largest[largest > 0] / f32(127)
    return _fill_up(np.rint(rows / scale[:, None]).astype(np.int8)), scale


def to_bf16(x):
    """The upper halves of finite float32 numbers, rounded to even, as uint16 of the same shape."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _fill_up(rows):
    """Append zeros to each row of an array (N, K), up to a multiple of STEP bytes."""
    missing = -rows.shape[1] % (STEP // rows.itemsize)
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing))) if missing else rows)


def code_dtype(dtype):
    """What a vector is written in, to be multiplied with rows of a dtype."""
    if dtype != "int8":
        return np.float32
    return np.int8 if HAS_VNNI else np.int16


@kernel
def prepare(x, codes, unit, offset):
    """Write vectors the way that rows are multiplied with.

    Args:    x (N, K) float32; codes (N, K or more) in code_dtype, unit (N,) and offset (N,) are
             written, such that row · x = scale · unit · (packed · codes − offset).
    """
    for n in range(len(x)):
        unit[n], offset[n] = _prepare(x[n], codes[n])


def _prepare(x, codes):
    raise NotImplementedError("for compiled code only")


@overload(_prepare, jit_options={"fastmath": set(REORDER), "error_model": "numpy", "nogil": True})
def _prepare_by_type(x, codes):
    if codes.dtype == types.float32:

        def copy(x, codes):
            for k in range(len(x)):
                codes[k] = x[k]
            codes[len(x) :] = f32(0)
            return f32(1), f32(0)

        return copy

    shift = 128 if codes.dtype == types.int8 else 0  # what Int8VNNI adds to each weight

    def whole_numbers(x, codes):
        largest = f32(0)
        for k in range(len(x)):
            largest = max(largest, abs(x[k]))
        unit = largest / f32(127) if largest > f32(0) else f32(1)
        per_unit = f32(1) / unit
        total = i32(0)
        for k in range(len(x)):
            code = i32(np.rint(x[k] * per_unit))
            codes[k] = code
            total = i32(total + code)
        codes[len(x) :] = 0
        return unit, i32(shift * total)

    return whole_numbers
