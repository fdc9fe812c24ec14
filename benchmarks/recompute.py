"""What --checkpoint-activations saves, and what it costs.

    python -m benchmarks.recompute                       the shape of gpt-1b, with fewer layers
    python -m benchmarks.recompute --layers 24 --block-size 1024 --rows 1

Forward and backward of one batch, with all caches kept and with each block's made again. Memory is
the most that NumPy held at once beside the weights and their gradients; time is that of the two
in turn, round by round. The gradients must be equal bit for bit.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the threads are ours: see train.py

import sys
import tracemalloc
from dataclasses import replace

import numpy as np

from benchmarks.report import Report, alternate, option_parser, ratio, say
from npgpt.model import GPTConfig, init_parameters, loss_and_gradients

LESS_MEMORY, MORE_TIME = 3.0, 1.4  # the bars


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--layers", type=int, default=8, help="blocks (default: 8; gpt-1b has 24)")
    parser.add_argument("--block-size", type=int, default=256, help="context (default: 256)")
    parser.add_argument("--rows", type=int, default=2, help="rows of the batch (default: 2)")
    parser.add_argument("--vocab-size", type=int, default=1000, help="tokens (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    config = GPTConfig(
        vocab_size=options.vocab_size, block_size=options.block_size, n_layer=options.layers,
        n_head=12, n_embd=1536, n_hidden=6144, tie=False,
    )  # fmt: skip
    params = init_parameters(config, 1)
    grads = params.zeros_like()
    shape = (2, options.rows, options.block_size)
    ids, targets = np.random.default_rng(1).integers(options.vocab_size, size=shape)

    def run(recompute):
        how = replace(config, recompute=recompute)
        return lambda: loss_and_gradients(params, grads, ids, targets, how)

    report = Report("activations kept, and made again")
    most, gradients = {}, {}
    for name, recompute in (("kept", False), ("made again", True)):
        say(f"{name} ...")
        grads.flat[...] = 0.0
        tracemalloc.start()
        run(recompute)()
        most[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gradients[name] = grads.flat.copy()
        report.add(f"memory of activations, {name}", most[name] / 1e6, "MB")
    report.add("gradients that differ", np.sum(gradients["kept"] != gradients["made again"]),
               at_most=0)  # fmt: skip
    gradients.clear()
    report.add("less memory", most["kept"] / most["made again"], "x", at_least=LESS_MEMORY)
    seconds = alternate({"kept": run(False), "made again": run(True)}, options.rounds)
    report.add("seconds, kept", min(seconds["kept"]), "s")
    report.add("time", ratio(seconds, "made again", "kept"), "x", at_most=MORE_TIME)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
