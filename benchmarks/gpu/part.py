"""What the parts share: options, rows that are kept as soon as they are known, and a clock."""

import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

from benchmarks.report import Report


class PartReport(Report):
    """A report whose rows are written down one by one: what comes after may fail."""

    def __init__(self, title, path):
        super().__init__(title)
        self.path = Path(path)

    def add(self, *args, **kwargs):
        super().add(*args, **kwargs)
        self._keep()

    def failed(self, name, error, counts=True):
        """Keep that something could not be measured, and why; the part goes on.

        Args:    name; error; counts, whether it is a bar that was missed.
        """
        traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        said = f"{name} failed: {type(error).__name__}: {reason}"[:200]
        print(said, flush=True)
        self.rows.append(dict(name=said, value=None, unit="", at_least=None, at_most=None,
                              met=False if counts else None))  # fmt: skip
        self._keep()

    def _keep(self):
        row = self.rows[-1]
        if row["value"] is not None:
            row["value"] = float(row["value"])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def run(title, measure):
    """Be a part: measure(report, wishes) with what __main__ asked for.

    Args:    title; measure.
    Returns: nothing; what goes wrong within measure is for the process to fail with.
    """
    report = PartReport(title, sys.argv[1])
    measure(report, SimpleNamespace(**json.loads(sys.argv[2])))


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
            for call in calls:  # compiles, chooses algorithms, finds memory
                call()
            self.runtime.wait()

            def all_calls():
                for call in calls:
                    call()

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
