"""How the time of a training step grows: with parameters, rows, context and threads.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --plot scaling.png --threads 1 2 4

Each figure is the median of a few steps of forward, backward, clipping and AdamW, on random
tokens. The models of one panel take turns, so that a busy machine harms all alike. What the
slopes mean, and what they say about a larger machine, is told in docs/scaling.md.
"""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as train.py: the threads are npgpt's own

import statistics

import numpy as np

from benchmarks.report import Report, alternate, option_parser, say
from benchmarks.train_step import Npgpt
from npgpt.model import GPTConfig, count_parameters
from npgpt.parallel import available_threads
from npgpt.plan import flops_per_token, human_count

VOCAB_SIZE = 2000
SIZES = ((64, 2), (128, 2), (192, 4), (256, 6), (384, 6), (512, 8))  # channels, layers
MIDDLE = (256, 6)  # the model of the other panels
ROWS = (1, 2, 4, 8, 16, 32)
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
TOKENS = 2048  # of a step, where it is not rows that grow
CONTEXT_TOKENS = 4096  # where the context grows: two rows of the longest, one for each thread


def model(channels, layers, block_size=128):
    """A model of the tinystories presets' shape."""
    return GPTConfig(
        vocab_size=VOCAB_SIZE, block_size=block_size, n_layer=layers, n_head=channels // 32,
        n_embd=channels, n_hidden=3 * channels,
    )  # fmt: skip


def panels(most_threads, threads):
    """What is varied: (title, [(x, config, rows, threads)])."""
    middle = model(*MIDDLE)
    sizes = [model(*size) for size in SIZES]
    return [
        ("parameters", [(count_parameters(c), c, TOKENS // 128, most_threads) for c in sizes]),
        ("rows of 128 tokens", [(rows, middle, rows, most_threads) for rows in ROWS]),
        (
            f"context, {CONTEXT_TOKENS:,} tokens a step",
            [(T, model(*MIDDLE, T), CONTEXT_TOKENS // T, min(2, most_threads)) for T in CONTEXTS],
        ),
        ("threads", [(n, middle, TOKENS // 128, n) for n in threads]),
    ]


def measure(title, cases, rounds, report):
    """The step time of each case of a panel.

    Returns: [(x, seconds, GFLOP/s)].
    """
    runs = {}
    for x, config, rows, threads in cases:
        say(f"{title}: {x:,}")
        shape = (rows, config.block_size + 1)
        ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, shape)
        batch = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
        runs[x] = Npgpt(config, batch, threads).step
        runs[x]()  # compiles the kernels, and finds the memory
    seconds = {x: statistics.median(taken) for x, taken in alternate(runs, rounds).items()}
    points = []
    for x, config, rows, _ in cases:
        work = rows * config.block_size * flops_per_token(config)
        points.append((x, seconds[x], 1e-9 * work / seconds[x]))
        report.add(f"{title}: {human_count(x)}", 1e3 * seconds[x], "ms")
        report.add(f"{title}: {human_count(x)}", points[-1][2], "GFLOP/s")
    report.add(f"{title}: slope of the last two", slope(points))
    return points


def slope(points):
    """The exponent between the last two points: 1 where twice the x takes twice the time."""
    (x1, t1, _), (x2, t2, _) = points[-2:]
    return float(np.log(t2 / t1) / np.log(x2 / x1))


def plot(path, results):
    """Four panels, time over what was varied, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, (title, points) in zip(axes.flat, results.items()):
        x, seconds, _ = (np.array(column, float) for column in zip(*points))
        axis.loglog(x, 1e3 * seconds, "o-", color="#20639b")
        ideal = -1 if title == "threads" else 0 if title.startswith("context") else 1
        label = {1: "in proportion", 0: "the same work", -1: "shared without loss"}[ideal]
        anchor = -1 if ideal > 0 else 0
        axis.loglog(
            x, 1e3 * seconds[anchor] * (x / x[anchor]) ** ideal, ":", color="gray", label=label
        )
        axis.set_xticks(x, [human_count(int(n)) for n in x], minor=False)
        axis.set_yticks([])
        axis.minorticks_off()
        axis.margins(0.12)
        for place, t in zip(x, seconds):
            axis.annotate(f"{1e3 * t:,.0f}", (place, 1e3 * t), (0, 7), ha="center",
                          textcoords="offset points")  # fmt: skip
        axis.set(xlabel=title, ylabel="ms a step")
        axis.legend(frameon=False)
    figure.suptitle("The time of a training step on a CPU")
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each case (default: 5)")
    parser.add_argument("--threads", type=int, nargs="*", help="default: 1, 2, 4, … as there are")
    parser.add_argument("--plot", help="draw the panels into this .png or .svg (needs matplotlib)")
    options = parser.parse_args(argv)
    most = available_threads()
    threads = options.threads or [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= most]
    report, results = Report("How the time of a training step grows"), {}
    for title, cases in panels(max(threads), threads):
        results[title] = measure(title, cases, options.rounds, report)
    if options.plot:
        plot(options.plot, results)
        say(f"drew {options.plot}")
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
