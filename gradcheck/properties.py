"""What no derivative can see.

A backward can be the exact derivative of the wrong forward. If the mask lets a token look at
the next one, the gradients are perfect, and the model learns to copy its answer: training
shows a wonderful loss, and sampling shows nothing. So a few things are checked for what they
are. Each check is a function that returns None, or one sentence that says what is wrong.

The functions of the program are called through their modules (`attention.attention_forward`),
so that a mutant put there is what runs here.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradcheck.inputs import tiny, weights
from gradcheck.numerical import flatten
from npgpt import loss_scale, model, optim
from npgpt.layers import attention, attention_dropout, dropout, rope

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


def dropout_share():
    """It drops the share that is asked for; what is left keeps the mean."""
    x = np.ones((100, 1000))
    for rate in (0.1, 0.5, 0.9):
        y, _ = dropout.dropout_forward(x, rate, dropout.dropout_key(7))
        for axis in (None, 0, 1):
            dropped = np.mean(y == 0.0, axis=axis)
            deviation = np.sqrt(rate * (1.0 - rate) / (x.size / np.size(dropped)))
            if np.max(np.abs(dropped - rate)) > 5.0 * deviation:
                return f"of a rate of {rate} came {np.ravel(dropped)[:3]}"
        if abs(np.mean(y) - 1.0) > 5.0 * np.sqrt(rate / (1.0 - rate) / x.size):
            return f"at a rate of {rate}, a mean of 1 became {np.mean(y):.3f}"


def dropout_chance():
    """Another seed, step or layer draws another mask, the same the same."""
    x = np.ones(40_000)
    masks = [
        dropout.dropout_forward(x, 0.5, dropout.dropout_key(*numbers))[0] - 1.0
        for numbers in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 2, 3, 0), (1, 2), (3, 2, 1))
    ]
    again, _ = dropout.dropout_forward(x, 0.5, dropout.dropout_key(1, 2, 3))
    if not np.array_equal(again - 1.0, masks[0]):
        return "the same numbers drew another mask"
    alike = np.abs(np.corrcoef(masks) - np.eye(len(masks)))
    if np.max(alike) > 5.0 / np.sqrt(x.size):
        return f"two masks of other numbers correlate by {np.max(alike):.3f}"
    for distance in (1, 2, 64, 1000):  # nor does a mask know itself, some way on
        alike = abs(np.mean(masks[0][distance:] * masks[0][:-distance]))
        if alike > 5.0 / np.sqrt(x.size):
            return f"a mask correlates by {alike:.3f} with itself {distance} places on"


def attention_dropout_layers():
    """Softmax, dropout and average, one after the other, give the same."""
    rng = np.random.default_rng(11)
    B, T, H, G, D, key = 2, 5, 4, 2, 3, dropout.dropout_key(12)
    q, k, v = (rng.standard_normal((B, T, heads, D)) for heads in (H, G, G))
    y, _ = attention_dropout.dropped_attention_forward(q, k, v, 0.4, key)
    # An average of unit vectors is the weights themselves.
    unit = np.broadcast_to(np.eye(T)[None, :, None], (B, T, G, T))
    wide = [np.concatenate([z, np.zeros((B, T, z.shape[2], T - D))], -1) for z in (q, k)]
    weights, _ = attention.attention_forward(wide[0] * (T / D) ** 0.5, wide[1], unit)
    weights, _ = dropout.dropout_forward(weights.swapaxes(1, 2), 0.4, key)  # (B, H, T, S)
    by_hand = np.einsum("bhts,bshd->bthd", weights, np.repeat(v, H // G, axis=2))
    if not np.allclose(y, by_hand, rtol=0, atol=1e-12):
        return "it is not what softmax, dropout and the average give one after the other"
    if not np.mean(weights == 0.0) > 0.5:
        return "hardly anything was dropped"


def attention_dropout_nothing():
    """A rate of 0 is attention."""
    rng = np.random.default_rng(13)
    q, k, v = (rng.standard_normal((2, 4, 2, 3)) for _ in range(3))
    y, _ = attention_dropout.dropped_attention_forward(q, k, v, 0.0, 14)
    plain, _ = attention.attention_forward(q, k, v)
    if not np.allclose(y, plain, rtol=0, atol=1e-14):
        return "with nothing dropped, the average is another one"


def attention_dropout_pieces():
    """Rows that are taken alone get the weights that they get together."""
    rng = np.random.default_rng(15)
    q, k, v = (rng.standard_normal((6, 5, 2, 3)) for _ in range(3))
    whole, _ = attention_dropout.dropped_attention_forward(q, k, v, 0.5, 9)
    rows = slice(2, 5)
    piece, _ = attention_dropout.dropped_attention_forward(
        q[rows], k[rows], v[rows], 0.5, 9, start=2 * 2 * 5 * 5
    )
    if not np.allclose(piece, whole[rows], rtol=0, atol=1e-14):
        return "rows 2 to 4 got other weights alone than among six"


def dropout_pieces():
    """Rows that are taken alone get the masks that they get together."""
    x = np.ones((6, 5, 4))
    whole, _ = dropout.dropout_forward(x, 0.5, 9)
    piece, _ = dropout.dropout_forward(x[2:5], 0.5, 9, start=2 * 5 * 4)
    if not np.array_equal(piece, whole[2:5]):
        return "rows 2 to 4 got other masks alone than among six"


# A Llama and a GPT-2: between them they have every part that knows where a token stands.
TWO_MODELS = tiny(), tiny(norm="layernorm", position="learned", mlp="gelu", bias=True)


def model_causality():
    """No later token may change an earlier logit by a single bit."""
    return next(filter(None, map(_causality, TWO_MODELS)), None)


def _causality(config):
    rng = np.random.default_rng(5)
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
    return next(filter(None, map(_continuation, TWO_MODELS)), None)


def _continuation(config):
    rng = np.random.default_rng(6)
    params, past = _model(rng, config), _Past()
    ids = rng.integers(0, config.vocab_size, (2, config.block_size))
    logits, _ = model.forward(params, ids, config)
    for t in range(config.block_size):
        one, _ = model.forward(params, ids[:, t : t + 1], config, past)
        past.length += 1
        if not np.max(np.abs(one[:, 0] - logits[:, t])) < 1e-10:
            return f"token {t}, read alone after the others, gave other logits"


def model_recomputation():
    """Blocks that run again for their gradient give the same bits."""
    for shape in (dict(dropout=0.3), dict(norm="layernorm", position="learned", mlp="relu")):
        grads = []
        for recompute in (False, True):
            rng, config = np.random.default_rng(9), tiny(**shape, recompute=recompute)
            params = _model(rng, config)
            ids, targets = rng.integers(0, config.vocab_size, (2, 2, 4))
            into = params.zeros_like()
            model.loss_and_gradients(params, into, ids, targets, config, 1.0, model.Chance(1, 2))
            grads.append(into.flat)
        if not np.array_equal(*grads):
            return f"with {shape} a gradient is another one"


def _model(rng, config):
    drawn = weights(rng, config)
    return model.Parameters(config, np.concatenate([w.ravel() for w in drawn.values()]))


def model_head_in_parts():
    """The loss is the same if the head takes places one after the other."""
    rng, config = np.random.default_rng(9), tiny()
    params = _model(rng, config)
    ids, targets = rng.integers(0, config.vocab_size, (2, 2, 4))
    losses = [
        model.loss_and_gradients(params, params.zeros_like(), ids, targets, config, parts=parts)
        for parts in (1, 3)
    ]
    if not np.isclose(*losses, rtol=1e-14):
        return f"whole it is {losses[0]}, and in parts {losses[1]}"


def model_dropout():
    """Only training drops, and of each row what it would among others."""
    both = dict(dropout=0.5, attention_dropout=0.5)
    for rates in (dict(dropout=0.5), dict(attention_dropout=0.5), both):
        if reason := _dropout(tiny(**rates)):
            return f"with {rates} {reason}"
    for position in ("rope", "none"):
        if reason := _shared_masks(tiny(**both, position=position)):
            return reason


def _dropout(config):
    rng = np.random.default_rng(8)
    params = _model(rng, config)
    ids = np.broadcast_to(rng.integers(0, config.vocab_size, (1, 3)), (4, 3))

    def logits(chance, rows=slice(None), config=config):
        return model.forward(params, ids[rows], config, chance=chance)[0]

    if not np.array_equal(logits(None), logits(None, config=tiny())):
        return "something was dropped outside of training"
    whole = logits(model.Chance(1, 2))
    if any(np.array_equal(whole[0], row) for row in whole[1:]):
        return "the rows of a batch share their masks"
    if not np.allclose(logits(model.Chance(1, 2, row=2), slice(2, 4)), whole[2:], rtol=1e-12):
        return "two rows alone got other masks than among four"
    for other in (model.Chance(1, 3), model.Chance(2, 2)):
        if np.array_equal(logits(other), whole):
            return "another step or seed drew the same masks"


def _shared_masks(config):
    params = _model(np.random.default_rng(10), config)
    _, cache = model.forward(params, np.zeros((2, 3), int), config, chance=model.Chance(1, 2))
    branches = [cache[i][f"{name}_dropout"] for i in range(2) for name in ("wo", "w_down")]
    if None in branches:
        return "a branch has nothing dropped in training"
    weights_of = [cache[i]["dropped_attention"] for i in range(2)]
    keys = [key for *_, key, _ in (cache["dropout"], *branches, *weights_of)]
    if len(set(keys)) < len(keys):
        return "two places of the model share their masks"


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


def optim_restarts():
    """With warm restarts each cycle begins at max_lr, and only falls."""
    warmup, high, low = 3, 1e-3, 1e-4
    for growth, starts in ((1, [3, 13, 23, 33]), (2, [3, 13, 33, 73])):
        lrs = [optim.cosine_schedule(t, warmup, 10**6, high, low, 10, growth) for t in range(100)]
        found = [t for t in range(warmup, 100) if lrs[t] == high]
        if found[:4] != starts:
            return f"cycles of 10 steps, growing by {growth}, begin at {found[:4]}"
        for first, after in itertools.pairwise(starts):
            if np.any(np.diff(lrs[first:after]) >= 0) or not low < lrs[after - 1] < 1.3 * low:
                return f"the cycle from step {first} on does not fall to min_lr"


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
    now, m, v = p.copy(), np.zeros(6), np.zeros(6)
    optim.AdamW(m, v, 4, weight_decay=decay, first_decayed=2).update(now, g, lr)
    if not np.array_equal(now, np.concatenate([after[0.0][:2], after[decay][2:4], after[0.0][4:]])):
        return "a table that should be left alone was decayed, or a matrix was not"


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
    steps = []
    for gradient, clip in ((np.array([3.0, -4.0]), optim.clip_factor(5.0, 0.5)), (g, 1.0)):
        adamw, p = optim.AdamW(np.zeros(2), np.zeros(2), num_decayed=0, eps=1.0), np.ones(2)
        adamw.update(p, gradient, lr=0.01, clip=clip)
        steps.append(p)
    if not np.array_equal(*steps):
        return "a step that shortens its gradient is not the step with a shorter one"


def optim_loss_scale():
    """A scaled loss has, divided by S, the same gradient to the bit."""
    rng, config, grads = np.random.default_rng(9), tiny(), []
    params, ids = _model(rng, config), rng.integers(0, config.vocab_size, (2, 4))
    for scale in (1.0, 2.0**16):
        into = params.zeros_like()
        model.loss_and_gradients(params, into, ids[:, ::-1], ids, config, scale / 3)
        loss_scale.unscale(into.flat, scale)
        grads.append(into.flat)
    if not np.array_equal(*grads):
        return "a gradient is another one, where the loss is 2¹⁶ times as large"


def optim_skipping():
    """What overflows halves S, and 2,000 good steps double it."""
    now, scales = loss_scale.LossScale(4.0), []
    for step in range(1, 7001):
        now = now.after(step not in (1500, 3000, 3001, 3002, 7000))
        scales.append(now.scale)
    changes = {i + 1: s for i, s in enumerate(scales) if i == 0 or s != scales[i - 1]}
    if changes != {1: 4.0, 1500: 2.0, 3000: 1.0, 5002: 2.0, 7000: 1.0}:
        return f"from 4, with overflow at steps 1,500, 3,000 and two more, 7,000: {changes}"


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
    Property("dropout", "share", dropout_share),
    Property("dropout", "chance", dropout_chance),
    Property("dropout", "pieces", dropout_pieces),
    Property("attention_dropout", "layers", attention_dropout_layers),
    Property("attention_dropout", "nothing", attention_dropout_nothing),
    Property("attention_dropout", "pieces", attention_dropout_pieces),
    Property("model", "dropout", model_dropout),
    Property("model", "recomputation", model_recomputation),
    Property("model", "head in parts", model_head_in_parts),
    Property("model", "causality", model_causality),
    Property("model", "continuation", model_continuation),
    Property("optim", "schedule", optim_schedule),
    Property("optim", "restarts", optim_restarts),
    Property("optim", "decay", optim_decay),
    Property("optim", "first steps", optim_first_steps),
    Property("optim", "clipping", optim_clipping),
    Property("optim", "loss scale", optim_loss_scale),
    Property("optim", "skipping", optim_skipping),
)
