"""Rows on several threads: the gradient of the whole batch, the same bits each time."""

import os
import threading
import time

import numpy as np
import pytest

from npgpt import parallel
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient
from npgpt.parallel import Workers, available_threads, cut, head_parts

CONFIG = GPTConfig(vocab_size=23, block_size=8, n_layer=2, n_head=2, n_embd=16, n_hidden=12)


def batch(rows):
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (rows, 9))
    return ids[:, :-1], ids[:, 1:]


def gradients(threads, rows, scale=1.0, dtype=np.float64, most_rows=None):
    params = init_parameters(CONFIG, seed=2, dtype=dtype)
    grads = params.zeros_like()
    workers = Workers(params, threads, most_rows)
    loss = workers.loss_and_gradients(params, grads, *batch(rows), CONFIG, scale)
    return loss, grads.flat


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("most_rows", [None, 1, 2])
def test_threads_give_the_gradient_of_the_whole(threads, rows, most_rows):
    params = init_parameters(CONFIG, seed=2, dtype=np.float64)
    grads = params.zeros_like()
    loss = loss_and_gradients(params, grads, *batch(rows), CONFIG, 0.25)
    piecewise_loss, piecewise = gradients(threads, rows, 0.25, most_rows=most_rows)
    assert piecewise_loss == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(piecewise, grads.flat, rtol=0, atol=1e-14 * abs(grads.flat).max())


def test_the_targets_are_smoothed_on_any_number_of_threads():
    params = init_parameters(CONFIG, seed=2, dtype=np.float64)
    plain, whole, pieces = (params.zeros_like() for _ in range(3))
    loss_and_gradients(params, plain, *batch(5), CONFIG)
    loss = loss_and_gradients(params, whole, *batch(5), CONFIG, smoothing=0.3)
    workers = Workers(params, 2)
    told = workers.loss_and_gradients(params, pieces, *batch(5), CONFIG, smoothing=0.3)
    assert told == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(pieces.flat, whole.flat, rtol=0, atol=1e-14)
    assert abs(whole.flat - plain.flat).max() > 1e-3


def test_what_a_thread_had_before_is_forgotten():
    """A batch of fewer rows than threads comes after one that gave work to all."""
    params = init_parameters(CONFIG, seed=2, dtype=np.float64)
    workers, once, again = Workers(params, 3), params.zeros_like(), params.zeros_like()
    workers.loss_and_gradients(params, params.zeros_like(), *batch(5), CONFIG)
    workers.loss_and_gradients(params, again, *batch(2), CONFIG)
    loss_and_gradients(params, once, *batch(2), CONFIG)
    np.testing.assert_allclose(again.flat, once.flat, rtol=0, atol=1e-14)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_begins_anew_and_a_second_batch_adds(threads):
    """What was there before is forgotten, on any number of threads, and what is added is not."""
    params = init_parameters(CONFIG, seed=2, dtype=np.float64)
    workers, once, twice = Workers(params, threads), params.zeros_like(), params.zeros_like()
    twice.flat[...] = np.nan
    loss_and_gradients(params, once, *batch(4), CONFIG)
    workers.loss_and_gradients(params, twice, *batch(4), CONFIG, anew=True)
    np.testing.assert_allclose(twice.flat, once.flat, rtol=0, atol=1e-14)
    workers.loss_and_gradients(params, twice, *batch(4), CONFIG)
    np.testing.assert_allclose(twice.flat, 2 * once.flat, rtol=0, atol=1e-14)


def test_no_more_rows_at_a_time_than_memory_should_hold(monkeypatch):
    taken, true = [], parallel.loss_and_gradients

    def note(params, grads, ids, *rest):
        taken.append(len(ids))
        return true(params, grads, ids, *rest)

    monkeypatch.setattr(parallel, "loss_and_gradients", note)
    gradients(2, 7, most_rows=2)
    assert sorted(taken) == [1, 2, 2, 2]


def test_rows_are_cut_into_equal_parts():
    assert cut(3, 10, 3) == [slice(3, 5), slice(5, 7), slice(7, 10)]
    assert cut(0, 8, 8) == cut(0, 8, 100) == [slice(0, 8)]
    assert cut(0, 3, 1) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_the_same_number_of_threads_gives_the_same_bits():
    first = gradients(3, 5, dtype=np.float32)
    for _ in range(5):
        again = gradients(3, 5, dtype=np.float32)
        assert again[0] == first[0]
        assert np.array_equal(again[1], first[1])


def test_gradients_are_added_and_stay_float32():
    params = init_parameters(CONFIG, seed=2)
    grads, workers = params.zeros_like(), Workers(params, 2)
    for _ in range(2):
        loss = workers.loss_and_gradients(params, grads, *batch(4), CONFIG)
    once = params.zeros_like()
    loss_and_gradients(params, once, *batch(4), CONFIG)
    assert grads.flat.dtype == np.float32 and loss.dtype == np.float32
    np.testing.assert_allclose(grads.flat, 2 * once.flat, rtol=0, atol=1e-6)


def test_a_fault_in_a_thread_reaches_the_caller():
    workers = Workers(init_parameters(CONFIG, seed=2), 2)
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda x: 1 / x, [1, 0])


def test_threads_take_over_the_callers_errstate():
    workers = Workers(init_parameters(CONFIG, seed=2), 2)
    big = np.float32([3e38])
    with np.errstate(over="ignore"):  # a warning would be an error in these tests
        assert np.isinf(workers.map(lambda x: x * x, [big, big])).all()


def test_results_come_in_the_order_of_the_items():
    assert Workers(init_parameters(CONFIG, seed=2), 4).map(lambda x: x * x, range(9)) == [
        x * x for x in range(9)
    ]


def test_a_fault_is_told_when_nobody_is_at_work_any_more():
    workers, done = Workers(init_parameters(CONFIG, seed=2), 2), []
    both_at_work = threading.Barrier(2)

    def work(item):
        both_at_work.wait(60)
        if threading.current_thread() is threading.main_thread():
            raise ZeroDivisionError
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ZeroDivisionError):
        workers.map(work, [0, 1])
    assert len(done) == 1


def test_the_optimizer_takes_the_same_step_on_any_number_of_threads():
    rng = np.random.default_rng(3)
    p, g = rng.standard_normal((2, 200_001), np.float32)
    results = []
    for map_pieces in (map, Workers({}, 1).map, Workers(init_parameters(CONFIG, 2), 3).map):
        now, gradient = p.copy(), g.copy()
        adamw = AdamW(np.zeros_like(p), np.zeros_like(p), num_decayed=70_000)
        norm = clip_gradient(gradient, 1.0, map_pieces)
        adamw.update(now, gradient, 1e-2, map_pieces)
        results.append((norm, now))
    for norm, now in results[1:]:
        assert norm == results[0][0] and np.array_equal(now, results[0][1])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't be asked")
def test_processors_that_are_forbidden_do_not_count():
    allowed = os.sched_getaffinity(0)
    assert available_threads() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_logits_are_few_at_a_time_and_the_head_serves_many_places():
    def parts(rows, block_size, vocab_size):
        return head_parts(GPTConfig(vocab_size, block_size), rows)

    assert parts(4, 128, 100) == parts(1, 128, 50_257) == 1
    assert parts(8, 128, 10_000) == 2  # 3 of 13 MB would have fewer than 512 places each
    assert parts(8, 1024, 1_000) == 2  # 32.8 MB
    assert parts(2, 1024, 50_257) == 4
    assert parts(9_000, 2, 50_257) == 2  # no place is cut
