"""The GPU's training step, without a GPU: the same losses and weights as train.py's own.

The kernels are the real sources, run on the processor (see cuda_on_cpu); matrix products are made
by fake_cublaslt, streams and graphs by fake_runtime.
"""

from dataclasses import replace

import numpy as np
import pytest
from cuda_on_cpu.runner import CpuDevice, compiler_version
from fake_cublaslt import KINDS_BY_NAME, FakeClock, FakeDll
from fake_device import DeviceArray, FakeModule
from fake_runtime import FakeRuntime

from npgpt import plan
from npgpt.backend import fused
from npgpt.backend.cuda import compile as cuda
from npgpt.backend.cuda import linear, rounding, runtime, steps, uploads
from npgpt.backend.cuda.cublaslt import CublasLt
from npgpt.backend.cuda.rounding import supported
from npgpt.backend.cuda.steps import DeviceSteps, How
from npgpt.errors import UserError
from npgpt.model import (
    Chance,
    GPTConfig,
    Parameters,
    init_parameters,
    join_qkv,
    loss_and_gradients,
    meet,
)
from npgpt.optim import AdamW, clip_gradient
from npgpt.sampling import generate, make_decoder, sample_rngs

if compiler_version() is None:
    pytest.skip("there is no C++ compiler to run CUDA sources with", allow_module_level=True)

CONFIG = GPTConfig(
    vocab_size=24, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=128, n_hidden=48
)
B, LR, CLIP = 3, 1e-2, 0.5


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Arrays of the fake device go to the CUDA sources, which a processor runs."""
    device = CpuDevice()
    monkeypatch.setattr(cuda, "device", device)
    monkeypatch.setattr(linear, "open_library", lambda: (CublasLt(FakeDll(), FakeClock()), None))
    monkeypatch.setattr(linear.Products, "tf32", False)
    monkeypatch.setattr(runtime, "Runtime", FakeRuntime)
    monkeypatch.setitem(fused.KERNELS, DeviceArray, "npgpt.backend.cuda")
    return device


def batches(count, accumulate=1):
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (count, B * accumulate, 17))
    return [(batch[:, :-1], batch[:, 1:]) for batch in ids]


def start(dtype=np.float32, xp=np, config=CONFIG):
    params = Parameters(config, xp.asarray(init_parameters(config, seed=3, dtype=dtype).flat))
    return params, params.zeros_like(), AdamW.for_parameters(params)


def device_steps(
    runtime, accumulate=1, dtype="float32", graph=True, clip=CLIP, config=CONFIG, **how
):
    params, grads, optimizer = start(xp=FakeModule, config=config)
    how = How(B, accumulate, clip, dtype, graph, **how)
    return DeviceSteps(params, grads, optimizer, config, how, runtime)


def text_steps(count, accumulate=1):
    """What train.py does, in float64."""
    params, grads, optimizer = start(np.float64)
    results = []
    for ids, targets in batches(count, accumulate):
        grads.flat[...] = 0.0
        loss = 0.0
        for first in range(0, len(ids), B):
            rows = slice(first, first + B)
            loss += loss_and_gradients(
                params, grads, ids[rows], targets[rows], CONFIG, 1.0 / accumulate
            )
        norm = clip_gradient(grads.flat, CLIP)
        optimizer.update(params.flat, grads.flat, LR)
        results.append((loss / accumulate, norm))
    return results, params.flat


def on_host(x):
    return x.get().astype(np.float64)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("graph", [True, False])
def test_steps_are_those_of_the_text(gpu, accumulate, graph):
    runtime = FakeRuntime()
    device = device_steps(runtime, accumulate, graph=graph)
    for ids, targets in batches(5, accumulate):
        device.take(ids, targets, LR)
    results = device.results()
    expected, weights = text_steps(5, accumulate)
    assert np.allclose(results, expected, rtol=2e-5)
    # The mean, for Adam magnifies the rounding of a gradient that is nearly 0 to a whole step.
    assert np.abs(on_host(device.params.flat) - weights).mean() < 1e-6
    assert device.optimizer.step == 5 and device.results() == []
    assert runtime.notes.count("record") == graph
    assert runtime.notes.count("launch") == (3 if graph else 0)
    assert {
        "judge",
        "adamw",
        "cross_entropy_rows",
        "embedding_rows",
        "rmsnorm_forward",
        "rmsnorm_backward",
    } <= {kernel for _, kernel in gpu.launched}


def test_bf16_learns_and_its_weights_are_the_masters_rounded(gpu):
    device = device_steps(FakeRuntime(), dtype="bf16")
    for ids, targets in batches(4):
        device.take(ids, targets, LR)
    expected, weights = text_steps(4)
    results = np.array(device.results())
    assert np.allclose(results, expected, rtol=3e-2)
    assert device.weights.flat.dtype.name == "bfloat16" and device.params.flat.dtype == np.float32
    rounded = device.params.flat.get().astype(device.weights.flat.dtype)
    assert np.array_equal(device.weights.flat.get(), rounded)
    moved = np.abs(weights - start(np.float64)[0].flat).mean()
    assert np.abs(on_host(device.params.flat) - weights).mean() < 0.25 * moved


def test_a_gradient_that_is_not_finite_changes_nothing_from_then_on(gpu):
    device = device_steps(FakeRuntime())
    (first, second, third) = batches(3)
    device.take(*first, LR)
    before = [on_host(x) for x in (device.params.flat, device.optimizer.m, device.optimizer.v)]
    whole = device.params["norm"]._array[0]
    device.params["norm"]._array[0] = np.inf
    device.take(*second, LR)
    device.params["norm"]._array[0] = whole
    device.take(*third, LR)  # in the queue already, when the host hears of the one before
    norms = [norm for _, norm in device.results()]
    assert np.isfinite(norms[0]) and not np.isfinite(norms[1])
    after = [on_host(x) for x in (device.params.flat, device.optimizer.m, device.optimizer.v)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))


def test_without_a_limit_nothing_is_clipped(gpu):
    moments = []
    for clip in (0.0, 1e-3):
        device = device_steps(FakeRuntime(), clip=clip)
        device.take(*batches(1)[0], LR)
        ((_, norm),) = device.results()
        moments.append((np.linalg.norm(on_host(device.optimizer.m)), norm))
    (free, norm), (clipped, same) = moments
    assert norm == same > 0.5
    assert free == pytest.approx(0.1 * norm, rel=1e-5)
    assert clipped == pytest.approx(0.1 * 1e-3, rel=1e-5)


def test_what_can_not_be_recorded_runs_without_a_graph(gpu, capsys):
    runtime = FakeRuntime(records=False)
    device = device_steps(runtime)
    for ids, targets in batches(4):
        device.take(ids, targets, LR)
    assert np.allclose(device.results(), text_steps(4)[0], rtol=2e-5)
    said = capsys.readouterr().err
    assert said.count("can't be recorded as a CUDA graph") == 1
    assert "this stream can not be captured" in said


def test_uploads_wait_for_what_they_must_and_for_nothing_else(gpu):
    runtime = FakeRuntime()
    way = uploads.Uploads(runtime, [((2,), np.float32)])
    for i in range(2 * uploads.SLOTS):
        way.put([np.full(2, i, np.float32)])
        assert np.all(way.inputs[0].get() == i)
    first, later = runtime.notes[:6], runtime.notes[6 * uploads.SLOTS :][:6]
    assert first == [
        ("host waits", None), ("wait", "uploads", None), "send",
        ("event", "uploads"), ("wait", "step", "uploads"), ("event", "step"),
    ]  # fmt: skip
    assert later == [
        ("host waits", "uploads"), ("wait", "uploads", "step"), "send",
        ("event", "uploads"), ("wait", "step", "uploads"), ("event", "step"),
    ]  # fmt: skip


def test_too_many_steps_can_not_wait(gpu, monkeypatch):
    monkeypatch.setattr(steps, "MOST_WAITING", 2)
    device = device_steps(FakeRuntime())
    batch = batches(1)[0]
    device.take(*batch, LR)
    device.take(*batch, LR)
    with pytest.raises(RuntimeError, match="results"):
        device.take(*batch, LR)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 16), (1, 5, 3, 1, 5), (3, 1, 2, 2, 8)])
def test_what_lies_between_the_layers(gpu, dtype, shape):
    B, T, H, G, D = shape
    rng = np.random.default_rng(1)
    q, k, v, p = (
        rng.standard_normal((B, T, n, D)).astype(KINDS_BY_NAME[dtype]) for n in (H, G, G, H)
    )
    device = [gpu.from_host(z) for z in (q, k, v, p)]
    joined, met = join_qkv(*device[:3]), meet(device[0], device[3])
    assert np.array_equal(joined.get(), join_qkv.text(q, k, v))
    exact = (q.astype(np.float32) + p.astype(np.float32)).astype(q.dtype)
    assert met.dtype == q.dtype and np.array_equal(met.get(), exact)
    assert {kernel for _, kernel in gpu.launched} == {"join", "add"}


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_sampling_writes_what_the_text_writes(gpu, dtype):
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    written, params = {}, {"host": start()[0], "gpu": start(xp=FakeModule)[0]}
    for where, weights in params.items():
        decoder = make_decoder(weights, CONFIG, dtype) if where == "gpu" else None
        ids = generate(
            weights, CONFIG, prompts, 18, sample_rngs(0, [0, 1]), temperature=0.0, decoder=decoder
        )
        written[where] = np.array(list(ids))
    same = np.mean(written["host"] == written["gpu"])
    assert written["gpu"].shape == (18, 2) and same == 1.0 if dtype == "float32" else same > 0.3
    assert "attention_forward" in {kernel for _, kernel in gpu.launched}


def test_a_place_of_a_text_is_recorded_when_it_is_met_again(gpu):
    weights, prompt = start(xp=FakeModule)[0], np.array([[1, 2, 3]])
    decoder = make_decoder(weights, CONFIG)
    expected = list(generate(start()[0], CONFIG, prompt, 6, sample_rngs(0, [0])))
    for text, recorded in enumerate((0, 5, 5)):
        written = list(generate(weights, CONFIG, prompt, 6, sample_rngs(0, [0]), decoder=decoder))
        assert np.array_equal(written, expected)
        assert decoder.runtime.notes.count("record") == recorded
        assert decoder.runtime.notes.count("launch") == (5 * text)


def test_two_texts_that_take_turns_are_not_mixed(gpu):
    weights = start(xp=FakeModule)[0]
    decoder, host = make_decoder(weights, CONFIG), start()[0]

    def begin(params, first, decoder=None):
        return generate(
            params, CONFIG, np.array([[first, 3]]), 7, sample_rngs(0, [first]), decoder=decoder
        )

    expected = [list(begin(host, first)) for first in (1, 2)]
    writers = [begin(weights, first, decoder) for first in (1, 2)]
    written = [[], []]
    for which in (0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1):
        written[which].append(next(writers[which]))
    assert np.array_equal(written, expected)


def test_where_no_graph_can_be_recorded_tokens_come_without(gpu, capsys):
    weights, prompt = start(xp=FakeModule)[0], np.array([[1]])
    decoder = make_decoder(weights, CONFIG)
    decoder.runtime.records = False
    texts = [
        list(generate(weights, CONFIG, prompt, 4, sample_rngs(0, [0]), decoder=decoder))
        for _ in range(3)
    ]
    assert np.array_equal(texts[0], texts[2])
    assert capsys.readouterr().err.count("a token can't be recorded as a CUDA graph") == 1


def test_int8_is_for_a_cpu(gpu):
    with pytest.raises(UserError, match="--dtype int8 is for a CPU: leave it out"):
        make_decoder(start(xp=FakeModule)[0], CONFIG, "int8")


def test_bf16_is_for_what_has_kernels(gpu, monkeypatch):
    weights = start(xp=FakeModule)[0]
    monkeypatch.setattr(gpu, "_capability", 75)
    with pytest.raises(
        UserError, match=r"GPUs of compute capability below 8\.0: leave out --dtype"
    ):
        make_decoder(weights, CONFIG, "bf16")
    monkeypatch.setattr(gpu, "_capability", 90)
    monkeypatch.setattr(rounding, "find_kernel", lambda package, function: None)
    with pytest.raises(
        UserError, match=r"no bf16 kernels for rmsnorm_forward, .*leave out --dtype"
    ):
        make_decoder(weights, CONFIG, "bf16")


def test_old_gpus_train_in_float32(capsys):
    for dtype in ("bf16", "tf32", None):
        assert supported(dtype, 75, CONFIG) == "float32"
    assert capsys.readouterr().err.count("of compute capability 7.5") == 3
    assert supported("float32", 75, CONFIG) == "float32" and supported(None, 80, CONFIG) == "bf16"
    assert supported("tf32", 90, CONFIG) == "tf32" and capsys.readouterr().err == ""


def test_what_has_no_kernels_is_not_computed_in_bf16(capsys, monkeypatch):
    assert supported(None, 90, CONFIG) == "bf16" and capsys.readouterr().err == ""
    monkeypatch.setattr(rounding, "find_kernel", lambda package, function: None)
    assert supported("bf16", 90, CONFIG) == supported(None, 90, CONFIG) == "tf32"
    assert "no bf16 kernels for rmsnorm_forward, rmsnorm_backward, " in capsys.readouterr().err
    assert supported("float32", 90, CONFIG) == "float32"
    monkeypatch.undo()
    for large, said in (
        (dict(n_embd=1024, n_head=4), "heads of 256 channels"),
        (dict(n_embd=4096, n_head=64), "streams of 4096 channels"),
    ):
        assert supported("bf16", 90, replace(CONFIG, **large)) == "tf32"
        assert said in capsys.readouterr().err


def test_other_compositions_run_as_the_text_does(gpu):
    """Dropout, smoothing, biases and tables that are not decayed, in float32."""
    config = replace(CONFIG, norm="layernorm", position="learned", mlp="gelu", bias=True,
                     dropout=0.1)  # fmt: skip
    runtime = FakeRuntime()
    device = device_steps(runtime, 2, config=config, smoothing=0.1, seed=4)
    params, grads, optimizer = start(np.float64, config=config)
    optimizer.first_decayed = device.optimizer.first_decayed = params["wte"].size
    expected = []
    for step, (ids, targets) in enumerate(batches(4, accumulate=2)):
        device.take(ids, targets, LR)
        grads.flat[...] = 0.0
        loss = 0.0
        for first in (0, B):
            rows = slice(first, first + B)
            loss += 0.5 * loss_and_gradients(
                params, grads, ids[rows], targets[rows], config, 0.5, Chance(4, step, first), 0.1
            )
        expected.append((loss, clip_gradient(grads.flat, CLIP)))
        optimizer.update(params.flat, grads.flat, LR)
    assert np.allclose(device.results(), expected, rtol=2e-5)
    assert np.abs(on_host(device.params.flat) - params.flat).mean() < 2e-6
    assert "record" not in runtime.notes, "a graph would drop the same channels in every step"


def test_a_batch_that_does_not_fit_is_told_with_one_that_would(gpu, monkeypatch):
    runtime = FakeRuntime()
    device = device_steps(runtime)

    def full(*args):
        raise MemoryError

    monkeypatch.setattr(steps, "loss_and_gradients", full)
    rows = plan.row_bytes(CONFIG)
    state = plan.training_bytes(CONFIG, B) - B * rows
    ids, targets = batches(1)[0]
    for there, said in (
        (int((state + 2.5 * rows) / 0.9), "--batch-size 2 would fit, with --accumulate 2 "),
        (int((state + 1.5 * rows) / 0.9), "--batch-size 1 would fit, with --accumulate 3 "),
        (state // 2, "too little for a single row"),
    ):
        runtime.memory_bytes = lambda there=there: (0, there)
        with pytest.raises(UserError, match=said):
            device.rehearse(ids, targets)


def test_a_rehearsal_changes_no_weight(gpu):
    device = device_steps(FakeRuntime(), accumulate=2)
    before = on_host(device.params.flat)
    device.rehearse(*batches(1)[0])
    assert np.array_equal(on_host(device.params.flat), before) and device.results() == []
    for ids, targets in batches(2, accumulate=2):
        device.take(ids, targets, LR)
    assert np.allclose(device.results(), text_steps(2, accumulate=2)[0], rtol=2e-5)
