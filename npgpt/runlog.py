"""What a run says while it runs: a bar with the time left, log lines, and JSON lines on disk."""

import contextlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from npgpt.checkpoint import write_atomic
from npgpt.errors import UserError
from npgpt.runs import read_log


class RunLog:
    """The log of one run: every step goes to log.jsonl, every few to the terminal.

    Args:    run_dir; step, where the run begins or resumes: what an earlier, killed attempt
             logged from there on is dropped, so that nothing stands twice; total_steps.
    """

    def __init__(self, run_dir, step, total_steps):
        self.path = Path(run_dir) / "log.jsonl"
        kept = [r for r in read_log(run_dir) if r["step"] < step + ("loss" in r)]
        write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")
        # No bar where nobody watches: a file or a pipe gets the lines alone.
        self.bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True, leave=False,
            disable=not sys.stderr.isatty(), smoothing=0.1,
        )  # fmt: skip

    def record(self, **figures):
        """Append one JSON line; a float that is not finite is written as null."""
        clean = {k: finite(v) for k, v in figures.items()}
        try:
            self.file.write(json.dumps(clean) + "\n")
            self.file.flush()
        except OSError as error:  # a full disk is met here first: lines are more than checkpoints
            raise UserError(
                f"could not write {self.path} ({error.strerror}): make room on that disk, "
                "then go on with --resume from the last checkpoint"
            ) from error

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
        with contextlib.suppress(OSError):  # the line that did not fit before does not fit now
            self.file.close()


def byte_bar(what, total, done=0):
    """A bar that counts bytes, of what is read or fetched; none where nobody watches.

    Args:    what, the word before it; total, None where nobody knows; done already.
    Returns: a tqdm, to be used as `with byte_bar(...) as bar:`.
    """
    return tqdm(
        desc=what, total=total, initial=done, unit="B", unit_scale=True, dynamic_ncols=True,
        leave=False, delay=0.5, disable=not sys.stderr.isatty(),
    )  # fmt: skip


def finite(value):
    """The value, or None for a float that JSON has no word for."""
    is_bad = isinstance(value, float) and (value != value or abs(value) == float("inf"))
    return None if is_bad else value
