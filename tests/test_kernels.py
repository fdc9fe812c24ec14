"""Kernels against the lecture text: as exact, with the same cache, and the same words for faults.

One rule for all: a kernel's error, measured against the text in float64, is at most twice the
error of the text in float32, plus a floor of a few roundings.
"""

import importlib.util
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gradcheck.cases import CASES
from gradcheck.cases import one_more as row
from gradcheck.inputs import (
    biased,
    channels,
    forgetful,
    gates,
    guesses,
    heads,
    masked,
    normal,
    rows,
    tied,
    turned,
    turned_heads,
)
from gradcheck.numerical import flatten
from npgpt import block, model, optim
from npgpt.backend.fused import find_kernel
from npgpt.block import split_qkv
from npgpt.layers import (
    affine_forward,
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    dropped_attention_backward,
    dropped_attention_forward,
    embedding_backward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_attention_backward,
    rope_attention_forward,
    rope_backward,
    rope_forward,
    swiglu_backward,
    swiglu_forward,
)
from npgpt.model import GPTConfig, loss_and_dlogits

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed"),
]

ROOT = Path(__file__).resolve().parent.parent
LEAST_QUERIES, LEAST_ROWS = 4, 32  # of attention and linear: see their files
FLOOR = 4 * 2.0**-24  # four roundings of a number near 1


MORE = (  # on inputs where a kernel has edges
    *(row("rope_attention", f"T {T}, H {H}, G {G}, D {D}", turned_heads(2, T, H, G, D))
      for T, H, G, D in [(4, 2, 2, 2), (33, 4, 2, 6), (130, 3, 1, 64)]),
    *(row("attention", f"T {T}, D {D}", heads(2, T, 2, D))
      for T, D in [(2, 2), (3, 6), (4, 2), (5, 6), (31, 96), (32, 64), (33, 128), (65, 24)]),
    row("attention", "T 200, more than a block of keys", heads(1, 200, 2, 32)),
    row("attention", "T 150, scores that grow", heads(1, 150, 1, 8, loud_future=True)),
    row("attention", "T 40 of S 300, 6 heads share 3", heads(1, 40, 6, 16, G=3, S=300)),
    row("attention", "T 7 of S 8, 4 heads share 1", heads(3, 7, 4, 10, G=1, S=8)),
    row("attention", "T 1 of S 300", heads(2, 1, 4, 16, G=2, S=300)),
    row("attention", "T 140, large scores", heads(1, 140, 1, 16, scale=4.0)),
    *(row("attention_dropout", f"T {T}, D {D}", forgetful(heads(2, T, 2, D), 0.3, start=12345))
      for T, D in [(2, 2), (4, 2), (5, 6), (33, 128), (65, 24)]),
    row("attention_dropout", "T 200, more than a block of keys",
        forgetful(heads(1, 200, 2, 32), 0.2)),
    row("attention_dropout", "T 40 of S 300, 6 heads share 3",
        forgetful(heads(2, 40, 6, 16, G=3, S=300), 0.5, start=2**40)),
    row("attention_dropout", "T 70, nearly all is dropped", forgetful(heads(1, 70, 2, 8), 0.97)),
    row("linear", "33 rows, one channel in", normal(x=(3, 11, 1), w=(1, 5))),
    row("linear", "odd everything", normal(x=(1, 67, 45), w=(45, 83))),
    row("linear", "whole tiles", normal(x=(2, 32, 64), w=(64, 64))),
    row("linear", "more than a part of K", normal(x=(40, 1100), w=(1100, 40))),
    row("linear", "more than a panel of N", normal(x=(300, 20), w=(20, 600))),
    row("linear", "strips side by side, and some left", normal(x=(230, 130), w=(130, 64))),
    row("linear", "a bias, odd everything", biased((3, 67, 45), (45, 83)), like="with a bias"),
    row("linear", "tied head", tied((2, 40, 24), (24, 301))),
    row("rmsnorm", "many rows, odd C", rows((3, 67, 33))),
    row("rmsnorm", "wide", rows((2, 5, 1000), 30.0)),
    row("layernorm", "many rows, odd C", rows((3, 67, 33), bias=True)),
    row("layernorm", "wide", rows((2, 5, 1000), 30.0, bias=True)),
    row("dropout", "odd everything", masked((3, 67, 33), 0.2, start=12345)),
    row("dropout", "a start beyond 32 bits", masked((2, 5), 0.5, start=2**40)),
    row("mlp", "relu, odd everything", channels((3, 67, 33))),
    row("rope", "odd T, D = 6", turned((2, 37, 3, 6))),
    row("rope", "D = 128", turned((1, 5, 2, 128), 77)),
    row("swiglu", "odd F", gates((3, 67, 2 * 37))),
    row("loss", "V no multiple of anything", guesses((3, 7, 331))),
    row("loss", "V = 2", guesses((3, 2))),
    row("loss", "nearly certain", guesses((2, 9, 130), scale=8.0)),
    row("loss", "all far below zero", guesses((2, 9, 130), shift=-200.0)),
)  # fmt: skip
FUSED_CASES = [
    case
    for case in (*CASES, *MORE)
    if hasattr(case.forward, "text") or hasattr(case.backward, "text")
]
WHOLE_CASES = [case for case in CASES if case.layer in ("block", "model")]
FUNCTIONS = (
    attention_forward, attention_backward, cross_entropy_forward, cross_entropy_backward,
    dropout_forward, dropout_backward, dropped_attention_forward, dropped_attention_backward,
    gelu_forward, gelu_backward, gelu_tanh_forward, gelu_tanh_backward, layernorm_forward,
    layernorm_backward, relu_forward, relu_backward,
    embedding_backward, linear_forward, linear_backward, rmsnorm_forward, rmsnorm_backward,
    rope_forward, rope_backward, swiglu_forward, swiglu_backward,
    rope_attention_forward, rope_attention_backward, model.embedding_backward_into,
    model.loss_and_dlogits, affine_forward, block.linear_backward_into, block.affine_backward_into,
    optim.adamw_update, optim.sum_of_squares,
)  # fmt: skip


def named(case):
    return f"{case.layer}: {case.name}"


def text(function):
    return getattr(function, "text", function)


def kernel(function):
    """The kernel of a function, which must take what it is given; the text where there is none."""
    if not hasattr(function, "text"):
        return function
    found = find_kernel("npgpt.backend.cpu", function)
    if found is None:
        return function.text

    def strict(*args, **kwargs):
        result = found(*args, **kwargs)
        assert result is not NotImplemented
        return result

    return strict


def outputs(case, inputs, forward, backward):
    """By name, y and the gradients in float64."""
    y, cache = forward(**inputs)
    grads = case.replace(backward=backward).gradients_of(case.upstream(y), cache)
    return {n: np.asarray(flatten(z), np.float64) for n, z in {"y": y, **grads}.items()}


def error(result, truth):
    """The largest difference in units of the largest number that should be there."""
    assert result.shape == truth.shape
    return np.max(np.abs(result - truth)) / (np.max(np.abs(truth)) or 1.0)


def errors(case, forward, backward, text_forward, text_backward):
    """The error of each output in float32, as two dicts: of these functions, and of the text."""
    single = case.inputs(np.float32)
    double = {  # the same numbers: it is not the kernel's fault that float32 rounds its inputs
        n: z.astype(np.float64) if isinstance(z, np.ndarray) and z.dtype == np.float32 else z
        for n, z in single.items()
    }
    with np.errstate(all="ignore"):
        truth = outputs(case, double, case.forward, case.backward)
        plain = outputs(case, single, text_forward, text_backward)
        fast = outputs(case, single, forward, backward)
    return [{n: error(z, truth[n]) for n, z in result.items()} for result in (fast, plain)]


def refused(case):
    """Rows that a kernel leaves to the text on purpose: they are too small to be worth it."""
    inputs = case.inputs()
    if case.layer in ("attention", "attention_dropout"):
        return inputs["q"].shape[1] < LEAST_QUERIES
    if case.layer == "rope_attention":
        return inputs["qkv"].shape[1] < LEAST_QUERIES
    return case.layer == "linear" and inputs["x"].size < LEAST_ROWS * inputs["x"].shape[-1]


@pytest.mark.parametrize("case", FUSED_CASES, ids=named)
@pytest.mark.parametrize("mix", ["kernel, kernel", "text, kernel", "kernel, text"])
def test_a_kernel_is_as_exact_as_the_text(case, mix):
    """And each half fits with the other half's cache."""
    way = {"kernel": (lambda f: f) if refused(case) else kernel, "text": text}
    forward, backward = mix.split(", ")
    fast, plain = errors(
        case, way[forward](case.forward), way[backward](case.backward),
        text(case.forward), text(case.backward),
    )  # fmt: skip
    for name in fast:
        assert fast[name] <= 2.0 * plain[name] + FLOOR, name


@pytest.mark.parametrize("case", [c for c in FUSED_CASES if c.layer == "loss"], ids=named)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_in_a_step_the_loss_is_differentiated_in_place(case, smoothing):
    single = case.inputs(np.float32)
    logits, targets = single["logits"], single["targets"]
    with np.errstate(all="ignore"):
        truth = loss_and_dlogits.text(logits.astype(np.float64), targets, 0.5, smoothing)
        plain = loss_and_dlogits.text(logits.copy(), targets, 0.5, smoothing)
        fast = kernel(loss_and_dlogits)(logits, targets, 0.5, smoothing)
    assert np.shares_memory(fast[1], logits) and fast[1].shape == logits.shape
    for got, of_text, exact in zip(fast, plain, truth):
        assert got.dtype == np.float32
        assert error(got, exact) <= 2.0 * error(of_text, exact) + FLOOR


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 3, 69])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_in_place_what_is_not_finite_stays_not_finite(bad, place):
    logits, targets = array(2, 70), np.array([3, 5])
    logits[0, place] = bad
    loss, dlogits = loss_and_dlogits.text(logits.copy(), targets, 1.0)
    got, dgot = kernel(loss_and_dlogits)(logits, targets, 1.0)
    assert np.isfinite(got) == np.isfinite(loss)
    np.testing.assert_array_equal(np.isfinite(dgot), np.isfinite(dlogits))


@pytest.mark.parametrize("case", WHOLE_CASES, ids=named)
def test_a_model_of_kernels_is_as_exact_as_one_of_text(case, text_only):
    def with_text(function):
        def call(*args, **kwargs):
            with text_only():
                return function(*args, **kwargs)

        return call

    fast, plain = errors(
        case, case.forward, case.backward, with_text(case.forward), with_text(case.backward)
    )
    # Of many small gradients each is off by chance: the worst of one is held to the other's worst.
    assert max(fast.values()) <= 2.0 * max(plain.values()) + FLOOR


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_kernel_has_the_signature_of_its_text(function):
    found = find_kernel("npgpt.backend.cpu", function)
    assert inspect.signature(found) == inspect.signature(function.text)
    assert inspect.signature(function) == inspect.signature(function.text)
    assert function.__doc__ == function.text.__doc__


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


NONE_BELOW_5 = np.array([[0, 5]])
BELOW_5 = np.array([[0, 4]])
FAULTS = {
    "linear": (linear_forward, array(40, 3), array(4, 3)),
    "a bias": (affine_forward, array(40, 3), array(3, 4), array(3)),
    "rmsnorm gain": (rmsnorm_forward, array(2, 3), array(4)),
    "layernorm gain": (layernorm_forward, array(2, 3), array(4)),
    "layernorm bias": (layernorm_forward, array(2, 3), array(3), array(4)),
    "dropout rate": (dropout_forward, array(2, 3), 1.0, 5),
    "rope table": (rope_forward, array(1, 3, 2, 4), array(3, 3), array(3, 3)),
    "rope odd": (rope_forward, array(1, 3, 2, 5), array(3, 2), array(3, 2)),
    "keys": (attention_forward, array(1, 5, 2, 4), array(1, 5, 2, 3), array(1, 5, 2, 3)),
    "heads": (attention_forward, array(1, 5, 4, 4), array(1, 5, 3, 4), array(1, 5, 3, 4)),
    "a rate of 1": (dropped_attention_forward, *[array(1, 5, 2, 4)] * 3, 1.0, 5),
    "dropped": (dropped_attention_forward, *[array(1, 5, 2, 4)] * 2, array(1, 6, 2, 4), 0.5, 5),
    "too few keys": (attention_forward, array(1, 5, 2, 4), array(1, 4, 2, 4), array(1, 4, 2, 4)),
    "values": (attention_forward, array(1, 5, 2, 4), array(1, 5, 2, 4), array(1, 6, 2, 4)),
    "odd gates": (swiglu_forward, array(2, 5)),
    "targets": (cross_entropy_forward, array(2, 3, 5), np.zeros((2, 4), int)),
    "a target of V": (cross_entropy_forward, array(1, 2, 5), NONE_BELOW_5),
    "dlogits of it": (cross_entropy_backward, 1.0, (array(1, 2, 5), NONE_BELOW_5, array(2, 1))),
    "targets in place": (loss_and_dlogits, array(2, 3, 5), np.zeros((2, 4), int), 1.0),
    "a target of V in place": (loss_and_dlogits, array(1, 2, 5), NONE_BELOW_5, 1.0),
    "a smoothing of 1": (loss_and_dlogits, array(1, 2, 5), BELOW_5, 1.0, 1.0),
    "an id of V": (embedding_backward, array(1, 2, 3), (NONE_BELOW_5, array(5, 3))),
    "dx": (embedding_backward, array(1, 3, 3), (BELOW_5, array(5, 3))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_the_same_words(fault):
    """A kernel that does not like its arguments leaves them to the text."""
    function, *args = FAULTS[fault]
    assert find_kernel("npgpt.backend.cpu", function)(*args) is NotImplemented
    said = []
    for run in (function, function.text):
        with pytest.raises((ValueError, IndexError)) as caught:
            run(*args)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]


def test_a_negative_id_counts_from_the_end_as_in_the_text():
    dx, w = array(1, 3, 2), array(5, 2)
    cache = np.array([[-1, 2, 4]]), w
    assert np.array_equal(embedding_backward(dx, cache), embedding_backward.text(dx, cache))


# Memory and threads.


def test_matrices_are_left_to_blas_where_it_is_faster(monkeypatch):
    from npgpt.backend.cpu import linear

    kernel = find_kernel("npgpt.backend.cpu", linear_forward)
    monkeypatch.setattr(linear, "MOST_WEIGHTS", 200)
    assert kernel(array(40, 2), array(2, 101)) is NotImplemented
    assert kernel(array(40, 2), array(2, 100)) is not NotImplemented


def test_a_transposed_view_gets_its_gradient_in_the_order_of_its_table():
    table = array(70, 24)
    y, cache = linear_forward(array(40, 24), table.T)
    _, dw = linear_backward(y, cache)
    assert dw.shape == (24, 70) and dw.T.flags.c_contiguous


@pytest.mark.parametrize("rows_of_a_piece", [32, 40, 57])
def test_a_row_has_the_same_bits_in_a_smaller_batch(rows_of_a_piece):
    x, w = array(99, 77), array(77, 100)
    whole, _ = linear_forward(x, w)
    piece, _ = linear_forward(x[:rows_of_a_piece], w)
    assert np.array_equal(piece, whole[:rows_of_a_piece])


def test_views_of_one_product_are_read_where_they_lie():
    from npgpt.backend.cpu.memory import heads_in_place

    config = GPTConfig(n_embd=24, n_head=4, n_kv_head=2)
    q, k, v = split_qkv(array(2, 9, 48), config)
    for z in (q, k, v):
        assert not z.flags.c_contiguous and heads_in_place(z) is z
    y, cache = attention_forward(q, k, v)
    whole, _ = attention_forward(*(np.ascontiguousarray(z) for z in (q, k, v)))
    assert np.array_equal(y, whole)
    for mine, given in zip(cache, (q, k, v)):
        assert mine is given


def test_weights_are_dropped_where_the_text_drops_them():
    """Unit vectors as values: what comes out are the weights themselves."""
    B, T, H = 3, 70, 2
    q, k = array(B, T, H, T, seed=1), array(B, T, H, T, seed=2)
    unit = np.broadcast_to(np.eye(T, dtype=np.float32)[None, :, None], (B, T, H, T))
    weights, _ = dropped_attention_forward(q, k, unit, 0.4, 7, 99)
    expected, _ = dropped_attention_forward.text(q, k, unit, 0.4, 7, 99)
    assert np.array_equal(weights == 0.0, expected == 0.0)
    rows_of_a_piece, _ = dropped_attention_forward(q[1:], k[1:], unit[1:], 0.4, 7, 99 + H * T * T)
    assert np.array_equal(rows_of_a_piece, weights[1:])


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[..., ::-1], np.s_[:, 1:], np.s_[:, :, ::2]])
def test_any_strides_will_do(cut):
    x = array(4, 6, 8)[cut]
    dense = np.ascontiguousarray(x)
    w = array(2 * x.shape[-1])[::2]
    for one, other in [
        (rmsnorm_forward(x, w), rmsnorm_forward(dense, w.copy())),
        (swiglu_forward(x), swiglu_forward(dense)),
    ]:
        assert np.array_equal(one[0], other[0])
    heads_view = array(4, 6, 8, 2)[cut].swapaxes(1, 2)
    y, cache = attention_forward(heads_view, heads_view, heads_view)
    dense = np.ascontiguousarray(heads_view)
    expected, expected_cache = attention_forward(dense, dense, dense)
    assert np.array_equal(y, expected)
    for one, other in zip(
        attention_backward(heads_view, cache), attention_backward(dense, expected_cache)
    ):
        assert np.array_equal(one, other)


def test_nothing_is_empty_to_a_kernel():
    """Arrays without numbers are the text's."""
    y, _ = rmsnorm_forward(array(0, 3), array(3))
    assert y.shape == (0, 3)
    y, cache = swiglu_forward(array(2, 0, 4))
    assert y.shape == (2, 0, 2) and swiglu_backward(y, cache).shape == (2, 0, 4)


@pytest.mark.parametrize("case", MORE, ids=named)
def test_threads_side_by_side_get_the_same_bits(case):
    inputs = case.inputs(np.float32)
    expected = outputs(case, inputs, case.forward, case.backward)
    differences = []

    def work():
        for _ in range(3):
            for name, z in outputs(case, inputs, case.forward, case.backward).items():
                if not np.array_equal(z, expected[name]):
                    differences.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == []


def test_attention_over_8192_places():
    """Its last queries see what they see alone, and memory grows with T, not with T²."""
    program = """
import numpy as np
from npgpt.layers import attention_backward, attention_forward
from npgpt.plan import peak_memory_bytes

T, last, D = 8192, 5, 16
rng = np.random.default_rng(1)
q, k, v, dy = (rng.standard_normal((1, T, 1, D), np.float32) for _ in range(4))
dy[:, :-last] = 0.0
few = [z[:, :16].copy() for z in (q, k, v, dy)]
attention_backward(few[3], attention_forward(*few[:3])[1])  # so that they are compiled
before = peak_memory_bytes()
y, cache = attention_forward(q, k, v)
dq, dk, dv = attention_backward(dy, cache)
grown = peak_memory_bytes() - before
double = [z.astype(np.float64) for z in (q[:, -last:], k, v, dy[:, -last:])]
true_y, true_cache = attention_forward(*double[:3])
true_dq, true_dk, true_dv = attention_backward(double[3], true_cache)
for one, other in [(y[:, -last:], true_y), (dq[:, -last:], true_dq), (dk, true_dk), (dv, true_dv)]:
    assert np.abs(one - other).max() < 2e-6 * np.abs(other).max()
assert not dq[:, :-last].any()
assert grown < 64e6, grown  # the scores alone would take 268 MB
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Numbers at the edge.


def test_exp():
    """Its error, as its file states it; and the numbers that are no numbers."""
    from npgpt.backend.cpu.compile import kernel
    from npgpt.backend.cpu.exp import exp

    @kernel
    def of_all(x, y):
        for i in range(x.size):
            y[i] = exp(x[i])

    x = np.concatenate([np.linspace(-87.3, 88.72, 3_000_001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(np.float32)
    y, truth = np.empty_like(x), np.exp(x.astype(np.float64))
    of_all(x, y)
    normal = truth > 2.4e-38  # where the lowest exponent begins, results are flushed to 0
    assert np.max(np.abs(y[normal] / truth[normal] - 1.0)) < 1e-7
    assert np.max(np.abs(y[~normal] - truth[~normal])) < 2.4e-38
    edges = np.array(
        [-np.inf, -1e30, -90.0, 0.0, -0.0, 88.73, 100.0, 1e30, np.inf, np.nan], np.float32
    )
    y = np.empty_like(edges)
    of_all(edges, y)
    np.testing.assert_array_equal(y, [0, 0, 0, 1, 1] + [np.inf] * 4 + [np.nan])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("layer", ["linear", "attention", "rmsnorm", "swiglu", "loss", "rope"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_not_finite(layer, bad):
    """Where the text overflows a kernel does, so that training notices it."""
    case = {
        "linear": row("linear", "", normal(x=(40, 40), w=(40, 40))),
        "attention": row("attention", "", heads(1, 40, 2, 8)),
        "rope": row("rope", "", turned((2, 9, 2, 8))),
        "rmsnorm": row("rmsnorm", "", rows((5, 40))),
        "swiglu": row("swiglu", "", gates((5, 40))),
        "loss": row("loss", "", guesses((5, 70))),
    }[layer]
    # The text of attention multiplies the future's 0 with what is there, 0 · ∞ = NaN, and the
    # kernel does not look at it. So there the bad number is in the first place, which all see.
    for name in case.gradients:
        for place in (0,) if layer == "attention" else (0, -1, 37):
            inputs = case.inputs(np.float32)
            inputs[name].reshape(-1)[place] = bad
            plain = outputs(case, inputs, text(case.forward), text(case.backward))
            fast = outputs(case, inputs, kernel(case.forward), kernel(case.backward))
            for output in plain:
                wrong, expected = ~np.isfinite(fast[output]), ~np.isfinite(plain[output])
                assert wrong.any() == expected.any(), f"{name}, {output}"
                assert not np.any(wrong & ~expected), f"{name}, {output}"
                assert layer == "attention" or np.array_equal(wrong, expected)


# The optimizer.


@pytest.mark.parametrize("size", [1, 5, 4096, 10_007])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adamw_is_as_exact_as_the_text(size, eps):
    rng = np.random.default_rng(size)
    p, m = 0.1 * rng.standard_normal((2, size))
    v, g = m**2 + 1e-4, 0.1 * rng.standard_normal((4, size))
    results = {}
    for name, dtype, update in [
        ("truth", np.float64, optim.adamw_update),
        ("text", np.float32, optim.adamw_update.text),
        ("kernel", np.float32, kernel(optim.adamw_update)),
    ]:
        arrays = [z.astype(np.float32).astype(dtype) for z in (p, m, v)]
        for step, gradient in enumerate(g.astype(np.float32).astype(dtype), 1):
            update(arrays[0], gradient, *arrays[1:], step, 1e-2, 0.9, 0.95, eps, 0.1, 0.3)
        results[name] = arrays
    for truth, plain, fast in zip(*results.values()):
        assert error(fast, truth) <= 2.0 * error(plain, truth) + FLOOR


@pytest.mark.parametrize("size", [1, 4097, 1_000_003])
def test_squares_are_summed_in_float64(size):
    g = array(size)
    truth = np.sum(np.square(g.astype(np.float64)))
    assert optim.sum_of_squares(g) == pytest.approx(truth, rel=1e-7)  # of squares in float32
    assert optim.sum_of_squares(g) == pytest.approx(optim.sum_of_squares.text(g), rel=1e-13)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad, total", [(np.nan, np.nan), (-np.inf, np.inf), (1e25, np.inf)])
def test_the_sum_of_what_is_not_finite(bad, total):
    g = array(999)
    g[500] = bad
    assert optim.sum_of_squares(g) == pytest.approx(total, nan_ok=True)
    assert optim.sum_of_squares.text(g) == pytest.approx(total, nan_ok=True)
