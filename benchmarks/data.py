"""From a text to batches: how fast it becomes tokens, in how much memory, and what a batch costs.

    python -m benchmarks.data
    python -m benchmarks.data --megabytes 200          a smaller text, for a shorter wait
    python -m benchmarks.data --text TinyStories.txt   yours

Text to tokens is the whole way of `train.py --data`: three readings (where the validation text
begins, what the tokenizer learns, the ids) and the files on the disk, in a process of its own,
whose peak memory is told. The text is made here unless it is given: of random words, some
often and most of them rarely, and with a new one in each document.

A batch is cut from a file of a gigabyte, warm and cold. Cold means that the system was asked to
forget the file's pages (Linux does so), and then each row waits for the disk. What a training
step sees of that is the last figure: the wait for a batch that was prepared ahead, beside a
step of 18 ms, which is what a fast GPU takes for the 40M model.
"""

import itertools
import mmap
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Report, option_parser, say
from npgpt.corpus.token_files import TokenFile
from npgpt.data import ahead, get_batch
from npgpt.tokenizer import END_OF_TEXT

STEP_SECONDS = 0.018
TOKENS = 500_000_000
VOCABULARY = 200_000  # different words of the text
PREPARE = """
import sys
from npgpt.cli import parse
from npgpt.plan import peak_memory_bytes
from npgpt.corpus.prepare import prepare
from npgpt.settings import Settings, with_preset
settings = with_preset(*parse(Settings, sys.argv[1:]))
prepare(settings)
print(peak_memory_bytes())
"""


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=2000, help="how long a text to make")
    parser.add_argument("--text", help="a text to take instead")
    options = parser.parse_args(argv)
    report = Report("a text to tokens, tokens to batches")
    with tempfile.TemporaryDirectory() as folder:
        text = options.text or make_text(Path(folder, "text.txt"), options.megabytes)
        measure_prepare(report, text, folder)
        measure_batches(report, Path(folder, "tokens.bin"))
    return report.finish(options)


def make_text(path, megabytes):
    """Write documents of some two hundred words, of which the rank-th is 1 / rank as frequent."""
    say(f"making {megabytes:,} MB of text ...")
    rng = np.random.default_rng(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    lengths = 1 + rng.poisson(1 + np.log(np.arange(VOCABULARY) + 1) / 2.5)
    words = ["".join(letters[int(26**u) - 1] for u in rng.random(n)) for n in lengths]
    with open(path, "w", encoding="ascii") as file:
        while file.tell() < megabytes * 1_000_000:
            ranks = (VOCABULARY ** rng.random(1 << 20)).astype(int) - 1
            for part in np.array_split(ranks, len(ranks) // 200):
                text = " ".join([words[rank] for rank in part.tolist()])
                file.write(f"{text} and x{rng.integers(1 << 40):x}.{END_OF_TEXT}\n")
    return path


def measure_prepare(report, text, folder):
    """Time `--data text` from the beginning to the last file, and its peak memory."""
    size = os.path.getsize(text)
    for first in (True, False):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PREPARE, "--data", text, "--vocab-size", "10000"],
            capture_output=True, text=True, check=True, env={**os.environ, "NPGPT_DATA": folder},
        )  # fmt: skip
        seconds = time.perf_counter() - started
        say(done.stdout)
        if first:
            report.add("text to tokens, the whole way", size / 1e6 / seconds, "MB/s", at_least=20)
            # A text that took less than a second is told without a rate.
            if rate := re.search(r"train\.bin: .*; ([\d.]+) MB/s", done.stdout):
                report.add("  of which the ids", float(rate[1]), "MB/s")
        else:
            report.add("the same text again: found and checked", seconds, "s")
        peak = int(done.stdout.split()[-1])
        report.add(f"  peak memory, {size / 1e6:,.0f} MB of text", peak / 1e6, "MB", at_most=500)


def measure_batches(report, path):
    """Time get_batch on a large file, and the wait for it in a loop of steps."""
    say(f"making {TOKENS:,} tokens ...")
    with open(path, "wb") as file:
        for seed in range(TOKENS // 10_000_000):
            np.random.default_rng(seed).integers(0, 10_000, 10_000_000, np.uint16).tofile(file)
        file.flush()
        os.fsync(file.fileno())  # pages that are not on the disk can't be forgotten
    tokens = mapped(path)
    for rows, width in ((16, 128), (256, 128), (32, 1024)):
        seconds = [timed(tokens, step, rows, width) for step in range(100)]
        report.add(f"batch of {rows} x {width}", 1e3 * statistics.median(seconds), "ms")

    del tokens  # pages that are mapped are not forgotten
    for name, told in (("cold, the system not told", False), ("cold, told of random reads", True)):
        seconds = []
        for step in range(1000, 1008):
            forget(path)
            seconds.append(timed(mapped(path, told), step, 256, 128))
        report.add(f"batch of 256 x 128, {name}", 1e3 * statistics.median(seconds), "ms")

    forget(path)
    tokens, waits = mapped(path), []
    batches = ahead(lambda n: get_batch(tokens, 1, n, 256, 128), itertools.count(2000), threads=4)
    next(batches)
    for _ in range(100):
        time.sleep(STEP_SECONDS)
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
    batches.close()
    wait = 1e3 * statistics.median(waits)
    report.add("wait beside steps of 18 ms, begun cold", wait, "ms", at_most=0.5)
    report.add("  the longest of 100", 1e3 * max(waits), "ms")


def mapped(path, random_reads=True):
    """The tokens of a file as a run has them."""
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = TokenFile(path, np.frombuffer(mapping, np.uint16), {}, mapping)
    if random_reads:
        found.expect_random_reads()
    return found.tokens


def timed(tokens, step, rows, width):
    started = time.perf_counter()
    get_batch(tokens, 1, step, rows, width)
    return time.perf_counter() - started


def forget(path):
    """Ask the system to drop a file's pages from memory, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
