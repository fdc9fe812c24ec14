"""What a run will cost, told before it runs: parameters, memory, disk and time."""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np

from npgpt.backend import kernels_enabled
from npgpt.model import count_parameters, parameter_shapes

# Rows that go through the model together are read and written as one, and make large products;
# more of them than this many bytes bring nothing but a need for memory.
ROWS_BYTES = 1 << 28


def flops_per_token(config):
    """Floating-point operations of a training step for each token, in the matrix products.

    Each weight of a matrix costs one multiplication and one addition forward, and twice that
    backward: 6. The two products of attention, q·k and p·v, cost 2·T·C each, and also triple.
    A table that is only looked up costs nothing; as lm_head it does.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1.
    """
    decayed, _ = parameter_shapes(config)
    looked_up = {"wpe"} if config.tie else {"wpe", "wte"}
    weights = sum(int(np.prod(decayed[name])) for name in decayed if name not in looked_up)
    return 6 * weights + 12 * config.n_layer * config.block_size * config.n_embd


def row_bytes(config, size=4):
    """The memory of one row of a batch: what forward keeps, and the widest moment.

    Args:    config; size, the bytes of a number: 4 for float32, 2 for bf16.
    """
    C, F, V, T = config.n_embd, config.n_hidden, config.vocab_size, config.block_size
    kv = config.n_kv_head * config.head_dim
    # What block_forward keeps, a token: of the MLP its hidden channels before and after the bend,
    # and with swiglu their gates; of a ReLU what comes after it only.
    hidden = {"swiglu": 3 * F, "relu": F, "none": 0}.get(config.mlp, 2 * F)
    turned = C + kv if config.attention_dropout and config.position == "rope" else 0
    block = 6 * C + 2 * kv + hidden + turned
    blocks = config.n_layer * C + block if config.recompute else config.n_layer * block
    cached = blocks + 2 * C
    # A kernel writes the gradient over the logits; the text has their softmax and a temporary too.
    logits = V if kernels_enabled() else 3 * V
    square = 4 * config.n_head * T  # scores and weights of one layer, forward or backward
    return size * T * (cached + max(logits, square))


def rows_at_once(config):
    """How many rows a processor's thread should take through the model: what ROWS_BYTES hold."""
    return max(1, ROWS_BYTES // row_bytes(config))


def training_bytes(config, batch_size, threads=1, most_rows=None, bf16=False):
    """Estimate the memory of a step.

    Args:    config; batch_size, rows; threads, which share the rows, and have gradients of
             their own; most_rows, as for parallel.Workers; bf16, whether activations and a copy
             of the weights are of 2 bytes a number, and not of 4.
    Returns: bytes.
    """
    state = 4 * (3 + threads) * count_parameters(config)  # weights, AdamW's two means, gradients
    state += 2 * count_parameters(config) if bf16 else 0
    rows = min(-(-batch_size // threads), most_rows or batch_size)
    return state + threads * rows * row_bytes(config, 2 if bf16 else 4)


def checkpoint_bytes(config, keep):
    """Disk that checkpoints take: weights and two means, `keep` of them and one being written."""
    return 3 * 4 * count_parameters(config) * (keep + 1)


def measure_matmul_peak(workers, size=768, repeats=4):
    """The processors' float32 matrix product at its best, in FLOP/s: what a step can't exceed.

    Args:    workers, a parallel.Workers: each of its threads multiplies at the same time.
    """
    a = np.ones((size, size), np.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        workers.map(lambda _: a @ a, range(workers.threads))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * workers.threads / best


def peak_memory_bytes():
    """The largest memory this process has had, or None where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):  # Linux, where getrusage counts the parent too
        status = Path("/proc/self/status").read_text("ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def human_bytes(n):
    """1234567 → '1.2 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if round(n) < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit in ("B", "kB") else f"{n:.1f} {unit}"
        n /= 1000


def human_count(n):
    """38683136 → '38.7M'."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * factor:  # 999,950 is 1.0M, not 1000k
            return f"{n / factor:.1f}{unit}" if n < 99.95 * factor else f"{n / factor:.0f}{unit}"
    return str(n)


def human_time(seconds):
    """161 → '2 min 41 s'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
