"""From tokens to batches: nothing is lost, nothing is seen twice, nothing depends on the past."""

import itertools
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from npgpt import data
from npgpt.data import ahead, check_length, get_batch, num_rows
from npgpt.errors import UserError

# Batches.


def epoch_rows(n, T, seed, epoch):
    """The inputs of one epoch over the tokens 0, 1, …, n − 1, where a token is its own place."""
    windows = num_rows(np.arange(n), T)
    rows = [get_batch(np.arange(n), seed, epoch * windows + i, 1, T)[0][0] for i in range(windows)]
    return np.array(rows)


@pytest.mark.parametrize("n, T", [(2, 1), (17, 16), (18, 16), (32, 16), (33, 16), (1000, 7)])
@pytest.mark.parametrize("seed", [0, 5])
def test_an_epoch_reads_every_token_once(n, T, seed):
    for epoch in range(3):
        rows = epoch_rows(n, T, seed, epoch)
        places = np.sort(rows.ravel())
        assert np.array_equal(places, np.arange(places[0], places[0] + rows.size)), "a gap, or two"
        assert n - 1 - rows.size < 2 * T  # no more than this is left out, at both ends together
        assert places[-1] <= n - 2  # the last token is a target only


def test_over_many_epochs_every_place_has_its_turn():
    seen = Counter()
    for epoch in range(200):
        seen.update(epoch_rows(50, 8, 1, epoch).ravel().tolist())
    assert set(seen) == set(range(49))


def test_targets_are_the_next_tokens():
    tokens = np.random.default_rng(0).integers(0, 500, 300).astype(np.uint16)
    ids, targets = get_batch(tokens, 3, 7, 5, 11)
    assert ids.shape == targets.shape == (5, 11)
    assert ids.dtype == targets.dtype == np.int64
    assert np.array_equal(ids[:, 1:], targets[:, :-1])
    text = tokens.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(text, 12)
    for row in np.concatenate([ids, targets[:, -1:]], axis=1):
        assert (windows == row).all(axis=1).any(), "not a piece of the text"


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = np.arange(400)
    alone = get_batch(tokens, 1, 60, 4, 16)[0]
    data._epoch.cache_clear()
    for step in (3, 99, 0):
        get_batch(tokens, 2, step, 4, 16)
    assert np.array_equal(get_batch(tokens, 1, 60, 4, 16)[0], alone)
    assert not np.array_equal(get_batch(tokens, 2, 60, 4, 16)[0], alone)
    assert not np.array_equal(get_batch(tokens, 1, 61, 4, 16)[0], alone)


def test_the_order_is_the_same_in_every_version():
    """Or a run that a later npgpt resumes would read some rows twice, and others never."""
    first_ids = [get_batch(np.arange(n), 1, 3, 4, 8)[0][:, 0].tolist() for n in (100, 10**7)]
    assert first_ids == [[44, 36, 52, 20], [7304716, 4954660, 914060, 7155476]]


def test_small_batches_are_the_rows_of_a_large_one():
    tokens = np.arange(300)  # 17 windows: the large batch crosses the end of an epoch
    for step in range(6):
        large = get_batch(tokens, 1, step, 8, 16)[0]
        small = [get_batch(tokens, 1, 4 * step + i, 2, 16)[0] for i in range(4)]
        assert np.array_equal(np.concatenate(small), large)


def test_epochs_differ_in_order_and_in_phase():
    first, second = epoch_rows(1000, 16, 1, 0), epoch_rows(1000, 16, 1, 1)
    assert not np.array_equal(first, second)
    phases = {int(epoch_rows(1000, 16, 1, e).min()) for e in range(30)}
    assert len(phases) > 12


def test_the_shortest_text_is_one_window():
    ids, targets = get_batch(np.arange(17), 1, 5, 3, 16)
    assert np.array_equal(ids, [np.arange(16)] * 3)
    assert np.array_equal(targets, [np.arange(1, 17)] * 3)


def test_too_short_a_text_is_refused():
    check_length(np.zeros(17), 16, "training")
    with pytest.raises(UserError, match="training text has 16 tokens, but one context needs 17"):
        check_length(np.zeros(16), 16, "training")


# The order of the rows.


def order(n, seed=0, epoch=0):
    _, stirs = data._epoch(seed, epoch, 0)
    return data.shuffled(np.arange(n), n, stirs)


@pytest.mark.parametrize("n", [*range(1, 34), 1000, 1023, 1024, 1025, 100_003])
def test_the_order_has_every_row_once(n):
    for epoch in range(3):
        assert np.array_equal(np.sort(order(n, 1, epoch)), np.arange(n))


def test_any_part_of_the_order_is_that_part_of_the_whole():
    _, stirs = data._epoch(1, 0, 0)
    whole = order(777, 1)
    for part in (range(5), range(300, 301), range(500, 777)):
        assert np.array_equal(data.shuffled(part, 777, stirs), whole[list(part)])


def chi_squared(counts, expected):
    """How far counts are from what chance gives, in standard deviations of the statistic."""
    freedom = counts.size - 1
    statistic = np.sum((counts - expected) ** 2 / expected)
    return (statistic - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [5, 8, 13, 40])
def test_over_many_epochs_every_row_comes_at_every_place(n):
    epochs = 2000
    seen, pairs = np.zeros((n, n)), np.zeros((n, n))
    for epoch in range(epochs):
        rows = order(n, 3, epoch)
        seen[np.arange(n), rows] += 1
        pairs[rows[:-1], rows[1:]] += 1
    assert abs(chi_squared(seen, epochs / n)) < 6
    different = pairs[~np.eye(n, dtype=bool)]  # the row that follows upon a row
    assert abs(chi_squared(different, epochs / n)) < 6
    assert np.trace(pairs) == 0


def test_a_long_order_looks_like_chance():
    n = 1_000_003
    rows = order(n) / n
    for distance in (1, 2, 3, 16, 256, 4096, 1 << 16):
        correlation = np.corrcoef(rows[:-distance], rows[distance:])[0, 1]
        assert abs(correlation) * np.sqrt(n) < 5, distance
    for pair in ((np.arange(n) / n, rows), (rows[:-1], rows[1:])):
        counts, *_ = np.histogram2d(*pair, bins=50, range=[[0, 1], [0, 1]])
        assert abs(chi_squared(counts, counts.sum() / counts.size)) < 6
    assert abs(np.mean(rows[1:] > rows[:-1]) - 0.5) < 5 / np.sqrt(12 * n)  # neither up nor down


def test_ten_billion_tokens_take_no_memory():
    tokens = np.broadcast_to(np.uint16(7), 10_000_000_000)  # one number, seen again and again
    get_batch(tokens[:1000], 1, 0, 2, 128)
    tracemalloc.start()
    for step in (0, 300_000, 305_175, 305_176, 10**9):  # within epochs, and across the first's end
        ids, targets = get_batch(tokens, 1, step, 256, 128)
        assert ids.shape == targets.shape == (256, 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


# Several processes.


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_the_shares_of_all_ranks_are_the_batch(world):
    tokens = np.arange(400)
    for step in (0, 5, 40):
        alone = get_batch(tokens, 1, step, 12, 8)
        shares = [get_batch(tokens, 1, step, 12, 8, rank, world) for rank in range(world)]
        for whole, parts in zip(alone, zip(*shares)):
            assert np.array_equal(np.concatenate(parts), whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# The next batch.


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_ahead_gives_the_results_in_order(threads):
    assert list(ahead(lambda n: n * n, range(5), threads)) == [0, 1, 4, 9, 16]
    assert list(ahead(str, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_the_next_results_are_made_while_this_one_is_used(threads):
    begun = [threading.Event() for _ in range(9)]

    def work(n):
        begun[n].set()
        return threading.get_ident()

    taking = ahead(work, range(9), threads)
    assert next(taking) != threading.get_ident()
    assert all(event.wait(5) for event in begun[1 : threads + 1])
    taking.close()
    assert not any(event.is_set() for event in begun[threads + 1 :]), "no more than asked for"


def test_what_goes_wrong_ahead_is_raised_in_its_turn():
    def work(n):
        if n == 1:
            raise UserError("the disk is gone")
        return n

    taking = ahead(work, range(4), threads=2)
    assert next(taking) == 0
    with pytest.raises(UserError, match="the disk is gone"):
        next(taking)


def test_batches_ahead_are_those_of_get_batch():
    tokens = np.arange(300)
    taken = ahead(lambda step: get_batch(tokens, 1, step, 4, 16), itertools.count(3), threads=4)
    for step in range(3, 40):
        assert np.array_equal(next(taken), get_batch(tokens, 1, step, 4, 16))
    taken.close()
