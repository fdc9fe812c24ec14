"""Two threads that share a gradient: the sum of both, in one order, and nobody waits for ever."""

import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from npgpt import model, parallel, turns
from npgpt.backend import kernels_enabled
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.parallel import Workers
from npgpt.turns import Member, SharedGradient, Stopped, Turns, members_of

pytestmark = pytest.mark.skipif(
    not kernels_enabled(), reason="only kernels take turns, and Numba is missing or switched off"
)

PLAIN = GPTConfig(
    vocab_size=23, block_size=8, n_layer=2, n_head=2, n_embd=16, n_hidden=12, tie=False
)
CONFIGS = {
    "plain": PLAIN,
    "tied": replace(PLAIN, tie=True),
    "places and biases": replace(
        PLAIN, norm="layernorm", position="learned", mlp="gelu", bias=True, head_bias=True
    ),
    "tied, with dropout": replace(PLAIN, tie=True, dropout=0.2),
    "run again": replace(PLAIN, recompute=True),
    "attention alone": replace(PLAIN, mlp="none"),
}


@pytest.fixture
def shared(monkeypatch):
    """Gradients of any size are shared."""
    monkeypatch.setattr(turns, "SHARED_BYTES", 0)


def batch(rows, config=PLAIN):
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (rows, 9))
    return ids[:, :-1], ids[:, 1:]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * abs(b).max())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("threads, rows, most", [(1, 3, 2), (2, 5, 2), (2, 3, 1), (5, 8, None)])
def test_the_sum_is_that_of_the_whole_batch(config, threads, rows, most, shared):
    """Also where one of two threads has more rows than the other, or has no other."""
    params, draw = init_parameters(config, seed=2), model.Chance(1, 2) if config.drops else None
    whole, once = params.zeros_like(), params.zeros_like()
    once.flat[...] = np.nan
    workers = Workers(params, threads, most)
    loss_and_gradients(params, whole, *batch(rows), config, chance=draw)
    workers.loss_and_gradients(params, once, *batch(rows), config, chance=draw, anew=True)
    close(once.flat, whole.flat)
    assert len(workers.buffers) == (threads + 1) // 2 - 1
    workers.loss_and_gradients(params, once, *batch(rows), config, chance=draw)
    close(once.flat, 2 * whole.flat)


def test_the_same_bits_each_time(shared):
    config, results = CONFIGS["tied"], []
    params = init_parameters(config, seed=2)
    for _ in range(8):
        grads = params.zeros_like()
        Workers(params, 2, 1).loss_and_gradients(params, grads, *batch(7), config, anew=True)
        results.append(grads.flat)
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("rows", [4, 5])
def test_numpys_products_take_turns_too(rows, shared, monkeypatch):
    """As on a processor where they are the faster ones; and of ids that count from the end."""
    from npgpt.backend.cpu import block

    params = init_parameters(PLAIN, seed=2)
    ids, targets = batch(rows)
    whole, once = params.zeros_like(), params.zeros_like()
    loss_and_gradients(params, whole, ids, targets, PLAIN)
    monkeypatch.setattr(block, "fit", lambda *_: False)
    workers = Workers(params, 2, 2)
    workers.loss_and_gradients(params, once, ids - PLAIN.vocab_size, targets, PLAIN, anew=True)
    close(once.flat, whole.flat)


def test_small_gradients_and_other_numbers_are_not_shared(shared, monkeypatch):
    params = init_parameters(PLAIN, seed=2, dtype=np.float64)
    workers, grads = Workers(params, 2), params.zeros_like()
    workers.loss_and_gradients(params, grads, *batch(4), PLAIN)
    assert len(workers.buffers) == 1
    assert members_of(0) == 2
    monkeypatch.setattr(turns, "SHARED_BYTES", 1000)
    assert [members_of(size) for size in (999, 1000)] == [1, 2]
    monkeypatch.setattr(turns, "kernels_enabled", lambda: False)
    assert members_of(1000) == 1


def test_large_models_are_shared_by_default():
    assert members_of(4 * 500_000) == 1 and members_of(4 * 10_000_000) == 2


@pytest.mark.parametrize("bad_row", [0, 3])
def test_a_fault_of_one_thread_is_told_and_the_other_does_not_wait(bad_row, shared, monkeypatch):
    true, (ids, targets) = parallel.loss_and_gradients, batch(4)
    ids = ids.copy()
    ids[:, 0] = np.arange(4)

    def faulty(params, grads, ids, *rest):
        if bad_row in ids[:, 0]:
            raise ZeroDivisionError("on purpose")
        return true(params, grads, ids, *rest)

    monkeypatch.setattr(parallel, "loss_and_gradients", faulty)
    params = init_parameters(PLAIN, seed=2)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        Workers(params, 2, 1).loss_and_gradients(params, params.zeros_like(), ids, targets, PLAIN)
    assert turns.sharing.get() is None


def test_a_gradient_without_turns_is_noticed():
    """As if a kernel had left it to the text, where two threads would add at the same time."""
    params = init_parameters(PLAIN, seed=2)
    shared = SharedGradient(params.zeros_like(), anew=True)
    for place in (0, 1):
        assert shared.work(place, lambda grads: 7) == 7
    with pytest.raises(RuntimeError, match="turns at the gradient of wte"):
        shared.join()


def test_the_first_one_goes_first():
    """And with each gradient again: so sums have one order."""
    known, order, g = Turns(), [], np.zeros(3)
    first, second = Member(known, 0, anew=True), Member(known, 1, anew=True)

    def be(member):
        for _ in range(3):
            with member.turn(g) as add:
                order.append((member.place, add))

    late = threading.Thread(target=be, args=(second,))
    late.start()
    late.join(0.05)
    assert order == []
    be_first = threading.Thread(target=be, args=(first,))
    be_first.start()
    late.join(60)
    be_first.join(60)
    assert order == [(0, False), (1, True), (0, True), (1, True), (0, True), (1, True)]


def test_who_has_left_is_not_waited_for():
    known, g = Turns(), np.zeros(3)
    known.leave(0)
    with Member(known, 1, anew=False).turn(g) as add:
        assert add
    known.stop()
    with pytest.raises(Stopped), Member(known, 1, anew=False).turn(g):
        pass


def test_the_gradient_of_the_logits_is_gone_when_the_blocks_begin(monkeypatch):
    """It is the widest tensor, and the blocks need its memory."""
    alive, head, stream = [], model.head_backward, model.stream_backward

    def note_head(dlogits, *rest):
        alive.append(weakref.ref(dlogits))
        return head(dlogits, *rest)

    def note_stream(*args):
        alive.append(alive[0]() is not None)
        return stream(*args)

    monkeypatch.setattr(model, "head_backward", note_head)
    monkeypatch.setattr(model, "stream_backward", note_stream)
    params = init_parameters(PLAIN, seed=2)
    loss_and_gradients(params, params.zeros_like(), *batch(4), PLAIN)
    assert alive[1:] == [False]
