"""What a run will cost, told before it runs: parameters, memory, disk and time.

    python -m npgpt.plan --preset gpt-1b --checkpoint-activations --backend cupy

takes the options of train.py, and tells what a run with them would take: of a model of any size,
on a GPU that is not there. No text is read, and nothing trained or written. The memory is that of
the arrays, by formula. train.py itself begins with the same, and with the time of a step.
"""

import contextlib
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from npgpt.backend import kernels_enabled
from npgpt.cli import main_with_errors, option, parse
from npgpt.errors import UserError
from npgpt.model import count_parameters, parameter_shapes
from npgpt.parallel import head_parts
from npgpt.settings import Settings, with_preset
from npgpt.turns import members_of

# Rows that go through the model together are read and written as one, and make large products;
# more of them than this many bytes bring nothing but a need for memory.
ROWS_BYTES = 3 << 27
SPARE = 0.9  # of a GPU's memory: an estimate is no promise
LETTERS = 65  # Shakespeare's, where a text decides how many there are


def flops_per_token(config):
    """Floating-point operations of a training step for each token, in the matrix products.

    Each weight of a matrix costs one multiplication and one addition forward, and twice that
    backward: 6. The two products of attention, q·k and p·v, cost 2·T·C each, and also triple;
    what the mask would spare is counted, as PaLM's authors do. A table that is only looked up
    costs nothing; as lm_head it does.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1; attention:
        Chowdhery et al. 2022, "PaLM", appendix B.
    """
    decayed, _ = parameter_shapes(config)
    looked_up = {"wpe"} if config.tie else {"wpe", "wte"}
    weights = sum(int(np.prod(decayed[name])) for name in decayed if name not in looked_up)
    return 6 * weights + 12 * config.n_layer * config.block_size * config.n_embd


def row_bytes(config, size=4, parts=1):
    """The memory of one row of a batch: what forward keeps, and the widest moment.

    Args:    config; size, the bytes of a number: 4 for float32, 2 for bf16; parts, into how many
             the head's places are cut.
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
    return size * T * (cached + max(-(-logits // parts), square))


def rows_at_once(config):
    """How many rows a processor's thread should take through the model: what ROWS_BYTES hold."""
    return max(1, ROWS_BYTES // row_bytes(config))


def training_memory(config, batch_size, threads=1, most_rows=None, bits=32):
    """Estimate the memory of a step.

    Args:    config; batch_size, rows; threads, which share the rows, and each or two by two have
             gradients; most_rows, as for parallel.Workers; bits, of an activation: if 16, there
             is a copy of the weights of 16 bits as well.
    Returns: a dict, from what is kept to its bytes; and the rows that are at work at a time.
    """
    weights = 4 * count_parameters(config)
    rows = min(-(-batch_size // threads), most_rows or batch_size)
    parts = head_parts(config, rows) if most_rows else 1
    rows *= threads
    gradients = -(-threads // members_of(weights)) * weights
    kept = {"weights": weights, "gradients": gradients, "AdamW's two means": 2 * weights}
    if bits == 16:
        kept["the weights in 16 bits"] = weights // 2
    return {**kept, "activations": rows * row_bytes(config, bits // 8, parts)}, rows


def training_bytes(*args, **kwargs):
    """All of training_memory in one number."""
    return sum(training_memory(*args, **kwargs)[0].values())


def rows_that_fit(config, memory, bits):
    """How many rows of a batch a GPU can take at a time, by the same estimate; below 1, none.

    Args:    config; memory, its bytes; bits, as for training_memory.
    """
    row = row_bytes(config, bits // 8)
    state = training_bytes(config, 1, bits=bits) - row
    return int((SPARE * memory - state) // row)


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
    if seconds < 100 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds / 86400:,.0f} days"


# python -m npgpt.plan

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)  # GB of memory that GPUs come with
TFLOPS = {"numpy": 0.1, "cupy": 100.0}  # of a thread, of a GPU: orders of magnitude to reckon with


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Those of train.py, and how fast the steps are."""

    tflops: float | None = option(
        None, "the speed that steps reach, in TFLOP/s (default, to reckon with: 0.1 for each of a "
        "processor's threads, 100 for a GPU)",
    )  # fmt: skip


def main(settings, given):
    """Print what a run would take.

    Args:    settings, a PlanSettings; given, the names of the fields that were given.
    Raises:  UserError for settings that don't fit together.
    """
    from npgpt.parallel import available_threads
    from npgpt.training import model_config

    if settings.tflops is not None and not settings.tflops > 0:
        raise UserError(f"--tflops is {settings.tflops}, but it must be above 0")
    for name, flag in (("resume", "--resume"), ("init_from", "--init-from")):
        if getattr(settings, name):
            raise UserError(f"a plan is for a run that begins with nothing: leave out {flag}")
    plain = Settings(**{f.name: getattr(settings, f.name) for f in fields(Settings)})
    s = with_preset(plain, given - {"tflops"})
    config, letters = model_config(s, assumed_tokens(s, given)), ""
    if s.tokenizer == "char" and not given & {"vocab_size", "tokenizer_from"}:
        letters = " (Shakespeare's letters; another text has others)"
    on_gpu, threads = s.backend == "cupy", s.threads or available_threads()
    dtype = (s.dtype or "bf16") if on_gpu else "float32"
    tokens = s.batch_size * s.accumulate * s.block_size
    flop = tokens * flops_per_token(config)
    speed = 1e12 * (settings.tflops or TFLOPS[s.backend] * (1 if on_gpu else threads))
    where = "a GPU" if on_gpu else f"{threads} thread{'s' if threads > 1 else ''}"
    batches = f"{s.accumulate:,} batches of " if s.accumulate > 1 else ""
    if on_gpu:
        bits = 16 if dtype in ("bf16", "fp16") else 32
        kept, rows = training_memory(config, s.batch_size, bits=bits)
        memory = _told(kept, rows, config, bits, 1)
        memory += _fitting(config, bits, s.batch_size * s.accumulate)
    else:
        kept, rows = training_memory(config, s.batch_size, threads, rows_at_once(config))
        memory = _told(kept, rows, config, 32, threads)
    print(
        f"{s.preset}, on {where}, in {dtype}\n"
        f"  model    {describe(config)}{letters}\n"
        f"  step     {batches}{s.batch_size:,} rows of {s.block_size:,} tokens: {tokens:,} tokens, "
        f"{human_flop(flop)}\n"
        f"  run      {s.steps:,} steps: {human_count(tokens * s.steps)} tokens, "
        f"{human_flop(flop * s.steps)}\n"
        f"  time     {human_time(flop * s.steps / speed)} at {speed / 1e12:g} TFLOP/s; what is "
        "reached in fact, say with --tflops\n"
        f"{memory}"
        f"  disk     {human_bytes(checkpoint_bytes(config, s.keep))} for {s.keep} checkpoints "
        "and one in the making"
    )


def describe(config):
    """A model in a line: its parameters, and its shape."""
    return (
        f"{count_parameters(config):,} parameters: {config.n_layer} layers, "
        f"{config.n_head} heads, {config.n_embd} channels, {config.n_hidden} hidden, "
        f"vocabulary {config.vocab_size:,}, context {config.block_size}"
    )


def human_flop(n):
    """3.9e15 → '3.9 PFLOP'."""
    for factor, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if n >= 0.9995 * factor:
            return f"{n / factor:,.1f} {unit}"
    return f"{n / 1e9:.1f} GFLOP"


def assumed_tokens(s, given=()):
    """How many tokens a run would have, as far as its settings say, since no text is read."""
    if s.tokenizer_from is not None:
        from npgpt.tokenizer import load_tokenizer

        return load_tokenizer(s.tokenizer_from).vocab_size
    return LETTERS if s.tokenizer == "char" and "vocab_size" not in given else s.vocab_size


def _told(kept, rows, config, bits, threads):
    """The lines on memory: what takes it, and what --checkpoint-activations makes of a row."""
    here, there = (
        human_bytes(row_bytes(replace(config, recompute=recompute), bits // 8))
        for recompute in (config.recompute, not config.recompute)
    )
    how = "without" if config.recompute else "with"
    remarks = {
        "gradients": f", one of {threads} for each thread" if threads > 1 else "",
        "activations": f", {rows:,} rows at a time of {here} each "
        f"({there} {how} --checkpoint-activations)",
    }
    lines = [f"{human_bytes(n):>18}  {what}{remarks.get(what, '')}\n" for what, n in kept.items()]
    return f"  memory   about {human_bytes(sum(kept.values()))}\n{''.join(lines)}"


def _fitting(config, bits, all_rows):
    """The line on how many rows fit into the GPUs that there are."""
    fitting = []
    for card in CARDS:
        rows = rows_that_fit(config, 1e9 * card, bits)
        if rows >= 1:
            fitting.append(f"{min(rows, all_rows):,} in {card} GB")
        if rows >= all_rows:
            break
    if not fitting:
        return f"  fits     no GPU of {CARDS[-1]} GB or less\n"
    return f"  fits     --batch-size {', '.join(fitting)}\n"


if __name__ == "__main__":
    program, words = "python -m npgpt.plan", __doc__.strip()
    sys.exit(
        main_with_errors(lambda: main(*parse(PlanSettings, sys.argv[1:], words, None, program)))
    )
