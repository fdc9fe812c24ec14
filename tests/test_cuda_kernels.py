"""The CUDA kernels, run on a CPU by tests/cuda_on_cpu, against the lecture text in float64.

The rule is told in tests/cuda_on_cpu/compare.py, and the rows on which it is tried stand there too.
"""

import functools
import inspect

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from cuda_on_cpu.compare import (
    BETWEEN,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FUNCTIONS,
    IN_ONE,
    KERNEL_CASES,
    PACKAGE,
    ROUNDED_CASES,
    array,
    install,
    named,
    on,
    results,
    rounded,
    text,
    wrong_in_float32,
    wrong_when_rounded,
    wrong_where_branches_meet,
)
from cuda_on_cpu.runner import build_soon, compiler_version, program
from cuda_on_cpu.variants import attention, attention_on_tensor_cores, variants

from npgpt import block, layers
from npgpt.backend.fused import find_kernel

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(compiler_version() is None, reason="there is no g++ of Linux"),
]


@pytest.fixture(scope="module", autouse=True)
def compilers():
    """Compile what the tests below will ask for, on all cores and while they begin."""
    for padded in (16, 64, 128, 32):
        build_soon(program(attention(FLOAT32, 4, padded)))
    for dtype in (BFLOAT16, FLOAT16):
        for D in (16, 64, 128, 32):
            build_soon(program(attention_on_tensor_cores(dtype, D)))
        for D in (16, 64, 128):
            build_soon(program(attention_on_tensor_cores(dtype, D, turn=1)))
    for dtype, most in ((FLOAT32, 4), (BFLOAT16, 8), (FLOAT16, 8)):
        for width in (1, most):
            for source in (attention(dtype, width, 16), *variants(dtype, width)):
                build_soon(program(source))


@pytest.fixture
def gpu(monkeypatch):
    """A device that runs CUDA C on the CPU, in the place of the GPU."""
    return functools.partial(install, monkeypatch)


@pytest.mark.parametrize("case", KERNEL_CASES, ids=named)
@pytest.mark.parametrize("mix", ["kernel, kernel", "text, kernel", "kernel, text"])
def test_in_float32_a_kernel_is_as_exact_as_the_text(case, mix, gpu):
    """And each half fits with the other half's cache."""
    assert wrong_in_float32(case, gpu(), mix) == []


@pytest.mark.parametrize("case", ROUNDED_CASES, ids=named)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_in_16_bits_a_kernel_rounds_its_results(case, dtype, gpu):
    assert wrong_when_rounded(case, dtype, gpu()) == []


@pytest.mark.parametrize("case", [c for c in KERNEL_CASES if c.layer in block.NORMS], ids=named)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_what_went_past_a_branch_is_added_before_its_norm_rounds(case, dtype, gpu):
    device = gpu()
    assert wrong_where_branches_meet(case, dtype, device) == []
    assert ("elementwise.cu", "add") not in device.launched


PARAMETERS = "w", "b", "wpe"  # whose gradients come back in float32


@pytest.mark.parametrize("case", KERNEL_CASES, ids=named)
def test_statistics_and_gradients_of_parameters_are_float32(case, gpu):
    device = gpu()
    to = rounded(BFLOAT16)
    y, cache = on(device, case.forward)(**{n: to(z) for n, z in case.inputs().items()})
    kept = cache[0] if case.name.startswith("smooth") else cache
    if case.layer in ("rmsnorm", "layernorm", "loss"):
        assert kept[-1].dtype == FLOAT32
    dy = to(case.upstream(np.asarray(y, np.float64))) if np.ndim(y) else 0.5
    grads = case.replace(backward=on(device, case.backward)).gradients_of(dy, cache)
    for name, grad in grads.items():
        assert grad.dtype == (FLOAT32 if name in PARAMETERS else BFLOAT16), name


@pytest.mark.parametrize(
    "case, dtype",
    [*((case, FLOAT32) for case in KERNEL_CASES), *((case, BFLOAT16) for case in ROUNDED_CASES)],
    ids=lambda z: str(z) if isinstance(z, np.dtype) else named(z),
)
def test_the_order_of_warps_and_blocks_changes_no_bit(case, dtype, gpu):
    one, other = (results(case, dtype, gpu(reverse=reverse)) for reverse in (False, True))
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("function", (*FUNCTIONS, *IN_ONE, *BETWEEN), ids=lambda f: f.__name__)
def test_a_kernel_has_the_signature_of_its_text(function):
    found = find_kernel(PACKAGE, function)
    assert inspect.signature(found) == inspect.signature(text(function))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_not_finite(bad, dtype, gpu):
    """So that training notices it."""
    device = gpu()
    for forward, shapes in [
        (layers.rmsnorm_forward, [(3, 40), (40,)]),
        (layers.layernorm_forward, [(3, 40), (40,)]),
        (layers.swiglu_forward, [(3, 32)]),
        (layers.relu_forward, [(3, 32)]),
        (layers.gelu_forward, [(3, 32)]),
        (layers.gelu_tanh_forward, [(3, 32)]),
        (layers.affine_forward, [(3, 32), (32, 5), (5,)]),
        (layers.position_forward, [(1, 3, 8), (4, 8)]),
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
