"""Do the tests of the CUDA kernels see a fault? Each of these is planted, and must be found.

Each is a change of a kernel's text, which is compiled and run on a CPU: see tests/cuda_on_cpu.
"""

import functools

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

from cuda_on_cpu.compare import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    ROUNDED_CASES,
    install,
    results,
    wrong_in_float32,
    wrong_when_rounded,
    wrong_where_branches_meet,
)
from cuda_on_cpu.runner import compiler_version

from npgpt.backend.cuda.compile import source

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(compiler_version() is None, reason="there is no g++ of Linux"),
]

LONG = "attention", "D = 64, T 130 of S 140, 2 heads share 1"
ONE_BARRIER = "    __syncthreads();\n"
PLANTED = {
    "rmsnorm, a barrier missing": ("rmsnorm", "many rows of vectors", ONE_BARRIER, ""),
    "rmsnorm, a statistic of one lane": ("rmsnorm", "wide", "warp_sum(along)", "along"),
    "rmsnorm, a slice in the place of the whole": ("rmsnorm", "more than a slice",
        "first = blockIdx.y * slice", "first = 0"),
    "layernorm, a barrier missing": ("layernorm", "many rows of vectors", ONE_BARRIER, ""),
    "layernorm, a mean of one lane": ("layernorm", "wide",
        "warp_sum(sum) / (float)C, mean_along", "sum / (float)C, mean_along"),
    "layernorm, squares before the mean is off": ("layernorm", "far from 0",
        "squares += (a[i] - m) * (a[i] - m)", "squares += a[i] * a[i] - m * m"),
    "layernorm, a product and a difference in one": ("layernorm", "C = 1",
        "__fmul_rn(d[i], gain[i])", "d[i] * gain[i]"),
    "layernorm, a slice that begins too early": ("layernorm", "more than a slice",
        "c = first + lane * WIDTH", "c = lane * WIDTH"),
    "layernorm, dw for db": ("layernorm", "wide",
        "to[0] = dw, to[C] = db", "to[C] = dw, to[0] = db"),
    "mlp, the slope forgets φ": ("mlp", "gelu, odd everything",
        "share(x) + x * PEAK", "share(x) + 0 * PEAK"),
    "mlp, the wrong side of the sigmoid": ("mlp", "gelu_tanh, far out",
        "v >= 0.0f ? larger : e * larger", "larger"),
    "dropout, a place in 32 bits": ("dropout", "a start beyond 32 bits",
        "start + PLACE + i", "(unsigned)(start + PLACE + i)"),
    "dropout, one mask for each vector": ("dropout", "wider", "start + PLACE + i", "start + PLACE"),
    "dropout, another mixing": ("dropout", "wider", "(z >> 27)", "(z >> 28)"),
    "shared row, rows that two blocks add": ("linear", "a bias, many rows",
        "long long r = blockIdx.y", "long long r = 0"),
    "shared row, the first of each vector": ("position", "whole vectors, many texts",
        "a[i] += shift[i]", "a[i] += shift[0]"),
    "loss, smoothed without the target's share": ("loss", "smooth, vectors",
        "1.0f - smoothing + others", "1.0f - smoothing"),
    "columns, lane for warp": ("rmsnorm", "wide", "part[lane][warp]", "part[warp][lane]"),
    "columns, a barrier missing": ("rmsnorm", "many rows of vectors",
        "part[warp][lane] = sum;\n    __syncthreads();", "part[warp][lane] = sum;"),
    "rope, turned on instead of back": ("rope", "odd T, D = 6", "direction * s[i]", "s[i]"),
    "swiglu, the next row's values": ("swiglu", "odd F", "row + F + j", "row + F + j + 1"),
    "loss, a barrier missing": ("loss", "more than a block of vectors", ONE_BARRIER, ""),
    "loss, the target as all others": ("loss", "more than a block of vectors",
        "if (t >= 0 && (shift", "if (t > V && (shift"),
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
    "attention, a mask for all heads": ("attention_dropout", "grouped heads",
        "(b * H + h) * T * S", "b * H * T * S"),
    "attention, what is dropped is missing in the sum": ("attention_dropout", "grouped heads",
        "part += weight;\n                weight *=", "part += weight *="),
    "tensor cores, a mask that dk does not know": ("attention_dropout", "D = 64, T 70, grouped",
        "ds[n][i] * m - averages[column]", "ds[n][i] - averages[column]"),
    "tensor cores, another mask for dq": ("attention_dropout", "D = 64, T 70, grouped",
        "t, key, S);\n                ds", "key, t, S);\n                ds"),
    "tensor cores, a look at the future": (*LONG,
        "s + COLUMN_OF(n, i) <= last;", "s + COLUMN_OF(n, i) <= last + 1;"),
    "tensor cores, no look at itself": (*LONG,
        "int key = start + own + ROW_OF(i);", "int key = start + own + ROW_OF(i) + 1;"),
    "tensor cores, a barrier missing": (*LONG,
        "__syncthreads();  // nobody reads the tiles", "// nobody reads the tiles"),
    "tensor cores, a wrong lane": (*LONG,
        "n * 8 + lane % 8 + lane / 16 * 8", "n * 8 + lane % 16"),
    "tensor cores, turned on instead of back": ("rope_attention", "D = 16, grouped heads",
        "b * turn - a * tilt", "b * turn + a * tilt"),
    "tensor cores, a sum over two lanes": (*LONG,
        "return x + __shfl_xor_sync(ALL_LANES, x, 2);", "return x;"),
    "float16, read as if it were bfloat16": (*LONG, "multiply_add<element>", "multiply_add<bf16>"),
    "float16, rounded as if it were bfloat16": (*LONG,
        "rounded_pair<element>(weights[2 * k][0]", "rounded_pair<bf16>(weights[2 * k][0]"),
}  # fmt: skip


WHERE_BRANCHES_MEET = {
    "rmsnorm, what went past is lost": ("rmsnorm", "if (joined) load(stream", "if (0) load(stream"),
    "rmsnorm, the first row for all": ("rmsnorm", "past + n * C + c", "past + c"),
    "rmsnorm, rounded before the sum": ("rmsnorm", "stream[i] + r * (d[i] * gain[i] - xhat * mean)",
        "stream[i] + to_float(rounded<element>(r * (d[i] * gain[i] - xhat * mean)))"),
    "layernorm, what went past is lost": ("layernorm",
        "if (joined) load(stream", "if (0) load(stream"),
    "layernorm, what went past is scaled too": ("layernorm",
        "stream[i] + r * (__fmul_rn(", "r * (stream[i] + __fmul_rn("),
}  # fmt: skip


@pytest.mark.parametrize("fault", WHERE_BRANCHES_MEET)
def test_a_planted_fault_is_found_where_branches_meet(fault, monkeypatch):
    layer, right, wrong = WHERE_BRANCHES_MEET[fault]
    (case,) = (c for c in ROUNDED_CASES if (c.layer, c.name) == (layer, "many rows of vectors"))
    assert right in source(f"{layer}.cu", BFLOAT16).text()
    device = install(monkeypatch, change=lambda text: text.replace(right, wrong))
    assert wrong_where_branches_meet(case, BFLOAT16, device)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, monkeypatch):
    gpu = functools.partial(install, monkeypatch)
    layer, name, right, wrong = PLANTED[fault]
    (case,) = (c for c in ROUNDED_CASES if c.layer == layer and c.name == name)
    dtype = BFLOAT16 if fault.startswith("tensor") else FLOAT32
    dtype = FLOAT16 if fault.startswith("float16") else dtype
    planted = []

    def change(source):
        planted.append(right in source)
        return source.replace(right, wrong)

    try:
        device = gpu(change=change)
        if dtype == FLOAT32:
            seen = wrong_in_float32(case, device)
        else:
            seen = wrong_when_rounded(case, dtype, device)
        one, other = (results(case, dtype, gpu(change=change, reverse=r)) for r in (False, True))
        seen = seen or any(not np.array_equal(one[n], other[n]) for n in one)
    except RuntimeError:  # the shim has found it
        seen = True
    assert any(planted) and seen
