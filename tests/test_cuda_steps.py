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

from npgpt import chance, loss_scale, plan
from npgpt.backend import fused
from npgpt.backend.cuda import compile as cuda
from npgpt.backend.cuda import linear, rounding, runtime, steps, uploads
from npgpt.backend.cuda.cublaslt import CublasLt
from npgpt.backend.cuda.rounding import supported
from npgpt.backend.cuda.steps import DeviceSteps, How
from npgpt.block import affine_backward_into, join_qkv, linear_forward_onto, meet
from npgpt.errors import UserError
from npgpt.loss_scale import LossScale
from npgpt.model import Chance, GPTConfig, Parameters, init_parameters, loss_and_gradients
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
    runtime, accumulate=1, dtype="float32", graph=True, clip=CLIP, config=CONFIG, loss_scale=None,
    **how,
):  # fmt: skip
    params, grads, optimizer = start(xp=FakeModule, config=config)
    how = How(B, accumulate, clip, dtype, graph, **how)
    return DeviceSteps(params, grads, optimizer, config, how, runtime, loss_scale=loss_scale)


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
        results.append((loss / accumulate, norm, 1.0))
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
        "cross_entropy_in_place",
        "embedding_rows",
        "rmsnorm_forward",
        "rmsnorm_backward",
    } <= {kernel for _, kernel in gpu.launched}


@pytest.mark.parametrize(
    "dtype, stored, rtol", [("bf16", "bfloat16", 1e-2), ("fp16", "float16", 5e-4)]
)
def test_16_bits_learn_and_the_weights_are_the_masters_rounded(gpu, dtype, stored, rtol):
    device = device_steps(FakeRuntime(), dtype=dtype)
    for ids, targets in batches(4):
        device.take(ids, targets, LR)
    expected, weights = text_steps(4)
    results = np.array(device.results())
    assert np.allclose(results[0, :2], expected[0][:2], rtol=rtol)
    assert np.allclose(results[:, :2], np.array(expected)[:, :2], rtol=3e-2)  # steps magnify it
    assert np.all(results[:, 2] == (2.0**16 if dtype == "fp16" else 1.0))
    assert device.weights.flat.dtype.name == stored and device.params.flat.dtype == np.float32
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
    norms = [norm for _, norm, _ in device.results()]
    assert np.isfinite(norms[0]) and not np.isfinite(norms[1])
    after = [on_host(x) for x in (device.params.flat, device.optimizer.m, device.optimizer.v)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))


@np.errstate(over="ignore", invalid="ignore")  # a GPU says nothing of it
@pytest.mark.parametrize("graph", [True, False])
def test_a_scale_that_is_too_large_skips_halves_and_recovers(gpu, monkeypatch, graph):
    """As npgpt/loss_scale.py has it; and a skipped step changes nothing, bit for bit."""
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    monkeypatch.setattr(steps, "GROW_AFTER", 3)
    runtime = FakeRuntime()
    device = device_steps(runtime, 2, "fp16", graph, loss_scale=LossScale(2.0**22, 1))
    expected, skipped = LossScale(2.0**22, 1), 0
    for i, (ids, targets) in enumerate(batches(9, accumulate=2)):
        state = device.params.flat, device.optimizer.m, device.optimizer.v, device.weights.flat
        before = [z.get() for z in state]
        device.take(ids, targets, LR)
        ((loss, norm, scale),) = device.results()
        finite = np.isfinite(norm)
        assert np.isfinite(loss) and scale == expected.scale
        expected = expected.after(finite)
        assert device.loss_scale == expected
        skipped += not finite
        assert device.optimizer.step == i + 1 - skipped
        same = [np.array_equal(a, b.get()) for a, b in zip(before, state)]
        assert same == [not finite] * 4, f"step {i}"
    assert 1 <= skipped < 6 and expected.scale < 2.0**22
    assert runtime.notes.count("launch") == (7 if graph else 0)


@np.errstate(over="ignore", invalid="ignore")
def test_skipped_steps_are_not_counted_and_the_others_are_those_of_float32(gpu):
    """AdamW's bias correction and dropout's masks go by different counts; the host waits once."""
    taken = {}
    for first in (2.0**20, 2.0**12):
        device = device_steps(FakeRuntime(), 1, "fp16", loss_scale=LossScale(first))
        batch = batches(1)[0]
        for _ in range(8):
            device.take(*batch, LR)  # the same batch: so a skipped step is only a delay
        norms = np.array(device.results())[:, 1]
        good = norms[np.isfinite(norms)]
        assert device.optimizer.step == len(good)
        taken[first] = good
    few, all_ = taken.values()
    assert 3 <= len(few) < len(all_) == 8
    assert np.allclose(few, all_[: len(few)], rtol=2e-3)
    assert not np.allclose(all_[1:], all_[:-1], rtol=2e-2)  # each step has a norm of its own


def test_at_a_scale_of_1_the_run_has_gone_wrong(gpu):
    device = device_steps(FakeRuntime(), 1, "fp16", loss_scale=LossScale(2.0, 5))
    first, *rest = batches(5)
    device.take(*first, LR)
    before = [on_host(x) for x in (device.params.flat, device.optimizer.m, device.optimizer.v)]
    whole = device.weights["norm"]._array[0]
    device.weights["norm"]._array[0] = np.inf
    for batch in rest[:3]:
        device.take(*batch, LR)
    device.weights["norm"]._array[0] = whole
    device.take(*rest[3], LR)  # in the queue already
    results = device.results()
    assert [scale for _, _, scale in results] == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert [bool(np.isfinite(norm)) for _, norm, _ in results] == [True, False, False, False, True]
    assert device.loss_scale == LossScale(1.0, 0) and device.optimizer.step == 1
    after = [on_host(x) for x in (device.params.flat, device.optimizer.m, device.optimizer.v)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))


def test_without_the_scale_what_is_small_is_lost(gpu):
    """A share of the loss that a large batch's row has: in float16 nothing of it is left."""
    norms = {}
    for scale in (1.0, 2.0**16):
        params, grads, _ = start(xp=FakeModule)
        weights = Parameters(CONFIG, gpu.from_host(params.flat.get().astype(np.float16)))
        ids, targets = (gpu.from_host(x) for x in batches(1)[0])
        S = gpu.from_host(np.array(scale * 2.0**-20, np.float32))
        loss_and_gradients(weights, grads, ids, targets, CONFIG, S)
        norms[scale] = np.linalg.norm(on_host(grads.flat)) / scale * 2.0**20
    expected = text_steps(1)[0][0][1]
    assert norms[2.0**16] == pytest.approx(expected, rel=4e-3)
    assert norms[1.0] < 0.9 * expected


@pytest.mark.parametrize("dtype", ["float32", "fp16"])
def test_without_a_limit_nothing_is_clipped(gpu, dtype):
    moments = []
    for clip in (0.0, 1e-3):
        device = device_steps(FakeRuntime(), 1, dtype, clip=clip)
        device.take(*batches(1)[0], LR)
        ((_, norm, _),) = device.results()
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_a_matrix_and_its_bias_are_added_where_they_are_made(gpu, dtype):
    rng = np.random.default_rng(1)
    x, w, dy, g, gb = map(
        rng.standard_normal, [(3, 70, 16), (16, 24), (3, 70, 24), (16, 24), (24,)]
    )
    x, w, dy = (z.astype(KINDS_BY_NAME[dtype]) for z in (x, w, dy))
    totals = [gpu.from_host(z.astype(np.float32)) for z in (g, gb)]
    expected = [on_host(z) for z in totals]
    cache = gpu.from_host(x), gpu.from_host(w)
    dx = affine_backward_into(gpu.from_host(dy), cache, *totals)
    double = [z.astype(np.float64) for z in (dy, x, w)]
    want = affine_backward_into.text(double[0], tuple(double[1:]), *expected)
    off = np.abs(on_host(dx) - want).max() / np.abs(want).max()
    assert off < (1e-6 if dtype == "float32" else 2.0**-8)
    for got, total in zip(totals, expected):
        assert np.abs(on_host(got) - total).max() < 1e-4
    assert {kernel for _, kernel in gpu.launched} == {"sum_rows", "sum_columns"}
    before = [on_host(z) for z in totals]
    with pytest.raises(ValueError):
        affine_backward_into(gpu.from_host(dy[:2]), cache, *totals)
    assert all(np.array_equal(a, on_host(b)) for a, b in zip(before, totals))


def test_a_stream_with_gaps_is_added_by_a_kernel_of_its_own(gpu):
    x, w, wide = (
        np.random.default_rng(1).standard_normal(shape, np.float32)
        for shape in ((2, 7, 16), (16, 24), (2, 7, 25))
    )
    given = [gpu.from_host(z) for z in (wide, x, w)]
    for stream, kernels in ((given[0][..., :24], {"add"}), (gpu.from_host(wide[..., 1:]), set())):
        gpu.launched.clear()
        total, _ = linear_forward_onto(stream, *given[1:])
        assert np.abs(total.get() - stream.get() - x @ w).max() < 1e-5
        assert {kernel for _, kernel in gpu.launched} == kernels


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
    said = capsys.readouterr().err
    assert said.count("needs a GPU of compute capability 8.0, and this one has 7.5: ") == 3
    assert said.count(": training in float32; it can do --dtype fp16\n") == 3
    assert supported("fp16", 75, CONFIG) == "fp16" and capsys.readouterr().err == ""
    assert supported("fp16", 61, CONFIG) == supported(None, 61, CONFIG) == "float32"
    said = capsys.readouterr().err
    assert "fp16 needs a GPU of compute capability 7.5, and this one has 6.1: training in" in said
    assert "it can do" not in said
    assert supported("float32", 75, CONFIG) == "float32" and supported(None, 80, CONFIG) == "bf16"
    assert supported("tf32", 90, CONFIG) == "tf32" and capsys.readouterr().err == ""


def test_what_has_no_kernels_is_not_computed_in_bf16(capsys, monkeypatch):
    assert supported(None, 90, CONFIG) == "bf16" and capsys.readouterr().err == ""
    monkeypatch.setattr(rounding, "find_kernel", lambda package, function: None)
    assert supported("bf16", 90, CONFIG) == supported(None, 90, CONFIG) == "tf32"
    assert supported("fp16", 90, CONFIG) == "tf32" and supported("fp16", 75, CONFIG) == "float32"
    assert "no bf16 kernels for rmsnorm_forward, rmsnorm_backward, " in capsys.readouterr().err
    assert supported("float32", 90, CONFIG) == "float32"
    forgetful = replace(CONFIG, attention_dropout=0.1)
    assert "dropped_attention_backward" in rounding.without_kernels(forgetful)
    monkeypatch.undo()
    for large, said in ((dict(n_embd=1024, n_head=4), "heads of 256 channels"),):
        assert supported("bf16", 90, replace(CONFIG, **large)) == "tf32"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("dtype, bar", [("float32", 2e-5), ("bf16", 3e-2), ("fp16", 1e-2)])
def test_other_compositions_run_as_the_text_does(dtype, bar, gpu):
    """Dropout, smoothing, biases and tables that are not decayed; all of it in kernels."""
    config = replace(CONFIG, norm="layernorm", position="learned", mlp="gelu", bias=True,
                     dropout=0.1, attention_dropout=0.1)  # fmt: skip
    assert rounding.without_kernels(config, smoothing=0.1) == []
    runtime = FakeRuntime()
    device = device_steps(runtime, 2, dtype, config=config, smoothing=0.1, seed=4)
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
    assert np.allclose([row[:2] for row in device.results()], expected, rtol=bar)
    if dtype == "float32":
        assert np.abs(on_host(device.params.flat) - params.flat).mean() < 2e-6
    assert runtime.notes.count("record") == 1 and runtime.notes.count("launch") == 2


def test_a_recorded_step_reads_the_keys_of_its_masks(gpu, monkeypatch):
    """What is made on the host while a graph is recorded would be the same in every step."""
    runtime = FakeRuntime()
    device = device_steps(runtime, config=replace(CONFIG, dropout=0.1, attention_dropout=0.1))
    make = chance.dropout_key

    def outside_of_the_queue(*numbers):
        assert not runtime.in_step_memory
        return make(*numbers)

    monkeypatch.setattr(chance, "dropout_key", outside_of_the_queue)
    for ids, targets in batches(4):
        device.take(ids, targets, LR)
    assert runtime.notes.count("launch") == 2
    assert {"dropout", "attention_forward"} <= {kernel for _, kernel in gpu.launched}


def test_the_text_drops_without_a_graph(gpu, text_only):
    """It wants its keys as numbers."""
    with text_only():
        runtime = FakeRuntime()
        device = device_steps(runtime, config=replace(CONFIG, dropout=0.1))
        for ids, targets in batches(4):
            device.take(ids, targets, LR)
        assert np.all(np.isfinite(device.results())) and "record" not in runtime.notes


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
