"""One optimizer step of a model of a billion parameters, on a processor: its time, and its memory.

    python -m benchmarks.large_step
    python -m benchmarks.large_step --preset gpt2-124m --steps 3

Forward, backward with each block's activations made again, clipping and AdamW, in float32, on
random tokens: one row of the preset's context, on one thread, since each thread would want a
gradient buffer of its own. The loss must fall from the first step to the last, on the same row.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as train.py: the threads are npgpt's own

import sys
import time
from dataclasses import fields, replace

import numpy as np

from benchmarks.report import Report, option_parser, say
from npgpt.model import GPTConfig, count_parameters, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient
from npgpt.parallel import keep_freed_memory
from npgpt.plan import peak_memory_bytes
from npgpt.presets import PRESETS
from npgpt.settings import Settings, with_preset


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="gpt-1b")
    parser.add_argument("--steps", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--most-gb", type=float, default=24.0, help="bar for the memory")
    options = parser.parse_args(argv)
    settings = with_preset(Settings(preset=options.preset), {"preset"})
    shape = {f.name for f in fields(GPTConfig)}
    config = GPTConfig(**{n: v for n, v in vars(settings).items() if n in shape})
    config = replace(config, recompute=True)
    report = Report(f"A step of {options.preset} on a processor")
    report.add("parameters", count_parameters(config))

    keep_freed_memory()
    say("drawing the weights ...")
    params = init_parameters(config, seed=1)
    grads, optimizer = params.zeros_like(), AdamW.for_parameters(params)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (1, config.block_size + 1))
    losses = []
    for _ in range(options.steps):
        start = time.perf_counter()
        grads.flat[...] = 0.0
        loss = loss_and_gradients(params, grads, ids[:, :-1], ids[:, 1:], config)
        clip_gradient(grads.flat, 1.0)
        optimizer.update(params.flat, grads.flat, 1e-4)
        losses.append(float(loss))
        report.add("loss before the step", losses[-1], "nats")
        report.add("seconds", time.perf_counter() - start, "s")
    memory = peak_memory_bytes()
    if memory is not None:
        report.add("peak memory", 1e-9 * memory, "GB", at_most=options.most_gb)
    if options.steps > 1:
        report.add("the loss falls by", losses[0] - losses[-1], "nats", at_least=0.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
