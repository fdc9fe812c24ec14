"""The whole model as one compiled function, for a few tokens at a time: what sampling does most.

The text of npgpt.model.forward is made for many tokens at once. For a single one each of its
matrices meets a single row: then the arithmetic is nothing and reading the weights is everything,
and a few hundred calls of NumPy, each with its own threads to wake, cost as much again. So here is
forward once more, without what backward would need, as one walk that several threads take
together. They share the outputs of each matrix, and meet where one needs what all have computed:
five times a block.

    x = wte[ids] + wpe[places]                    each thread some channels         meet
    L times:
        q, k, v = rope(rows of wqkv · norm(x))    some heads; k and v are kept      meet
        a = attention(q, all k, all v)            some heads of some tokens         meet
        x += rows of wo · a                       some channels                     meet
        h = swiglu(rows of w_up · norm(x))        some hidden channels              meet
        x += rows of w_down · h                   some channels                     meet
    logits = rows of lm_head · norm(x)            some tokens of the vocabulary

norm(x) is so little work that each thread does it for itself. Models are made of different parts
(block.py), and this is the walk of them all: what a model does not have, wpe or rope or a bias,
is an array without entries; which norm and which bend it has are two numbers.

The tokens are the next ones of several texts, or a piece of a prompt, or both: each has its text
and its place, and sees what has been kept of that text up to that place. Weights are read once
for all of them. Every number is computed by one thread, and in the same order whatever else
is computed: so neither the number of threads, nor the texts beside it, nor into which pieces it
is cut changes a bit of what is written.
"""

import time
from typing import Any, NamedTuple

import numpy as np

from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.dots import multiply
from npgpt.backend.cpu.exp import exp
from npgpt.backend.cpu.mlp import gelu, gelu_tanh, relu
from npgpt.backend.cpu.packing import Matrix, code_dtype, pack_weights, prepare
from npgpt.backend.cpu.team import Team, meet, share, try_out
from npgpt.parallel import available_threads
from npgpt.parameters import MLP_NAMES
from npgpt.sampling import Decoder

f32 = np.float32
PIECE = 16  # tokens that are read at once: their vectors should fit into the fastest memory
WORTH_A_THREAD = 4 << 20  # bytes of weights that take longer to read than a thread to wake
FIRST = np.int64(0)  # a plain 0 is a type of its own to Numba, for which it would compile anew
SWIGLU, GELU, GELU_TANH, RELU, NO_MLP = map(
    MLP_NAMES.index, ("swiglu", "gelu", "gelu_tanh", "relu", "none")
)


class Parts(NamedTuple):
    """Of what a model is made, where its weights do not say it."""

    centred: Any  # whether its norms take the mean away: LayerNorm, not RMSNorm
    eps: Any  # of its norms
    bend: Any  # of its MLP, one of SWIGLU, GELU, GELU_TANH, RELU and NO_MLP


class Workspace(NamedTuple):
    """What is written on the way: first what the threads share, then what each has for itself."""

    x: Any  # (N, C) float32, the stream
    qkv: Any  # (N, (H + 2G)·D)
    a: Any  # (N, H·D)
    up: Any  # (N, F), with gates (N, 2F)
    h: Any  # (N, F)
    dx: Any  # (N, C), what a branch adds to the stream
    normed: Any  # (threads, N, C)
    codes: Any  # (threads, N, C or more), vectors prepared to be multiplied with rows
    hidden_codes: Any  # (threads, N, F or more)
    unit: Any  # (threads, N) float32
    offset: Any  # (threads, N)
    scores: Any  # (threads, block_size)


@kernel
def decode(
    thread, threads, meeting, weights, parts, work, ids, texts, places, keys, values, logits
):  # fmt: skip
    """What one thread does: see the top of this file.

    Args:    thread, threads, meeting, as Team.run gives them; weights; parts; work, a Workspace;
             ids, texts, places (N,), tokens, and where they stand, each text's in order; keys,
             values (L, B, block_size, G, D), of which these places are written; logits (the last
             of the N tokens, V), written.
    """
    C, unscored = work.x.shape[1], len(ids) - len(logits)
    first, last = share(C, thread, threads)
    first_hidden, last_hidden = share(work.h.shape[1], thread, threads)
    width = 2 if parts.bend == SWIGLU else 1
    codes, hidden_codes, normed = work.codes[thread], work.hidden_codes[thread], work.normed[thread]
    unit, offset = work.unit[thread], work.offset[thread]

    for n in range(len(ids)):
        copy(work.x[n, first:last], weights.wte[ids[n], first:last])
        if len(weights.wpe):
            add(work.x[n, first:last], weights.wpe[places[n], first:last])
    meet(threads, meeting)
    for i in range(keys.shape[0]):
        norm(work.x, weights.attn_norm, i, parts, normed)
        prepare(normed, codes, unit, offset)
        project_qkv(thread, threads, i, weights, work, texts, places, keys[i], values[i])
        meet(threads, meeting)
        attend(thread, threads, work, texts, places, keys[i], values[i])
        meet(threads, meeting)
        prepare(work.a, codes, unit, offset)
        w = weights.wo
        multiply(w.packed[i], w.scale[i], codes, unit, offset, work.dx, first, last)
        shift(work.dx, w.bias[i], first, last)
        add_rows(work.x, work.dx, first, last)
        meet(threads, meeting)
        if parts.bend != NO_MLP:
            norm(work.x, weights.mlp_norm, i, parts, normed)
            prepare(normed, codes, unit, offset)
            w, begin, end = weights.w_up, width * first_hidden, width * last_hidden
            multiply(w.packed[i], w.scale[i], codes, unit, offset, work.up, begin, end)
            shift(work.up, w.bias[i], begin, end)
            bend(parts.bend, work.up, work.h, first_hidden, last_hidden)
            meet(threads, meeting)
            prepare(work.h, hidden_codes, unit, offset)
            w = weights.w_down
            multiply(w.packed[i], w.scale[i], hidden_codes, unit, offset, work.dx, first, last)
            shift(work.dx, w.bias[i], first, last)
            add_rows(work.x, work.dx, first, last)
            meet(threads, meeting)
    codes, normed = codes[unscored:], normed[unscored:]
    norm(work.x[unscored:], weights.norm, FIRST, parts, normed)
    prepare(normed, codes, unit, offset)
    w, (begin, end) = weights.lm_head, share(logits.shape[1], thread, threads)
    multiply(w.packed[0], w.scale[0], codes, unit, offset, logits, begin, end)
    shift(logits, w.bias[0], begin, end)


@kernel(fastmath=REORDER)
def norm(x, weights, i, parts, y):
    """y = RMSNorm or LayerNorm i of each row of x (N, C)."""
    gain, bias = weights.gain[i], weights.bias[i]
    for n in range(x.shape[0]):
        row, mean, total = x[n], f32(0), f32(0)
        if parts.centred:
            for c in range(x.shape[1]):
                mean += row[c]
            mean /= f32(x.shape[1])
        for c in range(x.shape[1]):
            total += (row[c] - mean) * (row[c] - mean)
        rstd = f32(1) / np.sqrt(total / f32(x.shape[1]) + f32(parts.eps))
        for c in range(x.shape[1]):
            y[n, c] = (row[c] - mean) * rstd * gain[c] + bias[c]


@kernel
def copy(into, row):
    """into[:] = row, which as such takes Numba seconds to compile."""
    for c in range(len(into)):
        into[c] = row[c]


@kernel
def add(into, row):
    """into += row."""
    for c in range(len(into)):
        into[c] += row[c]


@kernel
def shift(y, bias, first, last):
    """y += bias, for some columns; a matrix that has none has no entries for it."""
    if len(bias):
        for n in range(len(y)):
            add(y[n, first:last], bias[first:last])


@kernel
def add_rows(x, dx, first, last):
    """x += dx, for some channels."""
    for n in range(len(x)):
        add(x[n, first:last], dx[n, first:last])


@kernel
def project_qkv(thread, threads, i, weights, work, texts, places, keys, values):
    """Make some heads of q, k and v; turn q and k by their place, and keep k and v."""
    G, D = keys.shape[2:]
    H = work.x.shape[1] // D
    first, last = share(H + 2 * G, thread, threads)
    codes, unit, offset = work.codes[thread], work.unit[thread], work.offset[thread]
    w = weights.wqkv
    multiply(w.packed[i], w.scale[i], codes, unit, offset, work.qkv, first * D, last * D)
    shift(work.qkv, w.bias[i], first * D, last * D)
    for n in range(len(places)):
        b, t = texts[n], places[n]
        for h in range(first, last):
            head = work.qkv[n, h * D : (h + 1) * D]
            if h < H + G:
                turn(head, weights.cos[t], weights.sin[t])
            if H <= h < H + G:
                copy(keys[b, t, h - H], head)
            elif h >= H + G:
                copy(values[b, t, h - H - G], head)


@kernel
def turn(head, cos, sin):
    """RoPE of one head (D,), in place; without rope cos and sin have no entries."""
    half = len(cos)
    for j in range(half):
        x1, x2 = head[j], head[j + half]
        head[j] = x1 * cos[j] - x2 * sin[j]
        head[j + half] = x2 * cos[j] + x1 * sin[j]


@kernel(fastmath=REORDER)
def attend(thread, threads, work, texts, places, keys, values):
    """Attention of some heads, counted over all tokens."""
    G, D = keys.shape[2:]
    H = work.x.shape[1] // D
    scale = f32(1) / np.sqrt(f32(D))
    first, last = share(len(places) * H, thread, threads)
    for head in range(first, last):
        n, h = head // H, head % H
        b, g = texts[n], h // (H // G)
        q, a = work.qkv[n, h * D : (h + 1) * D], work.a[n, h * D : (h + 1) * D]
        scores = work.scores[thread][: places[n] + 1]
        peak, total = f32(-np.inf), f32(0)
        for s in range(len(scores)):
            k, score = keys[b, s, g], f32(0)
            for d in range(D):
                score += q[d] * k[d]
            scores[s] = score * scale
            peak = max(peak, scores[s])
        for s in range(len(scores)):
            scores[s] = exp(scores[s] - peak)
            total += scores[s]
        add_values(a, scores, values, b, g)
        for d in range(D):
            a[d] /= total


@kernel(fastmath=REORDER)
def add_values(a, probs, values, b, g):
    """a = Σ_s probs[s] · values[b, s, g], four at a time, as a is then written less often."""
    a[:] = f32(0)
    fours = len(probs) // 4 * 4
    for s in range(0, fours, 4):
        p0, p1, p2, p3 = probs[s], probs[s + 1], probs[s + 2], probs[s + 3]
        v0, v1 = values[b, s, g], values[b, s + 1, g]
        v2, v3 = values[b, s + 2, g], values[b, s + 3, g]
        for d in range(len(a)):
            a[d] += p0 * v0[d] + p1 * v1[d] + p2 * v2[d] + p3 * v3[d]
    for s in range(fours, len(probs)):
        p, v = probs[s], values[b, s, g]
        for d in range(len(a)):
            a[d] += p * v[d]


@kernel
def bend(kind, ups, hidden, first, last):
    """What bends between the two matrices of the MLP, for some hidden channels."""
    width = 2 if kind == SWIGLU else 1  # a gate beside each value
    for n in range(len(hidden)):
        up, h = ups[n, width * first : width * last], hidden[n, first:last]
        if kind == SWIGLU:
            swiglu(up, h)
        elif kind == GELU:
            gelu(up, h)
        elif kind == GELU_TANH:
            gelu_tanh(up, h)
        else:
            relu(up, h)


@kernel
def swiglu(pairs, h):
    """h = silu(gate) · up, for pairs of gate and up."""
    for j in range(len(h)):
        gate, up = pairs[2 * j], pairs[2 * j + 1]
        h[j] = gate / (f32(1) + exp(-gate)) * up


class CompiledDecoder(Decoder):
    """A Decoder that reads by the function above.

    Args:    params, float32 Parameters on the host; config; dtype of the packed weights, one of
             packing.DTYPES; threads, how many compute, or None to find out what is fastest.
    Attributes: bytes_per_token, of packed weights, which are read for each token.
    Raises:  UserError if bf16 or int8 is asked for, and a weight is not finite.
    """

    def __init__(self, params, config, dtype="float32", threads=None):
        super().__init__(params, config)
        self.dtype, self.team = dtype, Team(threads or available_threads())
        self.weights = pack_weights(params, config, dtype)
        self.parts = Parts(config.norm == "layernorm", config.norm_eps, MLP_NAMES.index(config.mlp))
        matrices = [part for part in self.weights if isinstance(part, Matrix)]
        self.bytes_per_token = sum(matrix.packed.nbytes for matrix in matrices)
        guess = self.bytes_per_token // WORTH_A_THREAD
        self.pace = try_out(guess, least=threads or 1, most=self.team.most)
        self.threads = next(self.pace)
        self.workspaces = {}

    def read(self, ids, cache):
        B, T = ids.shape
        known = np.all((ids >= 0) & (ids < self.config.vocab_size))
        if T < 1 or cache.length + T > self.config.block_size or not known:
            return super().read(ids, cache)  # which says what is wrong
        logits = np.empty((B, self.config.vocab_size), np.float32)
        start = time.perf_counter()
        for first in range(0, B, PIECE):
            texts = slice(first, min(first + PIECE, B))
            length = PIECE // (texts.stop - texts.start)
            for t in range(0, T, length):
                wanted = logits[texts] if t + length >= T else logits[:0]
                self._decode(ids[texts, t : t + length], texts, cache, cache.length + t, wanted)
        if T == 1:
            self.threads = self.pace.send(time.perf_counter() - start)
        cache.length += T
        return logits

    def _decode(self, ids, texts, cache, place, logits):
        """Read ids of these texts from a place on; write the scores after the last, if wanted."""
        B, T = ids.shape
        N = B * T
        if N not in self.workspaces:
            self.workspaces[N] = self._make_workspace(N)
        # All texts' first tokens, then all second ones: so the last of each are the last B.
        ids = np.ascontiguousarray(ids.T, np.int64).reshape(-1)
        texts = np.tile(np.arange(texts.start, texts.stop), T)
        places = np.repeat(np.arange(place, place + T), B)
        self.team.run(
            self.threads, decode, self.weights, self.parts, self.workspaces[N], ids, texts, places,
            cache.k, cache.v, logits,
        )  # fmt: skip

    def _make_workspace(self, N):
        config, threads = self.config, self.team.most
        C, F, D = config.n_embd, config.n_hidden, config.head_dim
        up = 2 * F if config.mlp == "swiglu" else F
        shared = (C, (config.n_head + 2 * config.n_kv_head) * D, C, up, F, C)
        kind = code_dtype(self.dtype)
        return Workspace(
            *(np.zeros((N, width), np.float32) for width in shared),
            np.zeros((threads, N, C), np.float32),
            np.zeros((threads, N, self.weights.wqkv.packed.shape[2]), kind),
            np.zeros((threads, N, self.weights.w_down.packed.shape[2]), kind),
            np.ones((threads, N), np.float32),
            np.zeros((threads, N), np.float32 if kind == np.float32 else np.int32),
            np.zeros((threads, config.block_size), np.float32),
        )
