"""What it costs to drop some of attention's weights.

    python -m benchmarks.attention_dropout
    python -m benchmarks.attention_dropout --rows 2 --block-size 1024 --heads 12

Forward and backward of attention, with all weights and with a fifth of them dropped, in turn, in
the time of one thread. The mask is made for every weight, once forward and twice backward: that
costs the same whatever the channels of a head, and attention's own arithmetic grows with them.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import time
import tracemalloc

import numpy as np

from benchmarks.report import Report, alternate, option_parser, ratio
from npgpt.layers import (
    attention_backward,
    attention_forward,
    dropped_attention_backward,
    dropped_attention_forward,
)

MORE_TIME = 1.3  # the bar


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=int, default=8, help="rows of the batch (default: 8)")
    parser.add_argument("--block-size", type=int, default=256, help="context (default: 256)")
    parser.add_argument("--heads", type=int, default=6, help="heads (default: 6)")
    parser.add_argument("--channels", type=int, default=64, help="of a head (default: 64)")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(argv)
    shape = (options.rows, options.block_size, options.heads, options.channels)
    rng = np.random.default_rng(1)
    q, k, v, dy = (rng.standard_normal(shape, np.float32) for _ in range(4))

    def plain():
        _, cache = attention_forward(q, k, v)
        attention_backward(dy, cache)

    def dropped():
        _, cache = dropped_attention_forward(q, k, v, 0.2, 3)
        dropped_attention_backward(dy, cache)

    report = Report("attention, and attention with a fifth of its weights dropped")
    contestants = {"plain": plain, "dropped": dropped}
    for name, run in contestants.items():
        run()  # so that it is compiled
        tracemalloc.start()
        run()
        report.add(f"memory, {name}", tracemalloc.get_traced_memory()[1] / 1e6, "MB")
        tracemalloc.stop()
    seconds = alternate(contestants, options.rounds, clock=time.thread_time)
    for name in contestants:
        report.add(f"time, {name}", 1e3 * min(seconds[name]), "ms")
    report.add("time, dropped over plain", ratio(seconds, "dropped", "plain"), "x",
               at_most=MORE_TIME)  # fmt: skip
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
