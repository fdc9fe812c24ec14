"""What a run says while it runs: a bar with the time left, log lines, and JSON lines on disk."""

import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from npgpt.runs import read_log


class RunLog:
    """The log of one run: every step goes to log.jsonl, every few to the terminal.

    Args:    run_dir; step, where the run begins or resumes: what an earlier, killed attempt
             logged from there on is dropped, so that nothing stands twice; total_steps.
    """

    def __init__(self, run_dir, step, total_steps):
        self.path = Path(run_dir) / "log.jsonl"
        kept = [r for r in read_log(run_dir) if r["step"] < step + ("loss" in r)]
        temporary = self.path.with_name(f".log.jsonl.tmp-{os.getpid()}")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), "utf-8")
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8")
        # No bar where nobody watches: a file or a pipe gets the lines alone.
        self.bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True, leave=False,
            disable=not sys.stderr.isatty(), smoothing=0.1,
        )  # fmt: skip

    def record(self, **figures):
        """Append one JSON line; a float that is not finite is written as null."""
        clean = {k: _finite(v) for k, v in figures.items()}
        self.file.write(json.dumps(clean) + "\n")
        self.file.flush()

    def say(self, text=""):
        """Print above the bar."""
        self.bar.clear()
        print(text, flush=True)
        self.bar.refresh()

    def advance(self):
        """One step is done."""
        self.bar.update()

    def close(self):
        self.bar.close()
        self.file.close()


def _finite(value):
    is_bad = isinstance(value, float) and (value != value or abs(value) == float("inf"))
    return None if is_bad else value
