"""What the wrappers of the CUDA kernels do beside computing: shapes, strides, types and refusals.

The kernels run on a CPU, see tests/cuda_on_cpu.
"""

import functools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from cuda_on_cpu.compare import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOOR,
    PACKAGE,
    across,
    array,
    download,
    error,
    install,
    launched,
    on,
    text,
)
from cuda_on_cpu.runner import compiler_version
from fake_device import DeviceArray

from npgpt import layers, optim
from npgpt.backend.cuda import compile as cuda
from npgpt.backend.fused import find_kernel
from npgpt.block import split_qkv
from npgpt.model import GPTConfig

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(compiler_version() is None, reason="there is no g++ of Linux"),
]


@pytest.fixture
def gpu(monkeypatch):
    """A device that runs CUDA C on the CPU, in the place of the GPU."""
    return functools.partial(install, monkeypatch)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("capability, file", [(75, "attention.cu"), (80, "attention_mma.cu")])
def test_tensor_cores_are_used_where_there_are_some(capability, file, dtype, gpu):
    device = gpu(capability=capability)
    q = array(1, 5, 2, 32).astype(dtype)
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
    for function, *rest in [
        (layers.rmsnorm_forward, w), (layers.layernorm_forward, w, w), (layers.gelu_forward,),
        (layers.swiglu_forward,), (layers.dropout_forward, 0.5, 3),
        (layers.position_forward, dense[0]),
    ]:  # fmt: skip
        kernel = find_kernel(PACKAGE, function)
        assert np.array_equal(kernel(view, *rest)[0].get(), kernel(dense, *rest)[0].get())
    heads_view = DeviceArray(device.from_host(array(4, 6, 8, 2))._array[cut].swapaxes(1, 2))
    heads_dense = device.from_host(heads_view.get())
    attention = find_kernel(PACKAGE, layers.attention_forward)
    assert np.array_equal(
        attention(heads_view, heads_view, heads_view)[0].get(),
        attention(heads_dense, heads_dense, heads_dense)[0].get(),
    )


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_masks_are_the_texts_bit_for_bit(dtype, gpu):
    """And the key may lie in the device's memory, where a recorded step finds it."""
    device, ones = gpu(), np.ones((3, 1000), dtype)
    key, start = layers.dropout_key(5, 6), 2**40 + 1
    expected, _ = text(layers.dropout_forward)(ones.astype(np.float32), 0.25, key, start)
    forward, backward = layers.dropout_forward, layers.dropout_backward
    for given in (key, np.array([key], np.uint64)):
        y, cache = on(device, forward)(ones, 0.25, given, start)
        assert np.array_equal(y, expected.astype(dtype))
        assert np.array_equal(on(device, backward)(ones, cache), y)
    T, n_head = 70, 2
    q, unit = (
        array(1, T, n_head, 64),
        np.tile(np.eye(T, 64, dtype=np.float32)[:, None], (n_head, 1)),
    )
    k, v = array(1, T, n_head, 64, seed=1), unit[None]
    y, _ = on(device, layers.dropped_attention_forward)(
        *(z.astype(dtype) for z in (q, k, v)), 0.25, key, start
    )
    weights, _ = text(layers.dropped_attention_forward)(q, k, v, 0.25, key, start)
    assert np.array_equal(y == 0, weights == 0)


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
    "layernorm bias": (layers.layernorm_forward, array(2, 3), array(3), array(4)),
    "layernorm gain": (layers.layernorm_forward, array(2, 3), array(3).astype(FLOAT16)),
    "bias": (layers.affine_forward, array(2, 3), array(3, 5), array(3)),
    "bias dtype": (layers.affine_forward, array(2, 3), array(3, 5), array(5).astype(FLOAT16)),
    "places": (layers.position_forward, array(1, 3, 4), array(5, 4), 3),
    "channels of places": (layers.position_forward, array(1, 3, 4), array(5, 3)),
    "slopes": (layers.gelu_backward, array(2, 3), (array(2, 4),)),
    "rate": (layers.dropout_forward, array(2, 3), 1.0, 5),
    "rate of weights": (layers.dropped_attention_forward, *3 * [array(1, 5, 2, 4)], -0.1, 5),
    "smoothing": (layers.smooth_cross_entropy_forward, array(2, 5), np.array([1, 2]), 1.0),
    "nothing": (layers.swiglu_forward, array(0, 4)),
    "nothing to bend": (layers.relu_forward, array(0, 4)),
    "nothing to drop": (layers.dropout_forward, array(0, 4), 0.5, 5),
    "no rows": (layers.rmsnorm_forward, array(0, 4), array(4)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_left_to_the_text(fault, gpu):
    device = gpu()
    function, *args = FAULTS[fault]
    found = find_kernel(PACKAGE, function)
    assert found(*across(tuple(args), device.from_host)) is NotImplemented
    assert device.launched == []


# Adding, converting, and the optimizer.


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("size", [1, 7, 256, 4096])
def test_adding_and_converting(size, dtype, gpu):
    from npgpt.backend.cuda.elementwise import add, cast

    device = gpu()
    a, b = array(size), 100.0 * array(size, seed=1)
    assert np.array_equal(add(device.from_host(a), device.from_host(b)).get(), a + b)
    half = cast(device.from_host(a), dtype)
    assert np.array_equal(half.get(), a.astype(dtype))
    assert np.array_equal(cast(half, FLOAT32).get(), a.astype(dtype).astype(np.float32))
    assert cast(half, dtype) is half
    other = b.astype(dtype)
    total = add(half, device.from_host(other)).get()
    exact = half.get().astype(np.float32) + other.astype(np.float32)
    assert np.array_equal(total, exact.astype(dtype))


@pytest.mark.filterwarnings("ignore:overflow")
def test_float16_is_rounded_as_numpy_does(gpu):
    """Also what is smaller than its least ordinary number, and to infinity beyond its largest."""
    from npgpt.backend.cuda.elementwise import cast

    device = gpu()
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    wide = every.astype(np.float32)
    assert np.array_equal(cast(device.from_host(every), FLOAT32).get(), wide, equal_nan=True)
    finite = np.sort(wide[np.isfinite(wide)])
    middles = (finite[1:] + finite[:-1]) / 2  # as near to one as to the other
    edges = np.float32([65519.9, 65520.0, 1e9, np.inf])
    for x in (middles, np.nextafter(middles, np.inf, dtype=np.float32), edges, -edges):
        assert np.array_equal(cast(device.from_host(x), FLOAT16).get(), x.astype(np.float16))
    large = device.from_host(np.full(8, 40_000, np.float16))
    assert np.all(on(device, layers.swiglu_forward)(large.get())[0] == np.inf)


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
            rest = 1e-2, 0.9, 0.95, 1e-8, 0.1, 0.3
            assert update(arrays[0], move(gradient), *arrays[1:], step, *rest) is None
        results[name] = download(tuple(arrays))
    for truth, plain, fast in zip(*results.values()):
        assert error(fast, truth) <= 2.0 * error(plain, truth) + FLOOR


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("size, decayed", [(10_000, 4001), (1003, 0), (77, 77)])
def test_all_parameters_in_one_step(size, decayed, dtype, gpu):
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
    knobs = step_knobs(7, 1e-2, 0.9, 0.95, 0.1, 0.25)
    there = [device.from_host(z) for z in (p, g, m, v)]
    shadow = device.empty((size,), dtype)
    adamw(*there, shadow, decayed, device.from_host(knobs), 0.9, 0.95, 1e-8)
    for i in (0, 2, 3):
        assert error(there[i].get(), expected[i]) < 4 * FLOOR
    assert np.array_equal(shadow.get(), there[0].get().astype(dtype))
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
