"""Rows on several threads: the gradient of the whole batch, the same bits each time."""

import time

import numpy as np
import pytest

from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient
from npgpt.parallel import Workers, available_threads, cut

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

    def work(item):
        if item == 0:
            raise ZeroDivisionError
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ZeroDivisionError):
        workers.map(work, [0, 1])
    assert done == [1]


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


def test_there_is_at_least_one_processor():
    assert available_threads() >= 1
