"""Training in fp16: gradients that would vanish, the scale that saves them, and steps skipped."""

import importlib.util
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
from training_helpers import SMALL, call, fingerprint, quick, weights

import train
from npgpt import loss_scale, training
from npgpt.checkpoint import list_checkpoints, load_checkpoint
from npgpt.layers import linear_backward, linear_forward
from npgpt.loss_scale import LossScale, unscale
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient, gradient_norm
from npgpt.runs import read_log

compiled = pytest.mark.skipif(
    not importlib.util.find_spec("numba"), reason="Numba is not installed"
)
CONFIG = GPTConfig(
    vocab_size=2000, block_size=32, n_layer=2, n_head=2, n_embd=48, n_hidden=80, n_kv_head=1
)
RUN = [*SMALL, "--run", "a", "--dtype", "fp16", "--log-every", "4"]
MOST = float(np.finfo(np.float16).max)


@pytest.fixture
def factors():
    """Chooses what factors are rounded to, for the length of a test."""
    from npgpt.backend.cpu.linear import round_factors

    yield round_factors
    round_factors("float32")


@pytest.fixture
def here(tmp_path, monkeypatch, factors):
    """A folder of its own for each test that trains, and the shortest way through it."""
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)


def begin_with(monkeypatch, scale):
    """Let new runs begin with another scale."""
    monkeypatch.setattr(training, "LossScale", lambda *saved: LossScale(*(saved or (scale,))))


# ---------------------------------------------------------------------------- the scale


def test_the_scale_goes_down_at_once_and_up_in_the_end(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    now, scales = LossScale(8.0), []
    for finite in (True, True, True, True, False, True, True, False, True, True, True, True):
        now = now.after(finite)
        scales.append(now.scale)
    assert scales == [8, 8, 16, 16, 8, 8, 8, 4, 4, 4, 8, 8]
    assert now.good_steps == 1


def test_the_scale_never_goes_below_1():
    now = LossScale()
    for _ in range(20):
        now = now.after(False)
    assert now == LossScale(1.0, 0)


@pytest.mark.parity
def test_the_scales_are_torchs(monkeypatch):
    """torch.amp.GradScaler halves, doubles and skips at the same steps."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert loss_scale.GROW_AFTER == torch.amp.GradScaler("cpu").get_growth_interval()
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 4)
    theirs = torch.amp.GradScaler("cpu", growth_interval=4)
    ours, scales = LossScale(), set()
    assert loss_scale.LossScale().scale == theirs.get_scale()  # both begin with 65,536
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    for finite in np.random.default_rng(5).random(200) < 0.86:
        assert ours.scale == theirs.get_scale()
        assert ours.good_steps == theirs._get_growth_tracker()
        before = p.detach().clone()
        theirs.scale(p.sum()).backward()
        if not finite:
            p.grad[1] = math.inf
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert bool(torch.equal(p.detach(), before)) != finite
        ours = ours.after(finite)
        scales.add(ours.scale)
    assert len(scales) > 5 and min(scales) > 1.0  # torch's go on below 1


def test_a_scale_changes_no_digit():
    """Backward is linear, and a power of two moves exponents only: bit for bit the gradient."""
    params = init_parameters(CONFIG, seed=1)
    grads = {}
    for scale in (1.0, 2.0**16):
        g = params.zeros_like()
        loss_and_gradients(params, g, *batch(0), CONFIG, scale)
        unscale(g.flat, scale)
        grads[scale] = g.flat
    np.testing.assert_array_equal(grads[1.0], grads[2.0**16])


# ---------------------------------------------------------------------------- fp16 on a processor


@compiled
def test_rounding_is_that_of_numpy():
    from npgpt.backend.cpu.matmul_fp16 import rounded

    rng = np.random.default_rng(1)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = 0.5 * (finite[1:] + finite[:-1])  # halfway, and one float32 to either side
    beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    edges = np.array([MOST, 65519.996, 65520, -65520, 3e38, -0.0, 1e-45], np.float32)
    some = rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    x = np.concatenate([halves, middles, *beside, edges, some])
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    got = rounded(x.reshape(-1, 1))[:, 0]
    is_nan = np.isnan(x)
    assert np.array_equal(np.isnan(got), is_nan)
    assert np.array_equal(got[~is_nan].view(np.uint32), want[~is_nan].view(np.uint32))


@compiled
@pytest.mark.parametrize("turned", [False, True])
def test_linear_is_the_text_on_rounded_factors(factors, turned):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 21, 50), np.float32)
    w = rng.standard_normal((70, 50) if turned else (50, 70), np.float32)
    w = w.T if turned else w
    dy = rng.standard_normal((3, 21, 70), np.float32)
    dy[0, 0, :3] = 1e-7, 1e-8, 6e-5  # a digit is left of the first, and none of the second
    factors("fp16")
    y, cache = linear_forward(x, w)
    dx, dw = linear_backward(dy, cache)
    half = [z.astype(np.float16).astype(np.float64) for z in (x, w, dy)]
    want_y, want_cache = linear_forward.text(*half[:2])
    want_dx, want_dw = linear_backward.text(half[2], want_cache)
    for got, want in ((y, want_y), (dx, want_dx), (dw, want_dw)):
        assert got.dtype == np.float32
        assert np.max(np.abs(got - want)) <= 1e-6 * np.max(np.abs(want))
    exact = linear_forward.text(x.astype(np.float64), w.astype(np.float64))[0]
    assert np.max(np.abs(y - exact)) > 1e-5 * np.max(np.abs(exact))  # it is fp16 that was tested


@compiled
def test_what_is_too_large_becomes_infinite(factors):
    factors("fp16")
    x, w = np.ones((32, 4), np.float32), np.ones((4, 3), np.float32)
    x[0, 0], x[1, 0], w[1, 2] = MOST, 1.01 * MOST, 1e6
    y, _ = linear_forward(x, w)
    assert np.array_equal(np.isinf(y[:, 0]), np.arange(32) == 1)
    assert np.all(np.isinf(y[:, 2]))


def batch(step, rows=8):
    ids = np.random.default_rng([9, step]).integers(0, 7, (rows, CONFIG.block_size + 1))
    ids = np.cumsum(ids, axis=1) % CONFIG.vocab_size  # the next token is one of seven: learnable
    return ids[:, :-1], ids[:, 1:]


@compiled
def test_without_a_scale_gradients_vanish(factors):
    """Of a batch of 1,024 parts like this one, as large models take, each has that share."""
    share = 1.0 / 1024
    params = init_parameters(CONFIG, seed=1)

    def gradient(scale):
        g = params.zeros_like()
        loss_and_gradients(params, g, *batch(0), CONFIG, scale * share)
        unscale(g.flat, scale)
        return g.flat

    exact = gradient(1.0)
    factors("fp16")
    bare, scaled = gradient(1.0), gradient(2.0**16)
    table = params["wte"].size  # it comes first, and what was not read has no gradient but this one
    assert np.mean(exact[:table] == 0) < 0.01
    assert np.mean(bare[:table] == 0) > 0.5
    assert np.mean(scaled[:table] == 0) < 0.01
    far, near = (np.linalg.norm(g - exact) / np.linalg.norm(exact) for g in (bare, scaled))
    assert near < 0.005  # factors of 11 digits: 2⁻¹² each, and some more
    assert far > 10 * near


@compiled
def test_curve_lies_near_that_of_float32(factors):
    """Of large batches, as above; and without the scale it is another curve."""
    config, share, curves = replace(CONFIG, vocab_size=200), 1.0 / 8192, {}
    for name, dtype, scale in (
        ("float32", "float32", 1.0), ("scaled", "fp16", 2.0**16), ("bare", "fp16", 1.0),
    ):  # fmt: skip
        factors(dtype)
        params = init_parameters(config, seed=1)
        grads, optimizer, losses = params.zeros_like(), AdamW.for_parameters(params), []
        optimizer.eps *= share  # so that the step is the one of the whole batch
        for step in range(50):
            ids, targets = (part % config.vocab_size for part in batch(step))
            grads.flat[...] = 0.0
            loss = loss_and_gradients(params, grads, ids, targets, config, scale * share)
            losses.append(float(loss))
            unscale(grads.flat, scale)
            clip_gradient(grads.flat, share)
            optimizer.update(params.flat, grads.flat, 2e-3)
        curves[name] = np.array(losses)
    assert curves["float32"][-1] < 0.9 * curves["float32"][0]  # it learns
    apart = {n: np.mean(np.abs(c - curves["float32"])) for n, c in curves.items()}
    assert apart["scaled"] < 0.001  # nats
    assert apart["bare"] > 0.1


# ---------------------------------------------------------------------------- steps and runs


@compiled
def test_a_skipped_step_changes_nothing(here, capsys, monkeypatch):
    """Bit for bit: weights, AdamW's memory, and its count."""
    begin_with(monkeypatch, 2.0**22)
    seen = []

    def take_step(run, *args):
        state = run.params.flat, run.optimizer.m, run.optimizer.v
        before, count = [z.copy() for z in state], run.optimizer.step
        scale = run.loss_scale
        result = original(run, *args)
        loss, norm, used = result
        finite = math.isfinite(norm)
        seen.append((finite, used))
        assert used == scale.scale and run.loss_scale == scale.after(finite)
        same = [np.array_equal(a, b) for a, b in zip(before, state)]
        assert same == [not finite] * 3
        assert run.optimizer.step == count + finite
        assert math.isfinite(loss)  # only the gradient was too large
        return result

    original = train.take_step
    monkeypatch.setattr(train, "take_step", take_step)
    status, out, _ = call(capsys, *RUN)
    assert status == 0
    skipped = [not finite for finite, _ in seen]
    count = sum(skipped)
    assert 2 <= count <= 5 and skipped == [True] * count + [False] * (12 - count)
    assert [used for _, used in seen[: count + 1]] == [2.0 ** (22 - i) for i in range(count + 1)]

    records = [r for r in read_log("runs/a") if "loss" in r]
    assert [r["scale"] for r in records] == [used for _, used in seen]
    assert [r["norm"] is None for r in records] == skipped
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert f" | {min(count, 4)} skipped | " in lines[0]
    assert f" | scale {2 ** (22 - count):,} | " in lines[2] and "skipped" not in lines[2]
    state = load_checkpoint(list_checkpoints("runs/a")[-1]).state
    assert state["loss_scale"] == [2.0 ** (22 - count), 12 - count]
    assert state["optimizer_step"] == 12 - count


@compiled
def test_a_stopped_run_goes_on_bit_for_bit(here, capfd, tmp_path, monkeypatch):
    """With a scale that has been halved, and grows again between the stops."""
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 5)
    begin_with(monkeypatch, 2.0**24)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert call(capfd, *RUN)[0] == 0
    scales = [r["scale"] for r in read_log("runs/a") if "scale" in r]
    assert scales[0] > min(scales) < scales[-1]
    monkeypatch.chdir(tmp_path)

    def take_step(run, *args):
        if run.step in (1, 6):
            signal.raise_signal(signal.SIGINT)
        return original(run, *args)

    original = train.take_step
    monkeypatch.setattr(train, "take_step", take_step)
    statuses = [call(capfd, *RUN)[0]] + [call(capfd, "--resume", "--run", "a")[0] for _ in "ab"]
    assert statuses == [130, 130, 0]
    assert fingerprint("runs/a") == fingerprint("whole/runs/a")


@compiled
def test_a_run_may_change_to_fp16_and_back(here, capsys):
    def state():
        return load_checkpoint(list_checkpoints("runs/a")[-1]).state

    assert call(capsys, *SMALL, "--run", "a")[0] == 0
    assert state()["loss_scale"] is None
    assert call(capsys, "--resume", "--run", "a", "--steps", "16", "--dtype", "fp16")[0] == 0
    assert state()["loss_scale"] == [2.0**16, 4]
    assert call(capsys, "--resume", "--run", "a", "--steps", "20", "--dtype", "float32")[0] == 0
    assert state()["loss_scale"] is None
    assert ["scale" in r for r in read_log("runs/a") if "loss" in r] == (
        [False] * 12 + [True] * 4 + [False] * 4
    )


@compiled
def test_a_run_is_that_of_float32_but_for_rounding(here, capsys):
    status, out, _ = call(capsys, *RUN)
    assert status == 0
    assert out.startswith("on a processor --dtype fp16 is there to be studied: it is slower than ")
    assert "\nstep 04/12 | loss " in out and out.count(" | scale 65,536 | ") == 3
    assert call(capsys, *SMALL, "--run", "b")[0] == 0
    half, single = (
        np.array([(r["loss"], r["norm"]) for r in read_log(f"runs/{name}") if "loss" in r])
        for name in "ab"
    )
    assert np.allclose(half, single, rtol=2e-3) and not np.array_equal(half, single)
    moments = [weights(f"runs/{name}")["optimizer", "m"] for name in "ab"]
    assert np.linalg.norm(moments[0] - moments[1]) < 1e-2 * np.linalg.norm(moments[1])


@compiled
def test_a_run_that_explodes_ends(here, capsys, monkeypatch):
    """Halving does not help it: at a scale of 1 the sentence is that of float32."""
    begin_with(monkeypatch, 4.0)
    explode = "--lr 1e20 --min-lr 0 --clip 0 --save-every 1 --eval-every 50".split()
    status, _, err = call(capsys, *RUN, *explode)
    assert status == 2
    assert err.startswith("error: the gradient of step ") and err.count("\n") == 1, err
    assert "start a new run with a smaller --lr than 1e+20" in err
    records = [r for r in read_log("runs/a") if "loss" in r]
    assert [r["scale"] for r in records if r["norm"] is None] == [4.0, 2.0]
    arrays = weights("runs/a")
    assert all(np.all(np.isfinite(a)) for (group, _), a in arrays.items() if group == "model")
    state = load_checkpoint(list_checkpoints("runs/a")[-1]).state
    taken = sum(r["norm"] is not None for r in records)
    assert state["loss_scale"] == [1.0, 0] and state["optimizer_step"] == taken


def test_without_kernels_there_is_a_sentence(here, capsys, text_only):
    with text_only():
        status, _, err = call(capsys, *RUN)
    assert status == 2
    assert err.startswith("error: --dtype fp16 needs the compiled kernels: install numba, and ")


def test_a_norm_is_judged_after_it_is_unscaled():
    """Clipping bounds the gradient of the loss, not that of the loss times the scale."""
    g = np.array([3e5, 4e5], np.float32)
    unscale(g, 2.0**20)
    assert gradient_norm(g) == pytest.approx(5e5 / 2**20)
    before = g.copy()
    assert clip_gradient(g, 1.0) == pytest.approx(5e5 / 2**20)
    assert np.array_equal(g, before)
