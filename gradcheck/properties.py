"""What no derivative can see.

A backward can be the exact derivative of the wrong forward. If the mask lets a token look at
the next one, the gradients are perfect, and the model learns to copy its answer: training
shows a wonderful loss, and sampling shows nothing. So a few things are checked for what they
are. Each check is a function that returns None, or one sentence that says what is wrong.

The functions of the program are called through their modules (`attention.attention_forward`),
so that a mutant put there is what runs here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradcheck.cases import tiny, weights
from gradcheck.numerical import flatten
from npgpt import model, optim
from npgpt.layers import attention, rope

# Checks of every row of the table.


def purity(case):
    """Nothing is written into an input or into dy: others still read them."""
    inputs, before = case.inputs(), case.inputs()
    y, cache = case.forward(**inputs)
    dy, dy_before = case.upstream(y), flatten(case.upstream(y))
    case.gradients_of(dy, cache)
    for name, z in inputs.items():
        if isinstance(z, np.ndarray) and not np.array_equal(z, before[name], equal_nan=True):
            return f"{case.name}: {name} was written to"
    if not np.array_equal(flatten(dy), dy_before):
        return f"{case.name}: dy was written to"


def dtype(case):
    """What comes in as float32 goes out as float32.

    Or memory doubles, and the kernels for float32 stop being used. NumPy 2 makes this easy to
    lose: `x / np.sqrt(64)` turns float32 into float64; `x * 64**-0.5`, a Python float, doesn't.
    """
    for wanted in (np.float32, np.float64, np.complex128):
        y, cache = case.forward(**case.inputs(wanted))
        if flatten(y).dtype != wanted:
            return f"{case.name}: {np.dtype(wanted)} in, but y is {flatten(y).dtype}"
        for name, dz in case.gradients_of(case.upstream(y), cache).items():
            if dz.dtype != wanted:
                return f"{case.name}: {np.dtype(wanted)} in, but d{name} is {dz.dtype}"


# Checks of one layer.


def attention_causality():
    """No future key or value may change an output by a single bit.

    A finite mask, −1e4 say, passes every test whose scores are near 0. It hides the future
    only from a query that likes something in the past better than −1e4. So here queries dislike
    their own keys more and more: the score that they must prefer to the future's goes to −1e40.
    """
    rng = np.random.default_rng(1)
    B, T, H, D = 2, 5, 2, 4
    for loud in (1.0, 1e3, 1e6, 1e20):
        q = loud * rng.standard_normal((B, T, H, D))
        k, v = -q, rng.standard_normal((B, T, H, D))
        y, _ = attention.attention_forward(q, k, v)
        for t in range(T - 1):
            k2, v2 = k.copy(), v.copy()
            k2[:, t + 1 :] = loud * rng.standard_normal(k2[:, t + 1 :].shape)
            v2[:, t + 1 :] = rng.standard_normal(v2[:, t + 1 :].shape)
            y2, _ = attention.attention_forward(q, k2, v2)
            if not np.array_equal(y[:, : t + 1], y2[:, : t + 1]):
                return f"with scores of {loud**2:.0e}, place {t} saw what came after it"


def attention_sees_the_past():
    """Every visible key and value matters: a mask can also hide too much."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 4, 1, 4)) for _ in range(3))
    y, _ = attention.attention_forward(q, k, v)
    for s in range(4):
        for name, z in (("key", k), ("value", v)):
            z[:, s] += 1.0
            y2, _ = attention.attention_forward(q, k, v)
            z[:, s] -= 1.0
            # Place 0 has one weight, which is 1 whatever its key is.
            if any(np.array_equal(y[:, t], y2[:, t]) for t in range(max(s, 1), 4)):
                return f"a later place did not see the {name} at place {s}"


def attention_continuation():
    """The last queries get the same alone as among all queries."""
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, 6, 2, 4)) for _ in range(3))
    y, _ = attention.attention_forward(q, k, v)
    for T in (1, 2, 5):
        last, _ = attention.attention_forward(q[:, -T:], k, v)
        if not np.max(np.abs(last - y[:, -T:])) < 1e-12:
            return f"the last {T} of 6 queries gave something else alone than together"


def rope_relativity():
    """A score depends on how far apart two tokens are, not on where."""
    rng = np.random.default_rng(4)
    q, k = (rng.standard_normal((1, 1, 1, 8)) for _ in range(2))
    places = np.ones((1, 12, 1, 1))
    scores = []
    for start in (0, 300):
        cos, sin = rope.rope_table(start, start + 12, 8, 100.0, like=q)
        turned_q, _ = rope.rope_forward(q * places, cos, sin)
        turned_k, _ = rope.rope_forward(k * places, cos, sin)
        scores.append(np.einsum("bthd,bshd->ts", turned_q, turned_k))
        if not np.allclose(np.sum(turned_q**2, -1), np.sum(q**2, -1), rtol=1e-12):
            return "a rotation changed a length"
        if not np.allclose(scores[0][:-1, :-1], scores[0][1:, 1:], rtol=0, atol=1e-12):
            return "one place further, the same distance gave another score"
        if np.allclose(scores[0][0], scores[0][0, 0]):
            return "the distance does not matter"
    if not np.allclose(scores[0], scores[1], rtol=0, atol=1e-11):
        return "300 places further, the same distance gave another score"


def rope_continuation():
    """A table that starts later is the end of one that starts at 0."""
    like = np.zeros(1)
    for whole, part in zip(
        rope.rope_table(0, 7, 4, 100.0, like=like), rope.rope_table(3, 7, 4, 100.0, like=like)
    ):
        if not np.array_equal(whole[3:], part):
            return "position 3 turns otherwise in a table that starts there"


def model_causality():
    """No later token may change an earlier logit by a single bit."""
    rng, config = np.random.default_rng(5), tiny(n_layer=2)
    params = _model(rng, config)
    ids = rng.integers(0, config.vocab_size, (1, config.block_size))
    logits, _ = model.forward(params, ids, config)
    for t in range(1, config.block_size):
        other = ids.copy()
        other[:, t:] = (other[:, t:] + 1) % config.vocab_size
        changed, _ = model.forward(params, other, config)
        if not np.array_equal(changed[:, :t], logits[:, :t]):
            return f"a logit before place {t} saw the token at place {t}"
        if np.array_equal(changed[:, -1], logits[:, -1]):
            return f"the last logits did not see the token at place {t}"


class _Past:
    """The simplest memory of keys and values that sampling could have."""

    def __init__(self):
        self.length, self.kept = 0, {}

    def layer(self, i):
        def extend(k, v):
            k0, v0 = self.kept.get(i, (k[:, :0], v[:, :0]))
            self.kept[i] = np.concatenate([k0, k], axis=1), np.concatenate([v0, v], axis=1)
            return self.kept[i]

        return extend


def model_continuation():
    """Token after token, a model says what it says of all at once."""
    rng, config = np.random.default_rng(6), tiny(n_layer=2)
    params, past = _model(rng, config), _Past()
    ids = rng.integers(0, config.vocab_size, (2, config.block_size))
    logits, _ = model.forward(params, ids, config)
    for t in range(config.block_size):
        one, _ = model.forward(params, ids[:, t : t + 1], config, past)
        past.length += 1
        if not np.max(np.abs(one[:, 0] - logits[:, t])) < 1e-10:
            return f"token {t}, read alone after the others, gave other logits"


def _model(rng, config):
    drawn = weights(rng, config)
    return model.Parameters(config, np.concatenate([w.ravel() for w in drawn.values()]))


# Checks of the optimizer: it has no derivative, only promises.


def optim_schedule():
    """The learning rate is in (0, max_lr], and min_lr after the end."""
    warmup, total, high, low = 5, 40, 1e-3, 1e-4
    lrs = [optim.cosine_schedule(t, warmup, total, high, low) for t in range(3 * total)]
    for t, lr in enumerate(lrs):
        if not 0.0 < lr <= high:
            return f"at step {t} of {total} the learning rate is {lr:.2e}"
    if max(lrs[total:]) > low * 1.000001:
        return f"after the end it rises again, to {max(lrs[total:]):.2e}"
    if not np.isclose(max(lrs), high, rtol=0.01) or np.argmax(lrs) not in (warmup - 1, warmup):
        return "warm-up does not end at the largest learning rate"
    if np.any(np.diff(lrs[warmup:]) > 0):
        return "it rises after warm-up"


def optim_decay():
    """Decay takes lr · λ · p from every matrix, nothing from a gain."""
    rng, lr, decay = np.random.default_rng(7), 0.1, 0.3
    p, g = rng.standard_normal((2, 6))
    after = {}
    for weight_decay in (0.0, decay):
        now = p.copy()
        adamw = optim.AdamW(np.zeros(6), np.zeros(6), num_decayed=4, weight_decay=weight_decay)
        adamw.update(now, g, lr)
        after[weight_decay] = now
    taken = after[0.0] - after[decay]
    if not np.allclose(taken[4:], 0.0, rtol=0, atol=1e-15):
        return "a gain was decayed"
    if not np.allclose(taken[:4], lr * decay * p[:4], rtol=1e-12):
        return "a matrix did not lose lr · λ · p"


def optim_first_steps():
    """While the gradient stays the same, each step is lr long.

    Whatever the gradient's size, and from the first step on: that is what m̂ and v̂ are for.
    """
    for size in (1e-3, 1.0, 1e3):
        p, g = np.zeros(2), np.array([size, -size])
        adamw = optim.AdamW(np.zeros(2), np.zeros(2), num_decayed=0)
        for step in range(1, 5):
            adamw.update(p, g, lr=0.01)
            if not np.allclose(p, [-0.01 * step, 0.01 * step], rtol=1e-4):
                return f"after {step} equal gradients of {size:g} p is {p[0]:.4f}"


def optim_clipping():
    """A long gradient keeps its direction, and a short one its length."""
    g = np.array([3.0, -4.0])
    if optim.clip_gradient(g, 10.0) != 5.0 or not np.array_equal(g, [3.0, -4.0]):
        return "a short gradient was changed, or its norm is wrong"
    optim.clip_gradient(g, 0.5)
    if not np.allclose(g, [0.3, -0.4], rtol=1e-5):
        return f"(3, −4) clipped to 0.5 became {g}"


@dataclass(frozen=True)
class Property:
    """One check of one layer: run() returns None, or a sentence that says what is wrong."""

    layer: str
    name: str
    run: Callable


OF_EVERY_ROW = {"purity": purity, "dtype": dtype}

PROPERTIES = (
    Property("rope", "relativity", rope_relativity),
    Property("rope", "continuation", rope_continuation),
    Property("attention", "causality", attention_causality),
    Property("attention", "sees the past", attention_sees_the_past),
    Property("attention", "continuation", attention_continuation),
    Property("model", "causality", model_causality),
    Property("model", "continuation", model_continuation),
    Property("optim", "schedule", optim_schedule),
    Property("optim", "decay", optim_decay),
    Property("optim", "first steps", optim_first_steps),
    Property("optim", "clipping", optim_clipping),
)
