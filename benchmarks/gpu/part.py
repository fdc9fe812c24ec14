"""What the parts share: options, rows that are kept as soon as they are known, and a clock."""

import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

from benchmarks.gpu.runner import failure
from benchmarks.report import Report

LONGEST_TRACE = 6000  # characters: the end says what went wrong


class PartReport(Report):
    """A report whose rows are written down one by one: what comes after may fail."""

    def __init__(self, title, path):
        super().__init__(title)
        self.path = Path(path)

    def keep(self, row):
        super().keep(row)
        if row["value"] is not None:
            row["value"] = float(row["value"])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def failed(self, name, error, counts=True):
        """Keep that something could not be measured, and why; the part goes on.

        Args:    name; error, whose attribute `trace`, where it has one, is what another process
                 tells of it; counts, whether it is a bar that was missed.
        Raises:  SystemExit if the GPU refuses this process everything from now on, as it does
                 after a fault in a kernel: the part ends here, and the next one has a process of
                 its own.
        """
        trace = getattr(error, "trace", None) or "".join(traceback.format_exception(error))
        reason = (str(error).splitlines() or [""])[0]
        said = f"{name} failed: {type(error).__name__}: {reason}"
        self.keep(failure(said, trace[-LONGEST_TRACE:], False if counts else None))
        print(trace, file=sys.stderr, flush=True)
        print(said[:200], flush=True)
        if not gpu_answers():
            sys.exit(f"the GPU refuses all else, so this part ends with: {said}"[:200])


def gpu_answers():
    """Whether the GPU still does what this process asks of it, if it asks anything."""
    cupy = sys.modules.get("cupy")
    try:
        if cupy is not None:
            cupy.cuda.Device().synchronize()
    except Exception:  # a CUDARuntimeError, of which there are as many as CuPys
        return False
    return True


def run(title, measure):
    """Be a part: measure(report, wishes) with what __main__ asked for.

    Args:    title; measure.
    """
    report = PartReport(title, sys.argv[1])
    try:
        measure(report, SimpleNamespace(**json.loads(sys.argv[2])))
    except Exception as error:
        report.failed(title, error)


def preset(name="tinystories-40m"):
    """The sizes of a preset, as a GPTConfig."""
    from npgpt.model import GPTConfig
    from npgpt.settings import Settings, with_preset

    s = with_preset(Settings(preset=name), {"preset"})
    return GPTConfig(
        vocab_size=s.vocab_size, block_size=s.block_size, n_layer=s.n_layer, n_head=s.n_head,
        n_kv_head=s.n_kv_head, n_embd=s.n_embd, n_hidden=s.n_hidden, tie=s.tie,
    )  # fmt: skip


class Clock:
    """Times what a function puts into the GPU's queue, without the gaps that the host leaves.

    The calls are recorded as a graph, which is launched again and again. What can't be recorded is
    called.

    Args:    runtime, of npgpt.backend.cuda.runtime.
    """

    def __init__(self, runtime):
        self.runtime, self.cupy = runtime, runtime.cupy

    def seconds(self, *calls, rounds=7):
        """The time of one call, the median over the rounds.

        Args:    calls, functions that do the same with different memory, one after the other,
                 so that none finds its numbers in the cache; rounds.
        """
        with self.runtime.step_memory():

            def all_calls():
                # All results are kept to the end: no call writes where the one before has written,
                # in what is still in the cache.
                return [call() for call in calls]

            all_calls()  # compiles, chooses algorithms, finds memory
            self.runtime.wait()
            try:
                launch = self.runtime.record(all_calls)
            except Exception as error:
                print(f"(not recorded, so with the host's gaps: {error})", flush=True)
                launch = all_calls
            times = []
            for _ in range(rounds):
                first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
                first.record(self.runtime.stream)
                launch()
                last.record(self.runtime.stream)
                last.synchronize()
                times.append(self.cupy.cuda.get_elapsed_time(first, last) / 1e3)
        return sorted(times)[len(times) // 2] / len(calls)
