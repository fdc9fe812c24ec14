"""Sampling: each way to draw against its definition, and the KV cache against a full forward."""

from dataclasses import replace

import numpy as np
import pytest

import npgpt.sampling
from npgpt.errors import UserError
from npgpt.model import GPTConfig, Parameters, count_parameters, forward
from npgpt.sampling import (
    KVCache,
    apply_temperature,
    choose_token,
    generate,
    keep_top_k,
    keep_top_p,
    sample_rngs,
    softmax,
)

GROUPED = GPTConfig(29, 12, n_layer=3, n_head=4, n_kv_head=2, n_embd=24, n_hidden=20)
UNTIED = GPTConfig(29, 12, n_layer=1, n_head=2, n_embd=12, n_hidden=20, tie=False)
ONE = GPTConfig(29, 1, n_layer=1, n_head=2, n_embd=12, n_hidden=20)


def model(config, dtype=np.float64, seed=0):
    """Weights so large that the attention is far from uniform, and logits far apart."""
    rng = np.random.default_rng(seed)
    return Parameters(config, (0.4 * rng.standard_normal(count_parameters(config))).astype(dtype))


def prompt(config, batch, length, seed=1):
    return np.random.default_rng(seed).integers(config.vocab_size, size=(batch, length))


# How to draw.


def test_temperature_is_a_division_and_its_limit_is_greedy():
    z = np.random.default_rng(0).standard_normal((3, 9))
    np.testing.assert_allclose(softmax(apply_temperature(z, 0.7)), softmax(z / 0.7), rtol=1e-13)
    limit = softmax(apply_temperature(z, 5e-324))
    np.testing.assert_array_equal(limit, np.eye(9)[np.argmax(z, axis=-1)])
    np.testing.assert_allclose(softmax(apply_temperature(z, 1e308)), 1 / 9, rtol=1e-13)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_keeps_the_k_best(k):
    z = np.random.default_rng(0).standard_normal((2, 3, 9))
    kept = keep_top_k(z, k)
    assert np.all(np.sum(kept > -np.inf, axis=-1) == k)
    np.testing.assert_array_equal(np.sort(kept)[..., -k:], np.sort(z)[..., -k:])
    np.testing.assert_array_equal(kept[kept > -np.inf], z[kept > -np.inf])


def test_top_k_keeps_ties_and_everything_when_k_says_so():
    z = np.array([1.0, 3.0, 2.0, 2.0, 0.0])
    np.testing.assert_array_equal(keep_top_k(z, 2), [-np.inf, 3.0, 2.0, 2.0, -np.inf])
    for k in (0, 5, 99):
        np.testing.assert_array_equal(keep_top_k(z, k), z)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    z = 2 * np.random.default_rng(0).standard_normal((50, 9))
    for row in z:
        kept = keep_top_p(row, p)
        stays = set(np.flatnonzero(kept > -np.inf))
        likeliest = sorted(range(9), key=lambda i: -row[i])
        assert stays == set(likeliest[: len(stays)])
        probs = softmax(row)
        assert probs[list(stays)].sum() >= p - 1e-12
        assert probs[likeliest[: len(stays) - 1]].sum() < p
        np.testing.assert_array_equal(kept[list(stays)], row[list(stays)])


def test_top_p_on_probabilities_that_a_person_can_add():
    z = np.log(np.array([0.125, 0.5, 0.25, 0.125]))
    kept = [np.flatnonzero(keep_top_p(z, p) > -np.inf).tolist() for p in (0.4, 0.6, 0.8, 0.9)]
    assert kept == [[1], [1, 2], [0, 1, 2], [0, 1, 2, 3]]  # of the two equals, the lower id
    z = np.array([2.0, 1.0, 0.0])
    assert np.sum(keep_top_p(z, softmax(z)[0]) > -np.inf) == 1  # p is reached: that is enough


@pytest.mark.parametrize("p", [0.0005, 0.2995, 0.9995])
def test_top_p_of_equals_keeps_as_many_as_it_takes(p):
    kept = np.flatnonzero(keep_top_p(np.zeros(1000), p) > -np.inf)
    assert np.array_equal(kept, np.arange(round(1000 * p + 0.5)))


def test_top_p_of_equals_keeps_the_first():
    """Of 1,000 likely tokens and as many with half of their chance: all, and some of these."""
    kept = keep_top_p(np.log(np.tile([1.0, 2.0], 1000)), 0.8) > -np.inf
    assert np.all(kept[1::2]) and np.sum(kept[::2]) == pytest.approx(400, abs=1)
    assert np.array_equal(kept[::2], np.arange(1000) < np.sum(kept[::2]))


def test_a_top_p_of_1_keeps_what_is_lost_in_rounding():
    z = np.array([0.0, -60.0])
    assert np.array_equal(keep_top_p(z, 1.0), z)


def test_the_order_is_temperature_then_top_k_then_top_p():
    z = np.log(np.array([0.7, 0.2, 0.06, 0.04]))
    rng = np.random.default_rng(0)

    def drawn(*settings):
        return {choose_token(z, rng, *settings) for _ in range(400)}

    assert drawn(1.0, 0, 0.65) == {0}
    # Temperature first: at 4 the probabilities are .362, .265, .196, .177.
    assert drawn(4.0, 0, 0.65) == {0, 1, 2}
    # Then top-k: of the best two, now .578 and .422, one is enough for 0.55.
    assert drawn(4.0, 0, 0.55) == {0, 1}
    assert drawn(4.0, 2, 0.55) == {0}


def test_draws_have_the_probabilities_of_the_softmax():
    z = np.random.default_rng(0).standard_normal(7).astype(np.float32)
    rng, n = np.random.default_rng(1), 20_000
    counts = np.bincount([choose_token(z, rng, 1.3) for _ in range(n)], minlength=7)
    p = softmax(z.astype(np.float64) / 1.3)
    assert np.all(np.abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p)))


def test_greedy_takes_the_best_and_no_chance():
    rng = np.random.default_rng(0)
    assert choose_token(np.array([1.0, 5.0, 5.0]), rng, temperature=0.0) == 1
    assert rng.random() == np.random.default_rng(0).random()


class Edge:
    """A generator that draws the ends of its range, [0, 1)."""

    def __init__(self, u):
        self.u = u

    def random(self):
        return self.u


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
def test_no_draw_falls_on_a_token_without_a_chance(u):
    for seed in range(200):
        z = np.random.default_rng(seed).standard_normal(50)
        z[[0, 1, -1]] = -800.0  # probability exactly 0
        assert 1 < choose_token(z, Edge(u)) < 49


def test_a_draw_among_many_tokens_does_not_drift():
    """Added up in float32, the ends of pieces this small are several tokens off."""
    z = np.zeros(50_000, np.float32)
    for i in range(0, 50_000, 977):
        assert choose_token(z, Edge((i + 0.5) / 50_000)) == i


def test_no_two_samples_share_their_chance():
    drawn = {rng.random() for seed in range(5) for rng in sample_rngs(seed, range(5))}
    assert len(drawn) == 25


# The memory.


@pytest.mark.parametrize("config", [GROUPED, UNTIED])
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 1, 3, 2], [12]])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_cache_agrees_with_the_full_forward(config, cuts, dtype, tolerance):
    params, ids = model(config, dtype), prompt(config, 3, 12)
    full, _ = forward(params, ids, config)
    cache, parts = KVCache(config, 3, like=params["norm"]), []
    for new in np.split(ids, np.cumsum(cuts)[:-1], axis=1):
        parts.append(forward(params, new, config, past=cache)[0])
        cache.length += new.shape[1]
    logits = np.concatenate(parts, axis=1)
    assert logits.dtype == dtype
    assert np.max(np.abs(logits - full)) < tolerance * np.max(np.abs(full))


def windows_of(length, block_size, steps):
    """Which tokens (start, stop) the model should see at each step, told as a story."""
    start = max(0, length - block_size)
    for stop in range(length, length + steps):
        if stop - start > block_size:
            start = stop - max(1, block_size // 2)
        yield start, stop


@pytest.mark.parametrize("length", [1, 7, 12, 30])
@pytest.mark.parametrize("config", [GROUPED, ONE])
def test_past_the_context_every_score_is_a_full_forward_s(monkeypatch, config, length):
    params, start = model(config), prompt(config, 2, length)
    rows = []

    def record(logits, *args):
        rows.append(logits)
        return choose_token(logits, *args)

    monkeypatch.setattr(npgpt.sampling, "choose_token", record)
    new = list(generate(params, config, start, 40, sample_rngs(5, [0, 1])))
    text = np.concatenate([start, np.stack(new, axis=1)], axis=1)
    seen = np.stack(rows).reshape(40, 2, -1)
    for (first, last), row in zip(windows_of(length, config.block_size, 40), seen):
        full = forward(params, text[:, first:last], config)[0][:, -1]
        assert np.max(np.abs(row - full)) < 1e-12 * np.max(np.abs(full))


# generate.


def rows_of(params, config, ids, n, rngs, **settings):
    return np.stack(list(generate(params, config, ids, n, rngs, **settings)), axis=1)


def test_greedy_generation_is_the_argmax_of_the_full_forward():
    params, ids = model(GROUPED), prompt(GROUPED, 2, 4)
    written = rows_of(params, GROUPED, ids, 8, sample_rngs(0, [0, 1]), temperature=0.0)
    text = np.concatenate([ids, written], axis=1)
    best = np.argmax(forward(params, text[:, :-1], GROUPED)[0], axis=-1)
    np.testing.assert_array_equal(written, best[:, 3:])


def test_a_sample_is_the_same_alone_and_among_others():
    params, ids = model(GROUPED), prompt(GROUPED, 1, 3)
    together = rows_of(params, GROUPED, np.tile(ids, (4, 1)), 30, sample_rngs(9, range(4)))
    for i in range(4):
        alone = rows_of(params, GROUPED, ids, 30, sample_rngs(9, [i]))
        np.testing.assert_array_equal(together[i], alone[0])
    assert len({row.tobytes() for row in together}) == 4
    other = rows_of(params, GROUPED, ids, 30, sample_rngs(10, [0]))
    assert not np.array_equal(other[0], together[0])


def test_what_pads_the_vocabulary_is_never_drawn():
    """Though of two rows, one the other's opposite, one always has the best score."""
    config = replace(GROUPED, padding=2)
    params = model(config)
    params["wte"][-2:] = np.outer([99.0, -99.0], params["wte"][0])
    written = rows_of(params, config, prompt(config, 4, 3), 20, sample_rngs(0, range(4)))
    assert np.all(written < config.num_tokens)


def test_a_text_ends_and_the_others_go_on():
    params, ids = model(GROUPED), np.tile(prompt(GROUPED, 1, 3), (3, 1))
    free = rows_of(params, GROUPED, ids, 30, sample_rngs(3, range(3)))
    end = free[0, 4]  # call a token that the first sample draws early the end
    bound = rows_of(params, GROUPED, ids, 30, sample_rngs(3, range(3)), end_of_text=end)
    for before, after in zip(free, bound):
        stop = np.flatnonzero(before == end)
        stop = stop[0] if len(stop) else 30
        np.testing.assert_array_equal(after[:stop], before[:stop])
        assert np.all(after[stop:] == end)
    alone = rows_of(params, GROUPED, ids[:1], 30, sample_rngs(3, [0]), end_of_text=end)
    assert alone.shape == (1, 1 + np.flatnonzero(free[0] == end)[0])  # and then it stops


def test_the_iterator_is_lazy_and_its_arrays_are_the_caller_s():
    params, ids = model(GROUPED), prompt(GROUPED, 1, 3)
    expected = rows_of(params, GROUPED, ids, 6, sample_rngs(0, [0]))
    untouched = ids.copy()
    for step, new in enumerate(generate(params, GROUPED, ids, 6, sample_rngs(0, [0]))):
        assert new.shape == (1,)
        assert new[0] == expected[0, step]
        new[:] = 0
    np.testing.assert_array_equal(ids, untouched)


def test_what_it_refuses():
    params = model(UNTIED)
    with pytest.raises(ValueError, match="need T ≥ 1 and 1 rngs, not 1"):
        next(generate(params, UNTIED, np.zeros((1, 0), int), 5, sample_rngs(0, [0])))
    with pytest.raises(ValueError, match="2 rngs, not 1"):
        next(generate(params, UNTIED, np.zeros((2, 3), int), 5, sample_rngs(0, [0])))
    for bad in (np.nan, np.inf, -np.inf):
        params["lm_head"][0, 0] = bad
        with pytest.raises(UserError, match="not finite numbers, so its training has gone wrong"):
            next(generate(params, UNTIED, np.zeros((1, 3), int), 5, sample_rngs(0, [0])))
