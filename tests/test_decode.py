"""The compiled step of one token against the text, and the threads that take it together."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import npgpt.block
import npgpt.sampling
from npgpt.errors import UserError
from npgpt.layers import linear_forward
from npgpt.model import GPTConfig, Parameters, count_parameters, forward
from npgpt.sampling import Decoder, KVCache, choose_token, generate, make_decoder, sample_rngs

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed"),
]

ROOT = Path(__file__).resolve().parent.parent
# As tests/test_kernels.py has it: at most twice the text's own error, and a few roundings.
FLOOR = 4 * 2.0**-24
CONFIGS = {
    "plain": GPTConfig(29, 9, n_layer=2, n_head=2, n_embd=32, n_hidden=64),
    "untied, nothing even": GPTConfig(
        31, 7, n_layer=1, n_head=3, n_embd=18, n_hidden=11, tie=False, rope_theta=50.0
    ),
    "heads share": GPTConfig(64, 12, n_layer=3, n_head=6, n_kv_head=2, n_embd=36, n_hidden=20),
    "all heads share one": GPTConfig(
        40, 6, n_layer=2, n_head=4, n_kv_head=1, n_embd=40, n_hidden=5
    ),
    "a context of one": GPTConfig(29, 1, n_layer=2, n_head=1, n_embd=12, n_hidden=20),
    "one token, one hidden channel": GPTConfig(1, 3, n_layer=1, n_head=1, n_embd=2, n_hidden=1),
    "wide": GPTConfig(301, 70, n_layer=1, n_head=2, n_embd=192, n_hidden=333, norm_eps=1e-3),
    "a GPT-2": GPTConfig(
        31, 9, n_layer=2, n_head=2, n_embd=24, n_hidden=37,
        norm="layernorm", position="learned", mlp="gelu_tanh", bias=True,
    ),
    "a nanoGPT, heads of odd size": GPTConfig(
        31, 9, n_layer=2, n_head=2, n_embd=18, n_hidden=37,
        norm="layernorm", position="learned", mlp="gelu",
    ),
    "the lecture's": GPTConfig(
        65, 8, n_layer=2, n_head=2, n_embd=20, n_hidden=11, tie=False, norm="layernorm",
        position="learned", mlp="relu", bias=True, qkv_bias=False, head_bias=True, dropout=0.2,
    ),
    "swiglu with biases": GPTConfig(29, 9, n_layer=2, n_head=2, n_embd=32, n_hidden=21, bias=True),
    "attention alone, no places": GPTConfig(
        29, 9, n_layer=2, n_head=3, n_embd=15, position="none", mlp="none", padding=3
    ),
}  # fmt: skip


def model(config, seed=0, dtype=np.float32):
    """Weights so large that the attention is far from uniform, and logits far apart."""
    rng = np.random.default_rng(seed)
    scale = 1.6 * config.n_embd**-0.5
    flat = (scale * rng.standard_normal(count_parameters(config))).astype(np.float32)
    return Parameters(config, flat.astype(dtype))


def tokens(config, batch, length, seed=1):
    return np.random.default_rng(seed).integers(config.vocab_size, size=(batch, length))


def read_one_by_one(decoder, ids):
    """The scores (B, T, V) that a decoder gives when it is told one token at a time."""
    cache = KVCache(decoder.config, len(ids), like=decoder.params["norm"])
    return np.stack([decoder.read(ids[:, t : t + 1], cache) for t in range(ids.shape[1])], axis=1)


def error(scores, truth):
    return np.max(np.abs(scores - truth)) / np.max(np.abs(truth))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_place_is_as_exact_as_the_text(name, threads):
    config = CONFIGS[name]
    ids = tokens(config, 1, config.block_size)
    truth = forward(model(config, dtype=np.float64), ids, config)[0]
    text = forward(model(config), ids, config)[0]
    scores = read_one_by_one(make_decoder(model(config), config, threads=threads), ids)
    assert scores.dtype == np.float32
    assert error(scores, truth) <= 2 * error(text, truth) + FLOOR


@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_threads_and_neighbours_change_no_bit(name, dtype):
    config = CONFIGS[name]
    ids = tokens(config, 18, config.block_size)
    alone = read_one_by_one(make_decoder(model(config), config, dtype, threads=1), ids[16:17])
    for threads in (1, 2, 5):
        together = read_one_by_one(make_decoder(model(config), config, dtype, threads), ids)
        np.testing.assert_array_equal(together[16:17], alone)


@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("cuts", [[70], [1, 69], [16, 17, 33, 4], [3, 64, 1, 2]])
def test_into_which_pieces_a_text_is_cut_changes_no_bit(cuts, dtype):
    config = CONFIGS["wide"]
    ids = tokens(config, 3, config.block_size)
    decoder = make_decoder(model(config), config, dtype, threads=2)
    expected = read_one_by_one(decoder, ids)
    cache = KVCache(config, 3, like=decoder.params["norm"])
    for stop, new in zip(np.cumsum(cuts), np.split(ids, np.cumsum(cuts)[:-1], axis=1)):
        np.testing.assert_array_equal(decoder.read(new, cache), expected[:, stop - 1])
        assert cache.length == stop


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_is_the_model_whose_matrices_are_rounded(name):
    config = CONFIGS[name]
    ids, rounded = tokens(config, 1, config.block_size), model(config, dtype=np.float64)
    wte = rounded["wte"].copy()  # the lookup of a token stays exact
    for w in rounded.values():
        if w.ndim == 2 and w is not rounded.get("wpe"):  # nor are places multiplied
            w[...] = nearest_bf16(w)
    head = rounded["wte"].T if config.tie else rounded["lm_head"]
    untied = {**rounded, "lm_head": head.copy(), "wte": wte}
    config_untied = GPTConfig(**{**vars(config), "tie": False})
    rounded = Parameters(config_untied, np.zeros(count_parameters(config_untied)))
    for key, w in rounded.items():
        w[...] = untied[key]
    truth = forward(rounded, ids, config_untied)[0]
    text = forward(Parameters(config_untied, rounded.flat.astype(np.float32)), ids, config_untied)[
        0
    ]
    scores = read_one_by_one(make_decoder(model(config), config, "bf16", threads=2), ids)
    assert error(scores, truth) <= 2 * error(text, truth) + FLOOR


def nearest_bf16(w):
    """Of the two bf16 numbers around each w, the nearer, and of equally near ones the even."""
    bits = w.astype(np.float32).view(np.uint32) & 0xFFFF0000
    below, above = bits.view(np.float32), (bits + 0x10000).view(np.float32)
    down, up = np.abs(w - below.astype(np.float64)), np.abs(above.astype(np.float64) - w)
    even = (bits >> 16) % 2 == 0
    return np.where((down < up) | ((down == up) & even), below, above)


def test_bf16_rounds_halves_to_even():
    from npgpt.backend.cpu.packing import to_bf16

    x = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0, -0.0, 3e-39])
    bits = to_bf16(x)
    np.testing.assert_array_equal(bits, [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF80, 0, 0x8000, 0x21])
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), nearest_bf16(x))


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_is_what_its_definition_says(name, monkeypatch):
    """Against the text in float64 with each linear layer done in int8 as one would write it."""
    config = CONFIGS[name]
    ids, params = tokens(config, 2, config.block_size), model(config, dtype=np.float64)
    truth = forward(params, ids, config)[0]

    def whole_numbers(x):
        step = np.max(np.abs(x), axis=-1, keepdims=True) / 127
        return np.rint(x / step), step

    def linear_in_int8(x, w):
        (codes, step), (rows, scale) = whole_numbers(x), whole_numbers(w.T)
        y, cache = linear_forward(codes, rows.T)
        return y * step * scale[:, 0], cache

    def affine_in_int8(x, w, b):
        y, cache = linear_in_int8(x, w)
        return y + b, cache

    monkeypatch.setattr(npgpt.block, "linear_forward", linear_in_int8)
    monkeypatch.setattr(npgpt.block, "affine_forward", affine_in_int8)
    defined = forward(params, ids, config)[0]
    scores = read_one_by_one(make_decoder(model(config), config, "int8", threads=2), ids)
    # Where a number falls between two codes, float32 may take the other one: seldom, so medians.
    by_rounding, by_int8 = np.abs(scores - defined), np.abs(defined - truth)
    assert np.median(by_rounding) <= 0.1 * np.median(by_int8) + FLOOR * np.max(np.abs(truth))
    assert error(scores, truth) < 0.1


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 64, 3), (6, 128, 5), (7, 129, 4), (40, 1000, 9)])
def test_both_int8_instructions_give_the_same_numbers(shape):
    from npgpt.backend.cpu import dots
    from npgpt.backend.cpu.packing import pack_rows, prepare

    if not dots.HAS_VNNI:
        pytest.skip("this processor has no AVX-512 VNNI: there is one instruction only")
    N, K, B = shape
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((N, K)), rng.standard_normal((B, K))
    x[0], w[-1] = 0, 0
    packed, scale = pack_rows(w.astype(np.float32), "int8")
    results = []
    for kind in (np.int8, np.int16):
        codes = np.ones((B, packed.shape[1]), kind)
        unit, offset = np.zeros(B, np.float32), np.zeros(B, np.int32)
        y = np.zeros((B, N), np.float32)
        prepare(x.astype(np.float32), codes, unit, offset)
        dots.multiply(packed, scale, codes, unit, offset, y, 0, N)
        results.append(y)
        exact = packed[:, :K].astype(np.int64) @ codes[:, :K].astype(np.int64).T
        expected = exact.T.astype(np.float32) * (scale * unit[:, None])
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(*results)
    assert np.all(results[0][0] == 0) and np.all(results[0][:, -1] == 0)


def test_a_processor_without_avx_gets_the_same(tmp_path):
    """The tiles have other sizes there, and other instructions: compile them, and compare."""
    code = """
import numpy as np
from npgpt.backend.cpu import dots
from npgpt.backend.cpu.packing import DTYPES, code_dtype, pack_rows, prepare

assert (dots.LANES, dots.VECTORS, dots.HAS_VNNI) == (8, 2, False)
rng = np.random.default_rng(0)
w, x = (rng.standard_normal((n, 150)).astype(np.float32) for n in (7, 5))
truth = x.astype(np.float64) @ w.T
for dtype, bar in zip(DTYPES, (1e-6, 4e-3, 2e-2)):
    packed, scale = pack_rows(w, dtype)
    codes = np.ones((5, packed.shape[1]), code_dtype(dtype))
    unit, offset = np.zeros(5, np.float32), np.zeros(5, np.int32 if dtype == "int8" else np.float32)
    prepare(x, codes, unit, offset)
    y = np.zeros((5, 7), np.float32)
    dots.multiply(packed, scale, codes, unit, offset, y, 0, 7)
    error = np.max(np.abs(y - truth)) / np.max(np.abs(truth))
    assert error < bar, (dtype, error)
"""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NPGPT_CACHE": str(tmp_path)}
    environment.pop("NUMBA_CPU_FEATURES", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_only_the_rows_that_are_asked_for_are_written():
    from npgpt.backend.cpu.dots import multiply

    rng = np.random.default_rng(0)
    rows, x = (rng.standard_normal((n, 32)).astype(np.float32) for n in (11, 6))
    for first, last in ((0, 11), (3, 8), (4, 5), (10, 11), (6, 6)):
        y = np.full((6, 11), np.nan, np.float32)
        ones, zeros = np.ones(11, np.float32), np.zeros(6, np.float32)
        multiply(rows, ones, x, np.ones(6, np.float32), zeros, y, first, last)
        np.testing.assert_allclose(y[:, first:last], x @ rows[first:last].T, rtol=0, atol=1e-5)
        assert np.all(np.isnan(y[:, :first])) and np.all(np.isnan(y[:, last:]))


# In the place of the text.


@pytest.mark.parametrize("length", [1, 5, 12, 30])
@pytest.mark.parametrize(
    "name", ["heads share", "a context of one", "untied, nothing even", "a GPT-2"]
)
def test_past_the_context_every_score_is_a_full_forward_s(monkeypatch, name, length):
    config = CONFIGS[name]
    params, start, rows = model(config), tokens(config, 3, length), []

    def record(logits, *args):
        rows.append(logits)
        return choose_token(logits, *args)

    monkeypatch.setattr(npgpt.sampling, "choose_token", record)
    decoder = make_decoder(params, config, threads=2)
    new = list(generate(params, config, start, 40, sample_rngs(5, range(3)), decoder=decoder))
    text = np.concatenate([start, np.stack(new, axis=1)], axis=1)
    first, truths, texts = max(0, length - config.block_size), [], []
    for last in range(length, length + 40):
        if last - first > config.block_size:
            first = last - max(1, config.block_size // 2)
        for dtype, scores in ((np.float64, truths), (np.float32, texts)):
            weights = model(config, dtype=dtype)
            scores.append(forward(weights, text[:, first:last], config)[0][:, -1])
    seen = np.stack(rows).reshape(40, 3, -1)
    bar = 2 * error(np.stack(texts), np.stack(truths)) + FLOOR
    assert error(seen, np.stack(truths)) <= bar


@pytest.mark.parametrize(
    "draw", [dict(temperature=0.0), dict(temperature=0.9, top_p=0.9), dict(top_k=5)]
)
def test_the_same_seeds_write_the_same_text(draw):
    config = CONFIGS["heads share"]
    params, ids = model(config), tokens(config, 3, 4)
    written = []
    for decoder in (None, make_decoder(params, config, threads=2)):
        rngs = sample_rngs(3, range(3))
        written.append(np.stack(list(
            generate(params, config, ids, 60, rngs, end_of_text=7, decoder=decoder, **draw)
        )))  # fmt: skip
    np.testing.assert_array_equal(*written)


def test_one_decoder_serves_batches_of_any_size_and_conversations_in_between():
    config = CONFIGS["plain"]
    decoder = make_decoder(model(config), config, threads=2)
    ids = tokens(config, 5, config.block_size)
    before = read_one_by_one(decoder, ids[:2])
    caches = [KVCache(config, 2, like=decoder.params["norm"]) for _ in range(2)]
    for t in range(4):  # two conversations, in turns
        for cache, rows in zip(caches, (ids[:2], ids[2:4])):
            scores = decoder.read(rows[:, t : t + 1], cache)
            kept = scores.copy()
    read_one_by_one(decoder, ids)
    np.testing.assert_array_equal(scores, kept)  # what was returned is the caller's
    np.testing.assert_array_equal(read_one_by_one(decoder, ids[:2]), before)


def test_what_the_text_refuses_is_refused_in_the_same_words():
    config = CONFIGS["plain"]
    params = model(config)
    for decoder in (Decoder(params, config), make_decoder(params, config, threads=2)):
        cache = KVCache(config, 1, like=params["norm"])
        for unknown in (config.vocab_size, -config.vocab_size - 1):
            with pytest.raises(IndexError):
                decoder.read(np.array([[unknown]]), cache)
        cache.length = config.block_size
        with pytest.raises(ValueError, match="after 9 earlier tokens, but block_size 9 needs"):
            decoder.read(np.array([[0]]), cache)


def test_weights_that_are_not_finite():
    config = CONFIGS["plain"]
    params = model(config)
    params["blocks.1.w_down"][3, 4] = np.inf
    for dtype in ("bf16", "int8"):
        with pytest.raises(UserError, match="weights are not finite numbers, so its training"):
            make_decoder(params, config, dtype)
    decoder = make_decoder(params, config, threads=2)
    with pytest.raises(UserError, match="scores are not finite numbers, so its training"):
        list(generate(params, config, np.array([[1]]), 3, sample_rngs(0, [0]), decoder=decoder))


def test_who_reads(monkeypatch):
    from npgpt.backend.cpu.decode import CompiledDecoder

    config = CONFIGS["plain"]
    assert type(make_decoder(model(config), config)) is CompiledDecoder
    assert type(make_decoder(model(config, dtype=np.float64), config)) is Decoder
    monkeypatch.setattr(npgpt.sampling, "kernels_enabled", lambda: False)
    assert type(make_decoder(model(config), config)) is Decoder
    with pytest.raises(
        UserError, match="--dtype int8 needs the compiled kernels of the numpy back"
    ):
        make_decoder(model(config), config, "int8")


def test_packed_weights_are_as_small_as_promised():
    config = GPTConfig(500, 16, n_layer=2, n_head=4, n_embd=128, n_hidden=256)
    params = model(config)
    sizes = {
        d: make_decoder(params, config, d).bytes_per_token for d in ("float32", "bf16", "int8")
    }
    matrices = sum(w.size for w in params.values() if w.ndim == 2)
    assert sizes == {"float32": 4 * matrices, "bf16": 2 * matrices, "int8": matrices}
    decoder = make_decoder(params, config)
    assert np.shares_memory(decoder.weights.lm_head.packed, params["wte"])


# Threads.


def in_time(function, seconds=20.0):
    """Run a function on a thread of its own; what it returned, or a failure if it hangs."""
    results = []

    def run():
        try:
            results.append(function())
        except BaseException as fault:
            results.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"still waiting after {seconds} s"
    return results[0]


def test_many_more_threads_than_processors_arrive():
    config = CONFIGS["plain"]
    ids = tokens(config, 1, config.block_size)
    expected = read_one_by_one(make_decoder(model(config), config, threads=1), ids)
    decoder = make_decoder(model(config), config, threads=24)
    np.testing.assert_array_equal(in_time(lambda: read_one_by_one(decoder, ids)), expected)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_thread_that_fails_is_not_waited_for(who):
    from npgpt.backend.cpu.team import Team, meet

    team = Team(3)

    def walk(thread, threads, meeting):
        meet(threads, meeting)
        if thread == who:
            raise ZeroDivisionError
        meet(threads, meeting)

    assert isinstance(in_time(lambda: team.run(3, walk)), ZeroDivisionError)
    met = []
    in_time(
        lambda: team.run(3, lambda thread, threads, meeting: met.append(meet(threads, meeting)))
    )
    assert len(met) == 3  # and the team is as good as before


def test_ctrl_c_on_the_way_to_the_meeting_frees_the_others():
    from npgpt.backend.cpu.team import Team, meet

    team, home = Team(3), []

    def walk(thread, threads, meeting):
        if thread == 0:
            time.sleep(0.05)  # the others wait already
            raise KeyboardInterrupt
        meet(threads, meeting)
        home.append(thread)

    assert isinstance(in_time(lambda: team.run(3, walk)), KeyboardInterrupt)
    assert sorted(home) == [1, 2]


def test_nobody_passes_a_meeting_before_all_have_come():
    from npgpt.backend.cpu.team import Team, meet

    def walk(thread, threads, meeting, log):
        for n in range(50):
            log[n, thread] = 1
            meet(threads, meeting)
            seen[thread] += int(log[n].sum())
            meet(threads, meeting)

    for threads in (1, 2, 5):
        log, seen = np.zeros((50, threads), np.int64), [0] * threads
        in_time(partial(Team(threads).run, threads, walk, log))
        assert seen == [50 * threads] * threads


@pytest.mark.parametrize(
    "cost",
    [
        lambda n: 1 / min(n, 4) + 0.01 * n,  # the memory delivers no more to eight
        lambda n: 1 + n,
        lambda n: 1 / n,
        lambda n: 1.0,
    ],
)
@pytest.mark.parametrize("guess", [0, 1, 3, 100])
def test_the_fastest_number_of_threads_is_found(cost, guess):
    from npgpt.backend.cpu.team import try_out

    pace = try_out(guess, least=1, most=12)
    taken = [next(pace)]
    for _ in range(3000):
        taken.append(pace.send(cost(taken[-1])))
    assert set(taken) <= set(range(1, 13))
    assert np.mean([cost(n) for n in taken[-2000:]]) < 1.05 * min(cost(n) for n in range(1, 13))
    for _ in range(1000):  # and now the other processors are taken
        taken.append(pace.send(taken[-1]))
    assert np.mean(np.array(taken[-400:]) == 1) > 0.8


def test_a_number_of_threads_that_is_given_is_kept():
    from npgpt.backend.cpu.team import try_out

    pace = try_out(7, least=3, most=3)
    assert {next(pace)} | {pace.send(1.0 / n) for n in range(1, 200)} == {3}
