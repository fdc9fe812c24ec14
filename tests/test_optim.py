"""The optimizer: its schedule, its decay, its first steps worked by hand, and its clipping.

test_torch_parity.py takes 100 steps beside torch's AdamW. Here are the properties that a reader
can check with a pencil, and the corners where training scripts have gone wrong: a cosine that
rises again past its end, a first step of length 0, a decay that pulls on gains.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

from npgpt import optim
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.optim import (
    AdamW,
    adamw_update,
    clip_factor,
    clip_gradient,
    cosine_schedule,
    gradient_norm,
)

ULP = 1.0 + 2.0**-51  # the last bit of a product may round upwards

# ---------------------------------------------------------------------------- the schedule

SCHEDULES = [  # warmup_steps, total_steps, max_lr, min_lr
    (10, 100, 3e-3, 3e-4),
    (0, 100, 3e-3, 3e-4),
    (1, 2, 1e-3, 1e-4),
    (7, 8, 0.1, 0.05),
    (50, 50, 3e-3, 3e-4),  # all of it is warm-up
    (0, 1, 1e-3, 1e-5),
    (0, 0, 1e-3, 1e-5),
    (13, 97, 7e-4, 7e-4),  # constant after the warm-up
]


@pytest.mark.parametrize("warmup, total, max_lr, min_lr", SCHEDULES)
def test_schedule_stays_within_its_bounds(warmup, total, max_lr, min_lr):
    """At every step, and far past the end."""
    for step in [*range(3 * total + 10), 10**6, 10**9]:
        lr = cosine_schedule(step, warmup, total, max_lr, min_lr)
        assert 0.0 < lr <= max_lr * ULP, step
        assert step < warmup or lr >= min_lr, step
        assert step < max(warmup, total) or lr == min_lr, step


@pytest.mark.parametrize("warmup, total, max_lr, min_lr", SCHEDULES)
def test_schedule_grows_then_falls(warmup, total, max_lr, min_lr):
    lrs = [cosine_schedule(step, warmup, total, max_lr, min_lr) for step in range(2 * total + 3)]
    for step, (now, then) in enumerate(pairwise(lrs)):
        if step + 1 < warmup:
            assert then > now, step
        elif step + 1 > warmup:
            assert then <= now, step
    if warmup:  # a straight line, which reaches max_lr with its last step
        assert np.allclose(lrs[:warmup], max_lr * np.arange(1, warmup + 1) / warmup, rtol=1e-14)
    if warmup < total:
        assert lrs[warmup] == pytest.approx(max_lr, rel=1e-15)


def test_schedule_is_half_a_cosine():
    """Three points of it: a third of the way down, a half, and two thirds."""
    for step, part in ((40, 0.75), (55, 0.5), (70, 0.25)):
        lr = cosine_schedule(step, 10, 100, 1.0, 0.2)
        assert lr == pytest.approx(0.2 + 0.8 * part, rel=1e-14)


def test_each_cycle_is_as_long_as_the_first_unless_said():
    first, second, third = (
        [cosine_schedule(step, 4, 34, 1.0, 0.1, cycle=10) for step in range(start, start + 10)]
        for start in (4, 14, 24)
    )
    assert first == second == third and first[0] == 1.0


def test_each_cycle_grows_where_that_is_said():
    """Of 10 steps, then 20, then 40; in the middle of each the rate is in the middle too."""
    for begins, length in ((4, 10), (14, 20), (34, 40)):
        middle = begins + length // 2
        lrs = [cosine_schedule(step, 4, 99, 1.0, 0.1, 10, 2) for step in (begins, middle)]
        assert lrs == pytest.approx([1.0, 0.55], rel=1e-14), begins


def test_rounding_does_not_fall_below_the_least_rate():
    """As the plain formula does here, in the last bit."""
    total, max_lr, min_lr = 10**9, 3e-3, 3e-4
    fallen = 0.5 * (1.0 - math.cos(math.pi * (total - 1) / total))
    assert max_lr - (max_lr - min_lr) * fallen < min_lr
    assert cosine_schedule(total - 1, 0, total, max_lr, min_lr) == min_lr


# ---------------------------------------------------------------------------- AdamW


def test_bias_correction_by_hand():
    """Three steps of one number, in plain Python, with m̂ and v̂ as the paper writes them."""
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.95, 1e-3, 0.01
    p, m, v = np.array([2.0]), np.zeros(1), np.zeros(1)
    by_hand, mean, square = 2.0, 0.0, 0.0
    for t, g in enumerate((0.5, -0.25, 3.0), start=1):
        adamw_update(p, np.array([g]), m, v, t, lr, beta1, beta2, eps, decay)
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        mhat, vhat = mean / (1 - beta1**t), square / (1 - beta2**t)
        by_hand = by_hand - lr * decay * by_hand - lr * mhat / (math.sqrt(vhat) + eps)
        assert p[0] == pytest.approx(by_hand, rel=1e-14), t
        if t == 1:  # the first step is lr long, whatever g is: m̂ = g and √v̂ = |g|
            assert p[0] == pytest.approx(2.0 * (1 - lr * decay) - lr * 0.5 / (0.5 + eps), rel=1e-14)


def test_the_first_step_is_as_long_as_lr():
    """So it must not depend on the gradient's scale, as long as eps is small beside it."""
    for scale in (1e-4, 1.0, 1e4):
        p = np.zeros(5)
        g = scale * np.array([1.0, -2.0, 3.0, -0.5, 0.1])
        AdamW(np.zeros(5), np.zeros(5), 0).update(p, g, 0.01)
        assert np.allclose(p, -0.01 * np.sign(g), rtol=2e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tie", [True, False])
def test_decay_pulls_on_matrices_only(tie, dtype):
    """With no gradient a matrix shrinks by exactly 1 − lr·λ, a gain not at all.

    Decay inside the gradient, as L2 regularisation has it, would move every entry by lr instead.
    """
    config = GPTConfig(
        vocab_size=11, block_size=4, n_layer=2, n_head=2, n_embd=8, n_hidden=6, tie=tie
    )
    params = init_parameters(config, 0, dtype)
    before = {name: w.copy() for name, w in params.items()}
    adamw = AdamW.for_parameters(params, weight_decay=0.3)
    adamw.update(params.flat, np.zeros_like(params.flat), 0.01)
    for name, w in params.items():
        shrunk = before[name] * (1.0 - 0.01 * 0.3) if w.ndim > 1 else before[name]
        assert w.dtype == dtype and np.array_equal(w, shrunk), name
    assert sum(w.ndim == 1 for w in params.values()) == 2 * config.n_layer + 1
    assert not adamw.m.any() and not adamw.v.any(), "decay has no business in Adam's memory"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size, num_decayed", [(1000, 700), (64, 64), (65, 0), (1, 1), (321, 64)])
@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 16])
def test_pieces_are_one_update(monkeypatch, piece, size, num_decayed, dtype):
    """Bit for bit: every operation is elementwise, so where the cuts are can't matter."""
    monkeypatch.setattr(optim, "PIECE", piece)
    rng = np.random.default_rng(1)
    p = rng.standard_normal(size).astype(dtype)
    adamw = AdamW(np.zeros_like(p), np.zeros_like(p), num_decayed)
    q, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t in (1, 2, 3):
        g = rng.standard_normal(size).astype(dtype)
        adamw.update(p, g, 0.01)
        for part, decay in ((slice(0, num_decayed), 0.1), (slice(num_decayed, size), 0.0)):
            adamw_update(q[part], g[part], m[part], v[part], t, 0.01, 0.9, 0.95, 1e-8, decay)
    assert adamw.step == 3
    assert np.array_equal(p, q) and np.array_equal(adamw.m, m) and np.array_equal(adamw.v, v)


def test_the_gradient_is_only_read():
    rng = np.random.default_rng(2)
    p, g = rng.standard_normal((2, 50))
    before = g.copy()
    AdamW(np.zeros(50), np.zeros(50), 20).update(p, g, 0.1)
    assert np.array_equal(g, before)


# ---------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_shortens_the_gradient_that_it_reads(dtype):
    """To the bit as if it had been clipped before; and it stays as it was."""
    rng = np.random.default_rng(4)
    p, long, m = rng.standard_normal((3, 1000)).astype(dtype)
    short, results = long.copy(), []
    factor = clip_factor(gradient_norm(long), 1.0)
    assert clip_gradient(short, 1.0) > 30 and factor < 1 / 30
    for g, clip in ((short, 1.0), (long, factor)):
        now, before = p.copy(), g.copy()
        adamw = AdamW(m.copy(), np.abs(m), num_decayed=500)
        adamw.update(now, g, 1e-2, clip=clip)
        assert np.array_equal(g, before)
        results.append(np.concatenate([now, adamw.m, adamw.v]))
    assert np.array_equal(*results)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_bounds_the_norm_and_keeps_the_direction(dtype):
    rng = np.random.default_rng(3)
    for length in (1e-3, 0.999, 1.001, 5.0, 1e4):
        g = rng.standard_normal(1001)
        g = (length * g / np.linalg.norm(g)).astype(dtype)
        before = g.copy()
        norm = clip_gradient(g, 1.0)
        assert norm == pytest.approx(length, rel=1e-6), "the norm from before clipping"
        if length < 1.0:
            assert np.array_equal(g, before), "a short gradient stays as it is, bit for bit"
        else:
            assert 1.0 - 2e-6 < gradient_norm(g) <= 1.0
            along = np.dot(before.astype(np.float64), g) / (length * gradient_norm(g))
            assert along == pytest.approx(1.0, abs=1e-6 if dtype == np.float32 else 1e-14)
        assert g.dtype == dtype


def test_a_limit_of_zero_is_no_limit():
    g = np.array([3e5, -4e5])
    assert clip_gradient(g, 0.0) == 5e5
    assert np.array_equal(g, [3e5, -4e5])


def test_a_gradient_of_zero_stays_zero():
    g = np.zeros(3)
    assert clip_gradient(g, 1.0) == 0.0 and not g.any()


def test_nan_is_seen():
    """A NaN must reach the log as the norm, not be clipped to something that looks healthy."""
    g = np.array([1.0, np.nan, 2.0])
    assert math.isnan(clip_gradient(g, 1.0))
    assert math.isnan(g[1])


def test_an_infinite_gradient_is_left_as_it_is():
    """Divided by its norm, all of it would be 0, but for one NaN."""
    g = np.array([1.0, -np.inf, 2.0])
    assert clip_gradient(g, 1.0) == math.inf
    assert np.array_equal(g, [1.0, -np.inf, 2.0])


def test_the_norm_is_summed_in_float64(text_only):
    """A norm of millions of numbers, summed in float32, can be wrong in the fourth digit."""
    g = np.random.default_rng(6).standard_normal(1_000_003).astype(np.float32)
    exact = math.sqrt(math.fsum(g.astype(np.float64) ** 2))
    assert gradient_norm(g) == pytest.approx(exact, rel=1e-9)
    with text_only():
        assert gradient_norm(g) == pytest.approx(exact, rel=1e-9)


# ---------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("k", [2, 4])
def test_small_batches_add_up_to_the_large_one(k, tie):
    """k batches with scale 1/k: the same loss and gradient as all their rows at once."""
    config = GPTConfig(
        vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=12, n_hidden=10, tie=tie
    )
    params = init_parameters(config, 4, np.float64)
    ids, targets = np.random.default_rng(5).integers(13, size=(2, 8, 6))
    at_once, in_pieces = params.zeros_like(), params.zeros_like()
    loss = loss_and_gradients(params, at_once, ids, targets, config)
    losses = [
        loss_and_gradients(params, in_pieces, i, t, config, scale=1.0 / k)
        for i, t in zip(np.split(ids, k), np.split(targets, k))
    ]
    assert np.mean(losses) == pytest.approx(loss, rel=1e-14)
    for name, expected in at_once.items():
        error = np.max(np.abs(in_pieces[name] - expected)) / np.max(np.abs(expected))
        assert error < 1e-12, f"{name}: relative error {error:.1e}"
