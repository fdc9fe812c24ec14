"""The CUDA kernels, run on a CPU by tests/cuda_on_cpu, against the lecture text in float64.

In float32 the rule is that of the other kernels: an error of at most twice that of the text in
float32, plus a floor of a few roundings. In bfloat16 the inputs are rounded first, for the truth
too; the arithmetic is float32, so that one rounding of the result is added.
"""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_on_cpu.runner import CpuDevice, build_soon, compiler_version, program
from cuda_on_cpu.variants import attention, attention_on_tensor_cores, variants
from fake_device import DeviceArray

from gradcheck.cases import (
    CASES,
    cases_of,
    gates,
    guesses,
    heads,
    rows,
    tokens,
    turned,
    turned_heads,
)
from gradcheck.numerical import flatten
from npgpt import layers, optim
from npgpt.backend.cuda import compile as cuda
from npgpt.backend.fused import find_kernel
from npgpt.model import GPTConfig, loss_and_dlogits, split_qkv

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(compiler_version() is None, reason="there is no g++ of Linux"),
]

PACKAGE = "npgpt.backend.cuda"
FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
FLOOR = 4 * 2.0**-24  # four roundings of a number near 1 in float32
ROUNDING = 2.0**-8  # one rounding of a number near 1 in bfloat16


def row(layer, name, make):
    """One more row for a layer of gradcheck's table, on inputs where a kernel has edges."""
    return cases_of(layer)[0].replace(name=name, note="", make=make)


MORE = (
    row("attention", "more than a tile of queries and keys", heads(1, 70, 2, 6)),
    row("attention", "vectors, more than a tile", heads(1, 72, 2, 16)),
    row("attention", "T 40 of S 100, 6 heads share 3", heads(1, 40, 6, 16, G=3, S=100)),
    row("attention", "T 7 of S 8, 4 heads share 1", heads(3, 7, 4, 10, G=1, S=8)),
    row("attention", "T 66, scores that grow", heads(1, 66, 1, 16, loud_future=True)),
    row("attention", "D = 128", heads(1, 35, 1, 128)),
    row("attention", "D = 128, more than a tile of each", heads(1, 65, 1, 128)),
    row("attention", "D = 64, T 130 of S 140, 2 heads share 1", heads(1, 130, 2, 64, G=1, S=140)),
    row("attention", "D = 32, one query of S 70", heads(2, 1, 2, 32, G=1, S=70)),
    row("attention", "larger scores", heads(1, 70, 1, 16, scale=3.0)),
    row("rmsnorm", "many rows, odd C", rows((3, 67, 33))),
    row("rmsnorm", "many rows of vectors", rows((2, 37, 72))),
    row("rmsnorm", "wide", rows((2, 5, 1000), 30.0)),
    row("rope", "odd T, D = 6", turned((2, 37, 3, 6))),
    row("rope", "D = 128", turned((1, 5, 2, 128), 77)),
    row("swiglu", "odd F", gates((3, 67, 2 * 37))),
    row("swiglu", "whole vectors", gates((3, 7, 2 * 48))),
    row("loss", "V no multiple of anything", guesses((3, 7, 331))),
    row("loss", "V = 2", guesses((3, 2))),
    row("loss", "more than a block of vectors", guesses((2, 2, 2 * 2080))),
    row("loss", "nearly certain", guesses((2, 9, 130), scale=8.0)),
    row("embedding", "tokens of many chunks", tokens((4, 64), V=50, C=24, used=3)),
    row("embedding", "one token fills all chunks", tokens((2, 64), V=2, C=8, used=1)),
    row("embedding", "more rows than threads", tokens((1, 70), V=2500, C=3, used=2500)),
)
FUNCTIONS = (
    layers.attention_forward, layers.attention_backward,
    layers.cross_entropy_forward, layers.cross_entropy_backward,
    layers.embedding_forward, layers.embedding_backward,
    layers.rmsnorm_forward, layers.rmsnorm_backward, layers.rope_forward, layers.rope_backward,
    layers.swiglu_forward, layers.swiglu_backward, optim.adamw_update, optim.sum_of_squares,
)  # fmt: skip
IN_ONE = layers.rope_attention_forward, layers.rope_attention_backward
KERNEL_CASES = [case for case in (*CASES, *MORE) if {case.forward, case.backward} <= set(FUNCTIONS)]
# RoPE and attention in one are left to two kernels where there are no tensor cores.
BF16_CASES = [
    *KERNEL_CASES,
    row("rope_attention", "D = 16, grouped heads", turned_heads(2, 70, 4, 2, 16)),
    row("rope_attention", "D = 64, more than two tiles", turned_heads(1, 130, 2, 1, 64)),
    row("rope_attention", "D = 128", turned_heads(1, 40, 1, 1, 128)),
]


def named(case):
    return f"{case.layer}: {case.name}"


@pytest.fixture(scope="module", autouse=True)
def compilers():
    """Compile what the tests below will ask for, on all cores and while they begin."""
    for padded in (16, 64, 128, 32):
        build_soon(program(attention(FLOAT32, 4, padded)))
    for D in (16, 64, 128, 32):
        build_soon(program(attention_on_tensor_cores(BFLOAT16, D)))
    for D in (16, 64, 128):
        build_soon(program(attention_on_tensor_cores(BFLOAT16, D, turn=1)))
    for dtype, width in ((FLOAT32, 1), (FLOAT32, 4), (BFLOAT16, 1), (BFLOAT16, 8)):
        for source in (attention(dtype, width, 16), *variants(dtype, width)):
            build_soon(program(source))


@pytest.fixture
def gpu(monkeypatch):
    """A device that runs CUDA C on the CPU, in the place of the GPU."""

    def install(**options):
        device = CpuDevice(**options)
        monkeypatch.setattr(cuda, "device", device)
        return device

    return install


def text(function):
    return getattr(function, "text", function)


def across(value, move):
    """A value with every array in it moved to the other side: tuples as they are."""
    if isinstance(value, tuple):
        return tuple(across(z, move) for z in value)
    return move(value) if isinstance(value, np.ndarray | DeviceArray) else value


def download(value):
    return across(value, lambda z: z.get() if isinstance(z, DeviceArray) else z)


def on(device, function):
    """The kernel of a function, for arrays of the host: it must take what it is given."""
    found = find_kernel(PACKAGE, function)

    def call(*args, **kwargs):
        args = across(args, device.from_host)
        result = found(*args, **{n: across(z, device.from_host) for n, z in kwargs.items()})
        assert result is not NotImplemented
        return download(result)

    return call


def outputs(case, inputs, forward, backward, to=lambda z: z):
    """By name, y and the gradients in float64; dy is that of the true y, in another dtype."""
    y, cache = forward(**inputs)
    dy = case.upstream(np.asarray(y, np.float64) if np.ndim(y) else float(y))
    grads = case.replace(backward=backward).gradients_of(to(dy), cache)
    return {n: np.asarray(flatten(z), np.float64) for n, z in {"y": y, **grads}.items()}


def error(result, truth):
    """The largest difference in units of the largest number that should be there."""
    assert result.shape == truth.shape
    return np.max(np.abs(result - truth)) / (np.max(np.abs(truth)) or 1.0)


def rounded(dtype):
    """Round arrays of floats to a dtype."""

    def to(z):
        return z.astype(dtype) if isinstance(z, np.ndarray) and z.dtype.kind in "fV" else z

    return to


def truth_and_text(case, dtype):
    """What should come out, for inputs of a dtype; and how far off the text in float32 is."""
    there, back = rounded(dtype), rounded(np.float64)
    double = {n: back(there(z)) for n, z in case.inputs().items()}
    single = {n: rounded(np.float32)(z) for n, z in double.items()}
    ways = text(case.forward), text(case.backward)
    with np.errstate(all="ignore"):
        truth = outputs(case, double, *ways, to=lambda dy: back(there(dy)))
        plain = outputs(case, single, *ways, to=lambda dy: rounded(np.float32)(there(dy)))
    return truth, {n: error(z, truth[n]) for n, z in plain.items()}


def wrong_in_float32(case, device, mix="kernel, kernel"):
    """The names of y and gradients that are further off than twice the text in float32."""
    way = {"kernel": lambda f: on(device, f), "text": text}
    forward, backward = mix.split(", ")
    truth, plain = truth_and_text(case, FLOAT32)
    to = rounded(FLOAT32)
    inputs = {n: to(z) for n, z in case.inputs().items()}
    with np.errstate(all="ignore"):
        fast = outputs(case, inputs, way[forward](case.forward), way[backward](case.backward), to)
    return [n for n in fast if not error(fast[n], truth[n]) <= 2.0 * plain[n] + FLOOR]


def wrong_in_bfloat16(case, device):
    """The same for rounded inputs; a backward's truth is the text's, of the same rounded cache."""
    inputs = {n: rounded(BFLOAT16)(z) for n, z in case.inputs().items()}
    y, cache = on(device, case.forward)(**inputs)
    dy = rounded(BFLOAT16)(case.upstream(np.asarray(y, np.float64) if np.ndim(y) else float(y)))
    fast = {"y": y, **case.replace(backward=on(device, case.backward)).gradients_of(dy, cache)}
    results = []
    for dtype in (np.float64, np.float32):
        to = rounded(dtype)
        of_text, _ = text(case.forward)(**{n: to(z) for n, z in inputs.items()})
        by_text = case.replace(backward=text(case.backward))
        with np.errstate(all="ignore"):
            grads = by_text.gradients_of(to(dy), across(cache, to))
        results.append({n: np.asarray(z) for n, z in {"y": of_text, **grads}.items()})
    truth, plain = results
    wrong = []
    for name, z in fast.items():
        z = np.asarray(z)
        # Tensor cores multiply what is rounded: attention's weights, and their slopes.
        roundings = 0 if z.dtype == FLOAT32 else 2 if "attention" in case.layer else 1
        bar = roundings * ROUNDING + 2.0 * error(plain[name], truth[name]) + FLOOR
        if not error(z.astype(np.float64), truth[name]) <= bar:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("case", KERNEL_CASES, ids=named)
@pytest.mark.parametrize("mix", ["kernel, kernel", "text, kernel", "kernel, text"])
def test_in_float32_a_kernel_is_as_exact_as_the_text(case, mix, gpu):
    """And each half fits with the other half's cache."""
    assert wrong_in_float32(case, gpu(), mix) == []


@pytest.mark.parametrize("case", BF16_CASES, ids=named)
def test_in_bfloat16_a_kernel_rounds_its_results(case, gpu):
    assert wrong_in_bfloat16(case, gpu()) == []


PARAMETERS = ("w",)  # whose gradients come back in float32


@pytest.mark.parametrize("case", KERNEL_CASES, ids=named)
def test_statistics_and_gradients_of_parameters_are_float32(case, gpu):
    device = gpu()
    to = rounded(BFLOAT16)
    y, cache = on(device, case.forward)(**{n: to(z) for n, z in case.inputs().items()})
    if case.layer in ("rmsnorm", "loss"):
        assert cache[-1].dtype == FLOAT32
    dy = to(case.upstream(np.asarray(y, np.float64))) if np.ndim(y) else 0.5
    grads = case.replace(backward=on(device, case.backward)).gradients_of(dy, cache)
    for name, grad in grads.items():
        assert grad.dtype == (FLOAT32 if name in PARAMETERS else BFLOAT16), name


def results(case, dtype, device):
    """y and all gradients."""
    inputs = {n: rounded(dtype)(z) for n, z in case.inputs().items()}
    ways = on(device, case.forward), on(device, case.backward)
    return outputs(case, inputs, *ways, rounded(dtype))


@pytest.mark.parametrize(
    "case, dtype",
    [*((case, FLOAT32) for case in KERNEL_CASES), *((case, BFLOAT16) for case in BF16_CASES)],
    ids=lambda z: str(z) if isinstance(z, np.dtype) else named(z),
)
def test_the_order_of_warps_and_blocks_changes_no_bit(case, dtype, gpu):
    one, other = (results(case, dtype, gpu(reverse=reverse)) for reverse in (False, True))
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("function", (*FUNCTIONS, *IN_ONE), ids=lambda f: f.__name__)
def test_a_kernel_has_the_signature_of_its_text(function):
    found = find_kernel(PACKAGE, function)
    assert inspect.signature(found) == inspect.signature(text(function))


# Shapes, strides and types.


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def launched(device):
    """Which files' kernels have run."""
    return {file for file, _ in device.launched}


@pytest.mark.parametrize("capability, file", [(75, "attention.cu"), (80, "attention_mma.cu")])
def test_tensor_cores_are_used_where_there_are_some(capability, file, gpu):
    device = gpu(capability=capability)
    q = array(1, 5, 2, 32).astype(BFLOAT16)
    on(device, layers.attention_forward)(q, q, q)
    assert launched(device) == {file}


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_attention_reads_parts_of_one_array_where_they_lie(dtype, gpu):
    """As the model has them: q, k and v are views of one product."""
    device, config = gpu(), GPTConfig(n_embd=64, n_head=4, n_kv_head=2)
    qkv, dy = array(2, 9, 128).astype(dtype), array(2, 9, 4, 16, seed=1).astype(dtype)
    q, k, v = split_qkv(device.from_host(qkv), config)
    forward, backward = (
        find_kernel(PACKAGE, f) for f in (layers.attention_forward, layers.attention_backward)
    )
    y, cache = forward(q, k, v)
    assert all(mine is given for mine, given in zip(cache, (q, k, v)))
    whole, whole_cache = on(device, layers.attention_forward)(*split_qkv(qkv, config))
    assert np.array_equal(y.get(), whole)
    expected = on(device, layers.attention_backward)(dy, whole_cache)
    for one, other in zip(backward(device.from_host(dy), cache), expected):
        assert np.array_equal(one.get(), other)


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[..., ::-1], np.s_[:, 1:], np.s_[:, :, ::2]])
def test_any_strides_will_do(cut, gpu):
    device = gpu()
    view = DeviceArray(device.from_host(array(4, 6, 8))._array[cut])
    dense = device.from_host(view.get())
    w = device.from_host(array(view.shape[-1]))
    rmsnorm, swiglu = (
        find_kernel(PACKAGE, f) for f in (layers.rmsnorm_forward, layers.swiglu_forward)
    )
    assert np.array_equal(rmsnorm(view, w)[0].get(), rmsnorm(dense, w)[0].get())
    assert np.array_equal(swiglu(view)[0].get(), swiglu(dense)[0].get())
    heads_view = DeviceArray(device.from_host(array(4, 6, 8, 2))._array[cut].swapaxes(1, 2))
    heads_dense = device.from_host(heads_view.get())
    attention = find_kernel(PACKAGE, layers.attention_forward)
    assert np.array_equal(
        attention(heads_view, heads_view, heads_view)[0].get(),
        attention(heads_dense, heads_dense, heads_dense)[0].get(),
    )


def test_ids_may_be_int32(gpu):
    device = gpu()
    ids = np.array([[1, 4, 1], [0, 1, 2]])
    w, dx, logits = array(5, 8), array(2, 3, 8, seed=1), array(2, 3, 5, seed=2)
    for given in (ids, ids.astype(np.int32)):
        x, cache = on(device, layers.embedding_forward)(given, w)
        assert np.array_equal(x, w[ids])
        dw = on(device, layers.embedding_backward)(dx, cache)
        np.testing.assert_allclose(dw, text(layers.embedding_backward)(dx, (ids, w)), rtol=1e-6)
        loss, _ = on(device, layers.cross_entropy_forward)(logits, given)
        assert loss == pytest.approx(text(layers.cross_entropy_forward)(logits, ids)[0], rel=1e-6)


@pytest.mark.parametrize("bad", [-1, 5])
def test_an_id_that_does_not_exist_shows_as_nan(bad, gpu):
    """A kernel can't raise; but what it can't look up must not look like a number."""
    device = gpu()
    ids, w = np.array([[1, bad, 1]]), array(5, 8)
    x, cache = on(device, layers.embedding_forward)(ids, w)
    assert np.isnan(x[0, 1]).all() and np.array_equal(x[0, [0, 2]], w[[1, 1]])
    dw = on(device, layers.embedding_backward)(np.ones((1, 3, 8), np.float32), cache)
    assert np.array_equal(dw.sum(1), [0, 16, 0, 0, 0])
    loss, _ = on(device, layers.cross_entropy_forward)(array(1, 3, 5), ids)
    assert np.isnan(loss)


FAULTS = {
    "rmsnorm gain": (layers.rmsnorm_forward, array(2, 3), array(4)),
    "rope table": (layers.rope_forward, array(1, 3, 2, 4), array(3, 3), array(3, 3)),
    "rope odd": (layers.rope_forward, array(1, 3, 2, 5), array(3, 2), array(3, 2)),
    "keys": (layers.attention_forward, array(1, 5, 2, 4), array(1, 5, 2, 3), array(1, 5, 2, 3)),
    "heads": (layers.attention_forward, array(1, 5, 4, 4), array(1, 5, 3, 4), array(1, 5, 3, 4)),
    "few keys": (layers.attention_forward, array(1, 5, 2, 4), *2 * [array(1, 4, 2, 4)]),
    "values": (layers.attention_forward, array(1, 5, 2, 4), array(1, 5, 2, 4), array(1, 6, 2, 4)),
    "large heads": (layers.attention_forward, *3 * [array(1, 5, 2, 129)]),
    "odd gates": (layers.swiglu_forward, array(2, 5)),
    "targets": (layers.cross_entropy_forward, array(2, 3, 5), np.zeros((2, 4), int)),
    "ids": (layers.embedding_backward, array(1, 1, 3), (np.zeros((1, 1), np.int8), array(5, 3))),
    "dx": (layers.embedding_backward, array(1, 3, 3), (np.array([[0, 4]]), array(5, 3))),
    "float32 in one": (layers.rope_attention_forward, array(1, 3, 96), *2 * [array(3, 8)], 2),
    "other heads": (layers.rope_attention_forward, array(1, 3, 80), *2 * [array(3, 8)], 2),
    "nothing": (layers.swiglu_forward, array(0, 4)),
    "no rows": (layers.rmsnorm_forward, array(0, 4), array(4)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_left_to_the_text(fault, gpu):
    device = gpu()
    function, *args = FAULTS[fault]
    found = find_kernel(PACKAGE, function)
    assert found(*across(tuple(args), device.from_host)) is NotImplemented
    assert device.launched == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_not_finite(bad, dtype, gpu):
    """So that training notices it."""
    device = gpu()
    for forward, shapes in [
        (layers.rmsnorm_forward, [(3, 40), (40,)]),
        (layers.swiglu_forward, [(3, 32)]),
        (layers.attention_forward, 3 * [(1, 20, 1, 16)]),
        (layers.rope_forward, [(1, 3, 2, 8), (3, 4), (3, 4)]),
    ]:
        inputs = [array(*shape, seed=i) for i, shape in enumerate(shapes)]
        inputs[0].reshape(-1)[0] = bad
        y, _ = on(device, forward)(*(z.astype(dtype) for z in inputs))
        expected, _ = text(forward)(*(z.astype(dtype).astype(np.float32) for z in inputs))
        assert np.array_equal(np.isfinite(y.astype(np.float32)), np.isfinite(expected))
    logits = array(2, 50)
    logits[0, 7] = bad
    loss, _ = on(device, layers.cross_entropy_forward)(logits, np.array([3, 4]))
    assert np.isfinite(loss) == (bad == -np.inf)


def test_in_a_step_the_loss_is_differentiated_in_place(gpu):
    device = gpu()
    logits, targets = array(2, 3, 40), np.arange(6).reshape(2, 3)
    loss, cache = on(device, layers.cross_entropy_forward)(logits, targets)
    expected = on(device, layers.cross_entropy_backward)(0.5, cache)
    there = across((logits, targets), device.from_host)
    mean, dlogits = find_kernel(PACKAGE, loss_and_dlogits)(*there, 0.5)
    assert dlogits is there[0] and np.array_equal(dlogits.get(), expected)
    assert mean.get() == loss


# Adding, converting, and the optimizer.


@pytest.mark.parametrize("size", [1, 7, 256, 4096])
def test_adding_and_converting(size, gpu):
    from npgpt.backend.cuda.elementwise import add, cast

    device = gpu()
    a, b = array(size), 100.0 * array(size, seed=1)
    assert np.array_equal(add(device.from_host(a), device.from_host(b)).get(), a + b)
    half = cast(device.from_host(a), BFLOAT16)
    assert np.array_equal(half.get(), a.astype(BFLOAT16))
    assert np.array_equal(cast(half, FLOAT32).get(), a.astype(BFLOAT16).astype(np.float32))
    assert cast(half, BFLOAT16) is half
    other = b.astype(BFLOAT16)
    total = add(half, device.from_host(other)).get()
    exact = half.get().astype(np.float32) + other.astype(np.float32)
    assert np.array_equal(total, exact.astype(BFLOAT16))


@pytest.mark.parametrize("size", [1, 5, 4096, 10_007])
def test_adamw_is_as_exact_as_the_text(size, gpu):
    device = gpu()
    rng = np.random.default_rng(size)
    p, m = 0.1 * rng.standard_normal((2, size))
    v, g = m**2 + 1e-4, 0.1 * rng.standard_normal((4, size))
    results = {}
    for name, dtype, update in [
        ("truth", np.float64, optim.adamw_update),
        ("text", np.float32, optim.adamw_update.text),
        ("kernel", np.float32, find_kernel(PACKAGE, optim.adamw_update)),
    ]:
        move = device.from_host if name == "kernel" else lambda z: z
        arrays = [move(z.astype(np.float32).astype(dtype)) for z in (p, m, v)]
        for step, gradient in enumerate(g.astype(np.float32).astype(dtype), 1):
            rest = 1e-2, 0.9, 0.95, 1e-8, 0.1
            assert update(arrays[0], move(gradient), *arrays[1:], step, *rest) is None
        results[name] = download(tuple(arrays))
    for truth, plain, fast in zip(*results.values()):
        assert error(fast, truth) <= 2.0 * error(plain, truth) + FLOOR


@pytest.mark.parametrize("size, decayed", [(10_000, 4001), (1003, 0), (77, 77)])
def test_all_parameters_in_one_step(size, decayed, gpu):
    """Clipped by a factor that only the device knows; with the shadow that forward works with."""
    from npgpt.backend.cuda.optim import adamw, step_knobs

    device = gpu()
    p, g, m = array(3, size)
    v = m * m + 0.1
    expected = [z.astype(np.float64) for z in (p, g, m, v)]
    expected[1] *= 0.25
    for part, decay in ((np.s_[:decayed], 0.1), (np.s_[decayed:], 0.0)):
        rest = 7, 1e-2, 0.9, 0.95, 1e-8, decay
        optim.adamw_update.text(*(z[part] for z in expected), *rest)
    knobs = step_knobs(7, 1e-2, 0.9, 0.95, 0.1)
    assert knobs[3] == 1.0
    knobs[3] = 0.25
    there = [device.from_host(z) for z in (p, g, m, v)]
    shadow = device.empty((size,), BFLOAT16)
    adamw(*there, shadow, decayed, device.from_host(knobs), 0.9, 0.95, 1e-8)
    for i in (0, 2, 3):
        assert error(there[i].get(), expected[i]) < 4 * FLOOR
    assert np.array_equal(shadow.get(), there[0].get().astype(BFLOAT16))
    assert np.array_equal(there[1].get(), g)


@pytest.mark.parametrize("size", [1, 4097, 3_000_000])
def test_squares_are_summed_in_float64(size, gpu):
    device = gpu()
    g = array(size)
    truth = np.sum(np.square(g.astype(np.float64)))
    assert on(device, optim.sum_of_squares)(g) == pytest.approx(truth, rel=1e-7)


# The seam between wrappers and kernels.


def test_a_kernel_gets_only_what_it_declares(gpu):
    device = gpu()
    kernels = cuda.source("elementwise.cu", FLOAT32, WIDTH=1)
    x, half = device.from_host(array(4)), device.from_host(array(4).astype(BFLOAT16))
    for arguments in [(x, x), (x, half, 4), (x, 1.0, 4)]:
        with pytest.raises(TypeError):
            kernels.launch("narrow", (1,), (256,), arguments)
    assert device.launched == []
    with pytest.raises(OverflowError):
        cuda.source("columns.cu", FLOAT32).launch("sum_columns", (1,), (1024,), (x, x, 2**31, 4))


class FakeFunction:
    """Of a compiled kernel, what CuPy lets one call and set; it writes down what was asked."""

    def __init__(self, name):
        self.name, self.calls, self.max_dynamic_shared_size_bytes = name, [], None

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert type(grid) is type(block) is type(args) is tuple  # CuPy insists
        self.calls.append((grid, block, args, shared_mem))


def test_how_cupy_is_asked_to_launch(monkeypatch):
    """A text is compiled once; a kernel is granted more shared memory only where it needs it."""
    modules = []

    class RawModule:
        def __init__(self, *, code, options):
            self.code, self.options, self.functions = code, options, {}
            modules.append(self)

        def get_function(self, name):
            assert name not in self.functions
            return self.functions.setdefault(name, FakeFunction(name))

    runtime = SimpleNamespace(getDevice=lambda: 0)
    cupy = SimpleNamespace(RawModule=RawModule, cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cuda, "device", cuda.Device())
    kernels = cuda.source("elementwise.cu", FLOAT32, WIDTH=4)
    x = array(8)
    for shared_bytes in (0, 48 * 1024, 60_000, 50_000):
        kernels.launch("add", (1,), (256,), (x, x, x, 8), shared_bytes)
    (module,) = modules
    assert module.code == kernels.text() and module.options == cuda.OPTIONS
    (function,) = module.functions.values()
    assert [call[3] for call in function.calls] == [0, 48 * 1024, 60_000, 50_000]
    assert function.max_dynamic_shared_size_bytes == 60_000
    (*_, n) = function.calls[0][2]
    assert type(n) is np.int64 and n == 8


# Are the tests able to see a fault? Each of these is planted, and must be found.

LONG = "attention", "D = 64, T 130 of S 140, 2 heads share 1"
ONE_BARRIER = "    __syncthreads();\n"
PLANTED = {
    "rmsnorm, a barrier missing": ("rmsnorm", "many rows of vectors", ONE_BARRIER, ""),
    "rmsnorm, a statistic of one lane": ("rmsnorm", "wide", "warp_sum(along)", "along"),
    "columns, lane for warp": ("rmsnorm", "wide", "part[lane][warp]", "part[warp][lane]"),
    "columns, a barrier missing": ("rmsnorm", "many rows of vectors",
        "part[warp][lane] = sum;\n    __syncthreads();", "part[warp][lane] = sum;"),
    "rope, turned on instead of back": ("rope", "odd T, D = 6", "direction * s[i]", "s[i]"),
    "swiglu, the next row's values": ("swiglu", "odd F", "row + F + j", "row + F + j + 1"),
    "loss, a barrier missing": ("loss", "more than a block of vectors", ONE_BARRIER, ""),
    "loss, the first of each vector": ("loss", "more than a block of vectors",
        "v + i == t", "v == t"),
    "embedding, a run that begins with its chunk": ("embedding", "tokens of many chunks",
        "starts[v] < first", "starts[v] <= first"),
    "embedding, in the order of arrival": ("embedding", "one token fills all chunks",
        "ordered[starts[v] + smaller]", "ordered[slot]"),
    "attention, a look at the future": ("attention", "vectors, more than a tile",
        "bool seen = s + COLUMN + j * SIDE <=", "bool seen = s - 1 + COLUMN + j * SIDE <="),
    "attention, a barrier missing": ("attention", "vectors, more than a tile",
        "__syncthreads();  // the weights are there", "// the weights are there"),
    "attention, another barrier missing": ("attention", "vectors, more than a tile",
        "__syncthreads();  // nobody reads values", "// nobody reads values"),
    "attention, half a row's sum": ("attention", "vectors, more than a tile",
        "for (int m = SIDE / 2", "for (int m = SIDE / 4"),
    "tensor cores, a look at the future": (*LONG,
        "s + COLUMN_OF(n, i) <= last", "s + COLUMN_OF(n, i) <= last + 1"),
    "tensor cores, no look at itself": (*LONG,
        "start + own + ROW_OF(i) <= t", "start + own + ROW_OF(i) < t"),
    "tensor cores, a barrier missing": (*LONG,
        "__syncthreads();  // nobody reads the tiles", "// nobody reads the tiles"),
    "tensor cores, a wrong lane": (*LONG,
        "n * 8 + lane % 8 + lane / 16 * 8", "n * 8 + lane % 16"),
    "tensor cores, turned on instead of back": ("rope_attention", "D = 16, grouped heads",
        "b * turn - a * tilt", "b * turn + a * tilt"),
    "tensor cores, a sum over two lanes": (*LONG,
        "return x + __shfl_xor_sync(ALL_LANES, x, 2);", "return x;"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, gpu):
    layer, name, right, wrong = PLANTED[fault]
    (case,) = (c for c in BF16_CASES if c.layer == layer and c.name == name)
    dtype = BFLOAT16 if fault.startswith("tensor") else FLOAT32
    planted = []

    def change(source):
        planted.append(right in source)
        return source.replace(right, wrong)

    check = wrong_in_bfloat16 if dtype == BFLOAT16 else wrong_in_float32
    try:
        seen = check(case, gpu(change=change))
        one, other = (results(case, dtype, gpu(change=change, reverse=r)) for r in (False, True))
        seen = seen or any(not np.array_equal(one[n], other[n]) for n in one)
    except RuntimeError:  # the shim has found it
        seen = True
    assert any(planted) and seen
