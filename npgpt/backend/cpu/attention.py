"""Causal attention on a CPU: scores are made and used a block at a time, and never kept.

The scores of QUERIES queries and KEYS keys fit into the fastest cache. They lie there with a row
for each key and a column for each query: so a softmax runs down the columns, all queries
side by side, and no sum has to be gathered from the lanes of a vector.

The softmax over all keys is made one block after the other: keep the largest score so far, and the
sum of weights relative to it. When a block brings a larger one, what was summed is made smaller by
exp(old − new), and goes on. Blocks that lie wholly in the future are not computed at all.

Memory grows with T, not with T²: a copy of the keys and values of one head, and one block.

RoPE's turn of queries and keys, where it is asked for, is done on the way from and to memory.

Weights that are to be dropped are dropped here, block by block: their mask is made of their places,
so it needs no memory either. A mask that keeps all is not made.

Source: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3;
    Dao et al. 2022, "FlashAttention", algorithms 1 and 4.
"""

import math

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.dropout import GAMMA, mask_of, mixed
from npgpt.backend.cpu.exp import exp
from npgpt.backend.cpu.memory import address_of_row, heads_in_place, row_at
from npgpt.backend.cpu.rope import turn_row
from npgpt.backend.cpu.tile import COLUMNS, ROWS, multiply, place, round_up, transpose

f32 = np.float32
QUERIES = math.lcm(ROWS, COLUMNS)  # queries are rows of one product and columns of another
KEYS = 16 * ROWS
LEAST_QUERIES = 4  # below, most columns of a block would be empty, and NumPy is faster
MASKED = f32(-np.inf)
KEEP_ALL = mask_of(0.0, 0, 0)
NO_TURN = (np.empty((0, 0), np.float32),) * 2


def attention_forward(q, k, v):
    return forward(q, k, v, KEEP_ALL)


def attention_backward(dy, cache):
    return backward(dy, cache, KEEP_ALL)


def forward(q, k, v, keep, angles=NO_TURN):
    """attention_forward of more layers than one.

    Args:    q, k, v; keep, the weights that are not dropped: KEEP_ALL or from dropout.mask_of;
             angles, (cos, sin) of RoPE, each (T, D/2), by which q and k are turned.
    Returns: as attention_forward, or NotImplemented.
    """
    B, T, H, D = q.shape
    S, G = k.shape[1:3]
    if k.shape != (B, S, G, D) or v.shape != k.shape or S < T or H % G or q.size == 0:
        return NotImplemented
    if T < LEAST_QUERIES:
        return NotImplemented
    y = np.empty(q.shape, q.dtype)
    lse = np.empty((B, G, H // G, T, 1), q.dtype)
    head = (round_up(S, ROWS), round_up(D, COLUMNS))
    _forward(
        heads_in_place(q), heads_in_place(k), heads_in_place(v), y, lse.reshape(B, H, T),
        np.zeros((2, *head), q.dtype), keep, angles,
    )  # fmt: skip
    return y, (q, k, v, y, lse)


def backward(dy, cache, keep, angles=NO_TURN, grads=None):
    """Undo forward.

    Args:    dy; cache; keep and angles, as given to forward; grads, dq, dk and dv if there is
             memory for them already, with rows without gaps.
    Returns: dq, dk, dv, or NotImplemented.
    """
    q, k, v, y, lse = cache
    B, T, H, D = q.shape
    S = k.shape[1]
    if dy.shape != q.shape or q.size == 0 or T < LEAST_QUERIES:
        return NotImplemented
    dq, dk, dv = grads or [np.empty(z.shape, z.dtype) for z in (q, k, v)]
    head = (round_up(S, ROWS), round_up(D, COLUMNS))
    _backward(
        heads_in_place(dy), heads_in_place(q), heads_in_place(k), heads_in_place(v),
        heads_in_place(y), np.ascontiguousarray(lse).reshape(B, H, T), dq, dk, dv,
        np.zeros((4, *head), q.dtype), keep, angles,
    )  # fmt: skip
    return dq, dk, dv


@kernel
def _forward(q, k, v, y, lse, heads, keep, angles):
    """y and lse (B, H, T); heads (2, S, D), zeros, are memory for one head's keys and values."""
    B, T, H, D = y.shape
    S, G = k.shape[1], k.shape[2]
    scale = f32(D**-0.5)
    keys, values = heads[0], heads[1]
    queries = np.zeros((QUERIES, keys.shape[1]), f32)
    columns = np.empty((keys.shape[1], QUERIES), f32)
    scores = np.empty((KEYS, QUERIES), np.float32)
    out = np.empty((QUERIES, values.shape[1]), np.float32)
    peak, total = np.empty(QUERIES, np.float32), np.empty(QUERIES, np.float32)
    shrink, below, part = np.empty(QUERIES, f32), np.empty(QUERIES, f32), np.empty(QUERIES, f32)
    drops, seeds = keep[0] > 0, np.empty(QUERIES, np.uint64)
    for b in range(B):
        for h in range(H):
            if h % (H // G) == 0:
                _load_turned(k, b, 0, S, h // (H // G), f32(1), angles, keys)
                _load(v, b, 0, S, h // (H // G), f32(1), values)
            for start in range(0, T, QUERIES):
                count = min(QUERIES, T - start)
                ahead = S - T + start  # keys before that of the first query
                _load_turned(q, b, start, count, h, scale, angles, queries)
                transpose(columns, queries)
                peak[:], total[:] = -np.inf, f32(0)
                if drops:
                    _seed(seeds, keep, (b * H + h) * T + start, S)
                for first in range(0, ahead + count, KEYS):
                    rows = min(KEYS, round_up_(ahead + count - first))
                    block = scores[:rows]
                    multiply(False, block, keys[first : first + rows], columns[:D])
                    _mask(block, ahead - first, MASKED)
                    _weights(block, peak, total, shrink, below, part)
                    if drops:
                        _drop(block, seeds, first, keep)
                    if first > 0:
                        for t in range(QUERIES):
                            for d in range(out.shape[1]):
                                out[t, d] *= shrink[t]
                    multiply(first > 0, out, block.T, values[first : first + rows])
                for t in range(count):
                    lse[b, h, start + t] = peak[t] + np.log(total[t])
                    row = row_at(y, b, start + t, h)
                    for d in range(D):
                        row[d] = out[t, d] / total[t]


@kernel
def _backward(dy, q, k, v, y, lse, dq, dk, dv, heads, keep, angles):
    """dq, dk and dv; heads (4, S, D), zeros, are memory for one head's k, v and their gradients."""
    B, T, H, D = dq.shape
    S, G = k.shape[1], k.shape[2]
    R = H // G
    scale = f32(D**-0.5)
    keys, values, dkeys, dvalues = heads[0], heads[1], heads[2], heads[3]
    width = keys.shape[1]
    queries, douts = np.zeros((QUERIES, width), f32), np.zeros((QUERIES, width), f32)
    query_columns, dout_columns = np.empty((width, QUERIES), f32), np.empty((width, QUERIES), f32)
    probs, dscores = np.empty((KEYS, QUERIES), f32), np.empty((KEYS, QUERIES), f32)
    dqueries = np.empty((QUERIES, width), f32)
    lses, average = np.empty(QUERIES, f32), np.empty(QUERIES, f32)
    drops, seeds = keep[0] > 0, np.empty(QUERIES, np.uint64)
    for b in range(B):
        for h in range(H):
            if h % R == 0:
                _load_turned(k, b, 0, S, h // R, f32(1), angles, keys)
                _load(v, b, 0, S, h // R, f32(1), values)
                dkeys[:], dvalues[:] = f32(0), f32(0)
            for start in range(0, T, QUERIES):
                count = min(QUERIES, T - start)
                ahead = S - T + start  # keys before that of the first query
                _load_turned(q, b, start, count, h, scale, angles, queries)
                _load(dy, b, start, count, h, f32(1), douts)
                transpose(query_columns, queries)
                transpose(dout_columns, douts)
                lses[:], average[:] = f32(0), f32(0)
                for t in range(count):
                    lses[t] = lse[b, h, start + t]
                    average[t] = _dot(douts[t], row_at(y, b, start + t, h))
                if drops:
                    _seed(seeds, keep, (b * H + h) * T + start, S)
                for first in range(0, ahead + count, KEYS):
                    rows = min(KEYS, round_up_(ahead + count - first))
                    these = slice(first, first + rows)
                    p, ds = probs[:rows], dscores[:rows]
                    # forward: probs = exp(scores − lse), made again
                    multiply(False, p, keys[these], query_columns[:D])
                    for s in range(rows):
                        for t in range(QUERIES):
                            p[s, t] = exp(p[s, t] - lses[t])
                    _mask(p, ahead - first, f32(0))
                    # forward: y = probs @ v, or dropped @ v
                    if drops:
                        ds[:] = p
                        _drop(ds, seeds, first, keep)
                    multiply(True, dvalues[these], ds if drops else p, douts)
                    multiply(False, ds, values[these], dout_columns[:D])
                    if drops:  # forward: dropped = probs · m, and m is made once more
                        _drop(ds, seeds, first, keep)
                    # forward: probs = softmax(scores)
                    _softmax_backward(ds, p, average)
                    # forward: scores = q @ kᵀ / √D
                    multiply(True, dkeys[these], ds, queries)
                    multiply(first > 0, dqueries, ds.T, keys[these])
                _store_turned_back(dq, b, start, count, h, scale, angles, dqueries)
            if h % R == R - 1:
                _store_turned_back(dk, b, 0, S, h // R, f32(1), angles, dkeys)
                _store(dv, b, 0, S, h // R, f32(1), dvalues)


@kernel
def round_up_(n):
    return (n + ROWS - 1) // ROWS * ROWS


@kernel
def _load(x, b, start, count, h, scale, rows):
    """rows[i] = scale · x[b, start + i, h] for i < count; what is left of rows becomes zero."""
    D = x.shape[3]
    for i in range(count):
        row = row_at(x, b, start + i, h)
        for d in range(D):
            rows[i, d] = scale * row[d]
    rows[count:] = f32(0)


@kernel
def _store(x, b, start, count, h, scale, rows):
    """x[b, start + i, h] = scale · rows[i] for i < count."""
    D = x.shape[3]
    for i in range(count):
        row = row_at(x, b, start + i, h)
        for d in range(D):
            row[d] = scale * rows[i, d]


@kernel
def _load_turned(x, b, start, count, h, scale, angles, rows):
    """As _load, of rows that are turned by the angles of their places, if there are angles."""
    cos, sin = angles
    half = cos.shape[1]
    if half == 0:
        _load(x, b, start, count, h, scale, rows)
        return
    for i in range(count):
        turn = place(cos, start + i, 0), place(sin, start + i, 0), half, scale, f32(1)
        turn_row(address_of_row(x, b, start + i, h), place(rows, i, 0), *turn)
    rows[count:] = f32(0)


@kernel
def _store_turned_back(x, b, start, count, h, scale, angles, rows):
    """As _store, of rows that are turned back."""
    cos, sin = angles
    half = cos.shape[1]
    if half == 0:
        _store(x, b, start, count, h, scale, rows)
        return
    for i in range(count):
        turn = place(cos, start + i, 0), place(sin, start + i, 0), half, scale, f32(-1)
        turn_row(place(rows, i, 0), address_of_row(x, b, start + i, h), *turn)


@kernel(fastmath=REORDER)
def _dot(long, short):
    total = f32(0)
    for d in range(short.size):
        total += long[d] * short[d]
    return total


@kernel
def _mask(block, place, value):
    """Put value where the key lies in the query's future: block[s, t] with s > place + t."""
    for s in range(max(0, place + 1), block.shape[0]):
        for t in range(min(s - place, block.shape[1])):
            block[s, t] = value


@kernel
def _softmax_backward(ds, p, average):
    """ds[s, t] = p[s, t] · (ds[s, t] − average[t]), in two loops of one array's order each."""
    for s in range(ds.shape[0]):
        for t in range(ds.shape[1]):
            ds[s, t] -= average[t]
    flat_ds, flat_p = ds.reshape(-1), p.reshape(-1)
    for i in range(flat_ds.size):
        flat_ds[i] *= flat_p[i]


@kernel
def _seed(seeds, keep, query, S):
    """What the bits of a query's first weight are mixed of, for the queries from this one on."""
    _, _, key, start = keep
    for t in range(seeds.size):
        seeds[t] = (np.uint64((query + t) * S) + start) * GAMMA + key


@kernel
def _drop(block, seeds, first, keep):
    """Multiply block[s, t], of key first + s, by its m: 0, or 1 / (1 − rate)."""
    least, scale, _, _ = keep
    for s in range(block.shape[0]):
        further = np.uint64(first + s) * GAMMA
        for t in range(seeds.size):
            block[s, t] *= scale if mixed(seeds[t] + further) >= least else f32(0)


@kernel
def _weights(block, peak, total, shrink, below, part):
    """Turn scores into weights relative to the largest so far, and go on with their sum.

    Args:    block (S, Q), scores, in place; peak, total (Q,), of the blocks before and after;
             shrink (Q,), by what earlier sums have to be multiplied; below, part (Q,), memory.
    """
    S, Q = block.shape
    for t in range(Q):
        shrink[t], part[t] = peak[t], f32(0)
    for s in range(S):
        for t in range(Q):
            peak[t] = max(peak[t], block[s, t])
    for t in range(Q):
        # Were all scores −∞ so far, −∞ − (−∞) would be NaN.
        below[t] = peak[t] if peak[t] > MASKED else f32(0)
        shrink[t] = exp(shrink[t] - below[t])
    for s in range(S):
        for t in range(Q):
            weight = exp(block[s, t] - below[t])
            block[s, t] = weight
            part[t] += weight
    for t in range(Q):
        total[t] = total[t] * shrink[t] + part[t]
