"""The loss on a GPU: rows of any length, wherever they lie, and the gradient in the logits' place.

Its kernels run on a CPU, see tests/cuda_on_cpu; on the rows of gradcheck's table they are tried in
test_cuda_kernels.py. Here too faults are planted, which must be found.
"""

import functools

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from cuda_on_cpu.compare import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOOR,
    PACKAGE,
    ROUNDING,
    across,
    array,
    error,
    install,
    on,
)
from cuda_on_cpu.runner import compiler_version
from fake_device import DeviceArray

from npgpt import layers
from npgpt.backend.fused import find_kernel
from npgpt.model import loss_and_dlogits

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(compiler_version() is None, reason="there is no g++ of Linux"),
]
# Rows of less than a vector; of whole vectors; and rows that begin anywhere in one. In float32 the
# last two want larger blocks, and of the last of all a block keeps only the beginning.
LENGTHS = 1, 2, 3, 40, 331, 2 * 2080, 9001, 12_101


@pytest.fixture
def gpu(monkeypatch):
    """A device that runs CUDA C on the CPU, in the place of the GPU."""
    return functools.partial(install, monkeypatch)


def in_place(device, logits, targets, scale, smoothing):
    """loss_and_dlogits on a device, which must take what it is given, and write over the logits.

    Args:    device; logits and targets, of the host; scale, a number, or an array () of the host
             that is to lie on the device; smoothing.
    Returns: loss and dlogits.
    """
    there = across((logits, targets, scale), device.from_host)
    loss, dlogits = find_kernel(PACKAGE, loss_and_dlogits)(*there, smoothing)
    assert dlogits is there[0]
    return loss.get(), dlogits.get()


def wrong_in_place(device, logits, targets, scale, smoothing):
    """The names of what in_place computes less exactly than the rule allows."""
    fast = in_place(device, logits, targets, scale, smoothing)
    double, single = (
        loss_and_dlogits.text(logits.astype(t), targets, scale, smoothing)
        for t in (np.float64, np.float32)
    )
    bar = FLOOR, ROUNDING.get(logits.dtype, 0.0) + FLOOR
    names = "loss", "dlogits"
    return [
        names[i] for i in (0, 1)
        if not error(fast[i].astype(np.float64), double[i])
        <= 2.0 * error(single[i].astype(np.float64), double[i]) + bar[i]
    ]  # fmt: skip


@pytest.mark.parametrize("V", LENGTHS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_in_a_step_the_loss_is_differentiated_in_place(dtype, smoothing, V, gpu):
    """With the same bits as by two kernels, whether or not the host knows the scale."""
    device = gpu()
    logits = (2.0 * array(3, 3, V)).astype(dtype)
    targets = np.random.default_rng(1).integers(0, V, (3, 3))
    targets[0, 0], targets[-1, -1] = 0, V - 1
    scale = 64.0 if V > 1 else 1.0  # of one number the slope is 0, but for rounding
    assert wrong_in_place(device, logits, targets, scale, smoothing) == []
    assert [name for _, name in device.launched] == ["cross_entropy_in_place", "cross_entropy_mean"]
    loss, cache = on(device, layers.smooth_cross_entropy_forward)(logits, targets, smoothing)
    expected = on(device, layers.smooth_cross_entropy_backward)(scale, cache)
    for known in (scale, np.array(scale, np.float32)):
        for reverse in (False, True):
            got, dlogits = in_place(gpu(reverse=reverse), logits, targets, known, smoothing)
            assert got == loss
            np.testing.assert_array_equal(dlogits, expected)


@pytest.mark.parametrize("V", [3, 40, 331])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_logits_may_begin_anywhere(dtype, V, gpu):
    """An array that is a part of another, whose first number does not begin a vector."""
    device = gpu()
    whole, targets = device.from_host(array(5, V).astype(dtype)), np.arange(4) % V
    for first in (1, 2):
        part = DeviceArray(whole._array.reshape(-1)[first : first + 4 * V].reshape(4, V))
        logits, rest = part.get(), whole.get().reshape(-1)[first + 4 * V :]
        loss, cache = on(device, layers.cross_entropy_forward)(logits, targets)
        expected = on(device, layers.cross_entropy_backward)(1.0, cache)
        there = device.from_host(targets)
        mean, cache = find_kernel(PACKAGE, layers.cross_entropy_forward)(part, there)
        assert mean.get() == pytest.approx(loss, rel=1e-6)
        slopes = find_kernel(PACKAGE, layers.cross_entropy_backward)(1.0, cache).get()
        in_its_place = find_kernel(PACKAGE, loss_and_dlogits)(part, there, 1.0)[1].get()
        for found in (slopes, in_its_place):
            assert error(found.astype(float), expected.astype(float)) < 2.0**-8
        assert np.array_equal(whole.get().reshape(-1)[first + 4 * V :], rest)


@pytest.mark.parametrize("V", [40, 331])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_in_place_a_row_that_is_no_number_is_seen_and_no_other_row(V, gpu):
    """What one row holds, or lacks, is in its own slopes, and in the mean."""
    device, plain = gpu(), array(4, V)
    targets = np.array([0, 7, 8, V - 1])
    _, expected = in_place(device, plain, targets, 1.0, 0.0)
    for bad in (np.nan, np.inf, -np.inf):
        logits = plain.copy()
        logits[1, 9] = bad
        loss, dlogits = in_place(device, logits, targets, 1.0, 0.0)
        assert np.isfinite(loss) == np.isfinite(dlogits[1]).all() == (bad == -np.inf)
        assert bad != -np.inf or dlogits[1, 9] == 0.0
        np.testing.assert_array_equal(dlogits[[0, 2, 3]], expected[[0, 2, 3]])
    logits = plain.copy()
    logits[2] = -np.inf
    loss, dlogits = in_place(device, logits, targets, 1.0, 0.0)
    assert np.isnan(loss) and np.isnan(dlogits[2]).all()
    np.testing.assert_array_equal(dlogits[[0, 1, 3]], expected[[0, 1, 3]])
    for bad in (-1, V, -(2**40), 2**40 + 8):
        loss, dlogits = in_place(device, plain, np.array([0, bad, 8, V - 1]), 1.0, 0.0)
        assert np.isnan(loss)
        np.testing.assert_array_equal(dlogits[[0, 2, 3]], expected[[0, 2, 3]])
        assert dlogits[1].sum() == pytest.approx(0.25, rel=1e-5)  # probabilities, and no target


REFUSED = {
    "logits with gaps": (array(4, 6)[:, ::2], np.arange(4) % 3, 1.0, 0.0),
    "logits across": (array(6, 4).T, np.arange(4), 1.0, 0.0),
    "too few targets": (array(4, 6), np.arange(3), 1.0, 0.0),
    "targets of 8 bits": (array(4, 6), np.arange(4, dtype=np.int8), 1.0, 0.0),
    "no logits": (array(0, 6), np.arange(0), 1.0, 0.0),
    "a smoothing of 1": (array(4, 6), np.arange(4), 1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_left_to_the_text(reason, gpu):
    device = gpu()
    logits, targets, *rest = REFUSED[reason]
    found = find_kernel(PACKAGE, loss_and_dlogits)
    assert found(DeviceArray(logits), DeviceArray(targets), *rest) is NotImplemented
    assert device.launched == []


# Fault: length of the rows, text, another text.
PLANTED = {
    "the barrier missing": (331, "    __syncthreads();\n", ""),
    "the target's logit read when it is gone": (331,
        "log_total - (chosen - peak)", "log_total - (to_float(row[t]) - peak)"),
    "one number too many": (331, "v >= 0 && v < V", "v >= 0 && v <= V"),
    "one number too few": (331, "v >= 0 && v < V", "v >= 0 && v < V - 1"),
    "the end of the row before in this row": (331, "v >= 0 && v <= V - WIDTH", "v <= V - WIDTH"),
    "the next row's beginning in this row": (331, "v <= V - WIDTH", "v < V"),
    "no last vector": (331, "place < shift + V", "place < V"),
    "a sum over half of the lanes": (331,
        "x += __shfl_xor_sync(ALL_LANES, x, m)",
        "x += (m > 1) * __shfl_xor_sync(ALL_LANES, x, m)"),
    "a maximum of one lane": (331, "warp_peak = warp_max(peak)", "warp_peak = peak"),
    "more than was kept": (12_101, "whole && place < kept", "whole && place <= kept"),
    "all from what was kept": (12_101, "whole && place < kept", "whole"),
    "kept by many threads in one place": (12_101,
        "(held + place) = vector", "(held + place % (32 * WIDTH)) = vector"),
    "what was kept, one vector on": (12_101, "load(a, held + place)", "load(a, held + place + 4)"),
    "a target that two threads write": (331,
        "(shift + t) / WIDTH % THREADS == threadIdx.x", "(t / 2) % THREADS == threadIdx.x"),
    "a target's slope of another scale": (331, "- target) * scale", "- target)"),
    "a scale that smoothing does not know": (331, "less = others * scale", "less = others"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, monkeypatch):
    V, right, wrong = PLANTED[fault]
    planted = []

    def change(source):
        planted.append(right in source)
        return source.replace(right, wrong)

    batch = 2.0 * array(5, V), np.array([1, 5, 0, V - 2, V - 1]), 0.5, 0.1
    results, seen = [], False
    try:
        for reverse in (False, True):
            device = install(monkeypatch, change=change, reverse=reverse)
            seen = seen or wrong_in_place(device, *batch) != []
            results.append(in_place(device, *batch))
        seen = seen or any(not np.array_equal(one, other) for one, other in zip(*results))
    except RuntimeError:  # the shim has found it
        seen = True
    assert any(planted) and seen
