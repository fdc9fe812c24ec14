"""Training in bf16 on a CPU: factors rounded to 8 binary digits, sums in float32."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from npgpt.backend import bfloat16
from npgpt.layers import linear_backward, linear_forward
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient
from npgpt.parallel import Workers
from npgpt.training import choose_dtype

if importlib.util.find_spec("numba"):
    from npgpt.backend.cpu import linear, matmul_bf16

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed"),
]

SHAPES = [(1, 1, 1), (6, 64, 2), (7, 65, 3), (33, 5, 1), (100, 130, 97), (40, 600, 2050)]
CONFIG = GPTConfig(
    vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=48, n_hidden=80, n_kv_head=1
)


@pytest.fixture
def bf16():
    """bf16 for the length of a test, on any processor."""
    assert linear.round_factors("bf16", emulate=True)
    yield
    linear.round_factors("float32")


@pytest.mark.parametrize(("native", "slow"), [(False, False), (True, True), (True, False)])
def test_where_bf16_gains_nothing_it_stays_float32(native, slow, monkeypatch, capsys):
    monkeypatch.setattr(matmul_bf16, "NATIVE", native)
    monkeypatch.setattr(matmul_bf16, "SLOW", slow)
    pays = native and not slow
    try:
        choose_dtype(SimpleNamespace(dtype="bf16"), np)
        assert ("would gain nothing" in capsys.readouterr().out) != pays
        x = np.full((64, 64), 1 + 2.0**-9, np.float32)  # one digit more than bf16 has
        y, _ = linear.linear_forward(x, x)
        assert y[0, 0] == (64 if pays else 64 * (1 + 2.0**-9) ** 2)
    finally:
        linear.round_factors("float32")


def rounded(x):
    return x.astype(bfloat16()).astype(np.float64)


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize("M, N, K", SHAPES)
def test_product_of_rounded_factors(M, N, K, a_turned, b_turned):
    rng = np.random.default_rng(M + N + K)
    a = rng.standard_normal((K, M) if a_turned else (M, K), np.float32)
    b = rng.standard_normal((N, K) if b_turned else (K, N), np.float32)
    c = np.full((M, N), np.nan, np.float32)
    matmul_bf16.multiply_bf16(c, a, b, a_turned, b_turned, False)
    left, right = rounded(a.T if a_turned else a), rounded(b.T if b_turned else b)
    # A float32 sum of K products loses at most K roundings of the sum of their sizes.
    bound = (K + 1) * 2.0**-24 * (np.abs(left) @ np.abs(right))
    assert np.all(np.abs(c - left @ right) <= bound)


def test_rounding_is_to_the_nearest_and_even():
    bits = np.random.default_rng(1).integers(0, 1 << 32, 20_000, np.uint32)
    edges = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 1]
    bits = np.concatenate([bits, np.array(edges, np.uint32)])
    got = np.array([matmul_bf16.rounded(b) for b in bits], np.uint16)
    numbers = bits.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        want = numbers.astype(bfloat16()).view(np.uint16)
    is_nan = np.isnan(numbers)
    np.testing.assert_array_equal(got[~is_nan], want[~is_nan])
    assert np.all(np.isnan((got[is_nan].astype(np.uint32) << 16).view(np.float32)))


def test_the_instruction_is_the_processors_own():
    """What LLVM makes of the native form, for a processor that has bf16: built, not run."""
    from llvmlite import binding, ir

    if binding.llvm_version_info < (16,) or "x86" not in binding.get_default_triple():
        pytest.skip("this LLVM does not know the instruction by the name that is used")
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    sums = ir.VectorType(ir.FloatType(), 16)
    pairs = ir.VectorType(ir.IntType(32), 16)
    function = ir.Function(module, ir.FunctionType(sums, [pairs, pairs, sums]), "dot")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(matmul_bf16.Pairs.multiply_add(builder, *function.args, native=True))
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="sapphirerapids")
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert "vdpbf16ps" in assembly


@pytest.mark.parametrize("turned", [False, True])
def test_linear_is_the_text_on_rounded_factors(bf16, turned):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 21, 50), np.float32)
    w = rng.standard_normal((70, 50) if turned else (50, 70), np.float32)
    w = w.T if turned else w
    dy = rng.standard_normal((3, 21, 70), np.float32)
    y, cache = linear_forward(x, w)
    dx, dw = linear_backward(dy, cache)
    want_y, want_cache = linear_forward.text(rounded(x), rounded(w))
    want_dx, want_dw = linear_backward.text(rounded(dy), want_cache)
    for got, want in ((y, want_y), (dx, want_dx), (dw, want_dw)):
        assert got.dtype == np.float32
        assert np.max(np.abs(got - want)) <= 1e-6 * np.max(np.abs(want))
    exact = linear_forward.text(x.astype(np.float64), w.astype(np.float64))[0]
    assert np.max(np.abs(y - exact)) > 1e-4 * np.max(np.abs(exact))  # it is bf16 that was tested


def batch(step, rows=4):
    ids = np.random.default_rng([9, step]).integers(0, 7, (rows, CONFIG.block_size + 1))
    ids = np.cumsum(ids, axis=1) % CONFIG.vocab_size  # the next token is one of seven: learnable
    return ids[:, :-1], ids[:, 1:]


def gradient(threads=1):
    params = init_parameters(CONFIG, seed=1)
    grads = params.zeros_like()
    Workers(params, threads, most_rows=2).loss_and_gradients(params, grads, *batch(0), CONFIG)
    return grads.flat


def test_gradient_is_near_that_of_float32():
    exact = gradient()
    linear.round_factors("bf16", emulate=True)
    try:
        near, again = gradient(), gradient()
    finally:
        linear.round_factors("float32")
    np.testing.assert_array_equal(near, again)
    apart = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-4 < apart < 0.02  # of a product of two rounded factors: 2^-9 each, and some more


def curve(steps):
    """The loss of each step of a training."""
    params = init_parameters(CONFIG, seed=1)
    grads, optimizer, losses = params.zeros_like(), AdamW.for_parameters(params), []
    for step in range(steps):
        grads.flat[...] = 0.0
        losses.append(float(loss_and_gradients(params, grads, *batch(step), CONFIG)))
        clip_gradient(grads.flat, 1.0)
        optimizer.update(params.flat, grads.flat, 2e-3)
    return np.array(losses)


def torch_curve(steps, autocast):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from benchmarks.torch_baseline import BaselineGPT

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of so small a model more would only wait for each other
    model = BaselineGPT(CONFIG, init_parameters(CONFIG, seed=1))
    optimizer = model.optimizer(2e-3)
    losses = []
    for step in range(steps):
        ids, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in batch(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    return np.array(losses)


def test_curve_lies_as_near_to_float32_as_torchs():
    steps = 100
    exact = curve(steps)
    linear.round_factors("bf16", emulate=True)
    try:
        ours = np.abs(curve(steps) - exact)
    finally:
        linear.round_factors("float32")
    torchs = np.abs(torch_curve(steps, autocast=True) - torch_curve(steps, autocast=False))
    assert exact[-1] < 0.7 * exact[0]  # it learns
    # Roundings are chance, and steps magnify them: twice torch's distance is still as near.
    assert np.mean(ours) <= 2 * np.mean(torchs)
    assert np.max(ours) <= 2 * np.max(torchs)


def test_a_processor_without_bf16_says_no(monkeypatch):
    monkeypatch.setattr(matmul_bf16, "NATIVE", False)
    assert not linear.round_factors("bf16")
    assert linear.round_factors("float32")
