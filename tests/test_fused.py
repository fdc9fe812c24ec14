"""Which one runs, the text or a kernel; and how a kernel is compiled, and called."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from npgpt.backend.fused import fused, kernel_package
from npgpt.layers import rmsnorm_forward

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed"),
]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def who(monkeypatch):
    """A fused function that tells who ran: text or kernel."""

    def rmsnorm_forward(x, w, eps=1e-5):
        return "text"

    rmsnorm_forward.__module__ = "npgpt.layers.rmsnorm"
    import npgpt.backend.cpu.rmsnorm as kernels

    monkeypatch.setattr(kernels, "rmsnorm_forward", lambda x, w, eps=1e-5: "kernel")
    return fused(rmsnorm_forward)


def test_float32_goes_to_the_kernel_and_all_else_to_the_text(who):
    single, double = np.ones((2, 3), np.float32), np.ones((2, 3))
    assert who(single, single) == "kernel"
    assert who(x=single, w=single, eps=0.5) == "kernel"
    assert who(single, np.arange(3)) == "kernel"
    assert who((single, np.arange(3)), 1.0) == "kernel"
    assert who(single, (0.5, 7, None)) == "kernel"
    assert who(single, "a name") == "kernel"
    assert who((0.5, 7), 1.0) == "text"
    assert who(double, double) == "text"
    assert who(single, double) == "text"
    assert who(single, (single, double)) == "text"
    assert who(single.astype(np.complex64), single) == "text"
    assert who(single.astype(np.float16), single) == "text"
    assert who(single.astype(">f4"), single) == "text"
    assert who(np.arange(3), np.arange(3)) == "text"
    assert who(single, [1.0, 2.0, 3.0]) == "text"


def test_an_array_of_cupy_is_known_by_the_name_of_its_type(monkeypatch):
    """CuPy need not be imported for it; from then on the type itself is known."""
    monkeypatch.setattr("npgpt.backend.fused.KERNELS", {np.ndarray: "npgpt.backend.cpu"})

    def package(module, dtype):
        kind = type("ndarray", (), {"__module__": module, "dtype": np.dtype(dtype)})
        return [kernel_package([array]) for array in [kind()] * 2]  # unknown, and then known

    for dtype in ("f4", "f2"):
        assert package("cupy", dtype) == ["npgpt.backend.cuda"] * 2
    assert package("cupy", "f8") == package("dask", "f4") == [None] * 2


def test_kernels_can_be_switched_off(who, text_only):
    x = np.ones((2, 3), np.float32)
    with text_only():
        assert who(x, x) == "text"
    assert who(x, x) == "kernel"


def test_the_time_of_compiling_is_counted_once(monkeypatch):
    """A kernel compiles those that it calls: the seconds of the inner ones are the outer one's."""
    from npgpt.backend.cpu.compile import Announcer

    announcer, clock = Announcer(), iter([3.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for call in (announcer.on_start, announcer.on_start, announcer.on_end):
        call(None)
    assert announcer.seconds == 0.0
    announcer.on_end(None)
    assert announcer.seconds == 7.0


SAME_BITS = """
import hashlib
import numpy as np
from npgpt.layers import layernorm_forward
from npgpt.model import loss_and_dlogits

rng = np.random.default_rng(0)
logits, x = rng.standard_normal((120, 261), np.float32), rng.standard_normal((40, 72), np.float32)
loss, dlogits = loss_and_dlogits(logits, rng.integers(0, 261, 120), 0.5, 0.1)
y, _ = layernorm_forward(x, x[0])
print(hashlib.sha256(loss.tobytes() + dlogits.tobytes() + y.tobytes()).hexdigest())
"""


def test_the_process_that_compiles_computes_the_same_bits_as_a_later_one(tmp_path):
    """Or a run that is stopped and resumed would part from one that is not: see kernel."""
    environment = {**os.environ, "NPGPT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", SAME_BITS]
    first, later = (
        subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert len(first) > 64 and first == later


def test_a_call_takes_microseconds():
    x, w = np.ones((1, 8), np.float32), np.ones(8, np.float32)
    rmsnorm_forward(x, w)
    fastest = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(20):
            rmsnorm_forward(x, w)
        fastest = min(fastest, (time.perf_counter() - start) / 20)
    assert fastest < 30e-6
