"""The CUDA kernels, compiled for real GPUs by NVIDIA's own compiler, which needs no GPU.

Two things that would make a kernel slow, and that no result shows, are read off the compiler's
report: numbers that found no place in a register and are kept in memory instead, and more
registers than let enough threads run side by side.
"""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

nvrtc = pytest.importorskip("cuda_on_cpu.nvrtc", reason="cuda-bindings is not installed")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from cuda_on_cpu.variants import FLOAT32, attention, attention_on_tensor_cores, variants  # noqa: E402

from npgpt.backend.cuda import compile as cuda  # noqa: E402

pytestmark = pytest.mark.parity

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
# Turing knows no bfloat16; from Ampere on, all of it. It has float16, but in smaller matrices.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
MOST_REGISTERS = {
    "columns.cu": 64,
    "dropout.cu": 40,
    "elementwise.cu": 32,
    "embedding.cu": 64,
    "layernorm.cu": 64,
    "loss.cu": 40,  # 65,536 of a multiprocessor, for 1,536 threads; where there are 2,048, it is 32
    "mlp.cu": 40,
    "block.cu": 48,
    "optim.cu": 64,
    "rmsnorm.cu": 80,
    "rope.cu": 40,
    "shared_row.cu": 48,
    "steps.cu": 64,  # of one thread
    "swiglu.cu": 48,
    "attention.cu": 128,  # 65,536 of a multiprocessor, for two blocks of 256 threads
    "attention_mma.cu": 255,  # for two blocks of 128 threads, where D is 128
}


def sources_for(architecture):
    """What runs on a GPU; of what is much alike on all of them, not everything on each."""
    sources = [attention(FLOAT32, 4, 64), *variants(FLOAT32, 4)]
    if architecture >= 80:
        sources += [attention_on_tensor_cores(BFLOAT16, 64, turn=1), *variants(BFLOAT16, 8)]
    if architecture in (80, 90, 120):
        sources += [attention_on_tensor_cores(BFLOAT16, 128, turn=1)]
    if architecture == 90:
        sources += [attention_on_tensor_cores(BFLOAT16, 64)]
    if architecture == 80:
        sources += [attention(BFLOAT16, 8, 64), attention(FLOAT32, 4, 128)]
        sources += [attention(FLOAT32, 4, 64, drops=1)]
    if architecture == 75:
        sources += [attention(FLOAT16, 8, 64), *variants(FLOAT16, 8)]
    if architecture in (80, 90, 120):
        sources += [attention_on_tensor_cores(FLOAT16, 64, turn=1)]
        sources += [attention_on_tensor_cores(BFLOAT16, 64, drops=1)]
    return sources


def test_no_file_is_left_out():
    compiled = {source.name for a in (75, 90) for source in sources_for(a)}
    assert compiled == {path.name for path in cuda.HERE.glob("*.cu")} == set(MOST_REGISTERS)


@pytest.fixture(scope="module")
def logs():
    """The compiler's reports for all GPUs; as it works on one text at a time, in two processes."""
    jobs = [(a, source) for a in ARCHITECTURES for source in sources_for(a)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(nvrtc.compiled, [s.text() for _, s in jobs], [a for a, _ in jobs])
        return {job: log for job, log in zip(jobs, found)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture, logs):
    for source in sources_for(architecture):
        kernels = nvrtc.report(logs[architecture, source])
        assert set(kernels) == set(source.signatures)
        for kernel, (registers, spilled, stack) in kernels.items():
            assert spilled == stack == 0, f"{source.name}, {kernel}"
            most = MOST_REGISTERS[source.name]
            most = max(most, 64) if architecture == 75 else most  # it has 64 for all of its threads
            assert registers <= most, f"{source.name}, {kernel}"


@pytest.mark.parametrize("turn", [0, 1])
def test_loads_do_not_wait_for_one_another(turn):
    """A tile that is stored before the next is loaded would take the time of both."""
    ptx = nvrtc.instructions(attention_on_tensor_cores(BFLOAT16, 64, turn=turn).text(), 90)
    kernels = ptx.split(".entry ")[1:]
    assert len(kernels) == 3
    for kernel in kernels:
        _, loop, _ = kernel.split("bar.sync")  # nobody reads what was; all is there
        steps = re.findall(r"ld\.global|st\.shared", loop)
        assert steps == sorted(steps) and "st.shared" in steps, kernel.split("(")[0]


def test_the_report_shows_a_spill():
    """More numbers in use at once than there are registers: the check must be able to fail."""
    text = """extern "C" __global__ void __launch_bounds__(1024) many(volatile float* x) {
        float a[99];
        #pragma unroll
        for (int i = 0; i < 99; i++) a[i] = x[i];
        #pragma unroll
        for (int i = 0; i < 99; i++) x[i] = a[98 - i];
    }"""
    _, spilled, _ = nvrtc.report(nvrtc.compiled(text, 90))["many"]
    assert spilled > 0


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(RuntimeError, match="error"):
        nvrtc.compiled('extern "C" __global__ void broken(float* x) { *x = y; }', 90)
