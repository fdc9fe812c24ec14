"""What all benchmarks share: the options, the alternation, the table, and the bars."""

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

PACKAGES = ("numpy", "numba", "torch", "cupy", "regex", "tokenizers", "tiktoken")


class Report:
    """Figures, and the bars that some of them must clear.

    Args:    title, one line that says what was measured.
    """

    def __init__(self, title):
        self.title = title
        self.rows = []

    def add(self, name, value, unit="", at_least=None, at_most=None):
        """Keep a figure, and print it with its bar.

        Args:    name; value, a number; unit, "x" for a ratio; at_least or at_most, the bar that
                 the value must reach, None for a figure that is only told.
        """
        bar = at_least if at_least is not None else at_most
        met = None
        if bar is not None:
            met = bool(value >= at_least) if at_least is not None else bool(value <= at_most)
        self.keep(dict(name=name, value=value, unit=unit, at_least=at_least,
                       at_most=at_most, met=met))  # fmt: skip
        told = "" if bar is None else f"  {'>=' if at_least is not None else '<='} {bar:g}"
        verdict = {None: "", True: "  met", False: "  MISSED"}[met]
        print(f"{name:56s} {value:12,.4g} {unit:8s}{told}{verdict}", flush=True)

    def keep(self, row):
        """Keep a row, before it is printed."""
        self.rows.append(row)

    def finish(self, options):
        """Write the JSON if asked for.

        Args:    options, from parse_options.
        Returns: the exit status: 1 if --check was given and a bar is missed.
        """
        missed = [row["name"] for row in self.rows if row["met"] is False]
        bars = sum(row["met"] is not None for row in self.rows)
        print(
            f"\n{bars - len(missed)} of {bars} bars met"
            + "".join(f"\n  missed: {m}" for m in missed)
        )
        if options.json:
            figures = dict(title=self.title, **machine(), rows=self.rows)
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        return 1 if options.check and missed else 0


def option_parser(description):
    """An argument parser with what every benchmark has: --check and --json."""
    spec = sys.modules["__main__"].__spec__
    parser = argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,  # as Python 3.14 does by itself
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--json", metavar="FILE", help="keep the figures in FILE")
    return parser


def machine():
    """Date, processor and versions: what a figure is worth nothing without."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(
        date=datetime.date.today().isoformat(), processor=processor(), threads=os.cpu_count(),
        python=platform.python_version(), versions=versions,
    )  # fmt: skip


def processor():
    """The processor's name, as well as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
        return text.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    except OSError:
        return platform.processor() or platform.machine()


def alternate(contestants, rounds, pause=0.03, clock=time.perf_counter):
    """Time functions in turn, again and again, so that a busy moment harms all of them.

    Args:    contestants, a dict from name to a function of nothing; rounds; pause, seconds
             between two, in which the threads of the one before fall asleep; clock, say
             time.thread_time where one thread does all and others may be busy.
    Returns: a dict from name to its seconds (rounds,).
    """
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            gc.collect()
            time.sleep(pause)
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds, peer, ours):
    """How many times faster than a peer: the median over the rounds, each round a pair."""
    return statistics.median(p / o for p, o in zip(seconds[peer], seconds[ours]))


def say(*words):
    """A line of progress, to standard error: standard output is the table."""
    print(*words, file=sys.stderr, flush=True)
