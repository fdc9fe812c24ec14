"""What a run says while it runs: a bar with the time left, log lines, and JSON lines on disk.

`python -m npgpt.runlog RUN > losses.csv` makes a table of those for a spreadsheet, one row a step.
With --tensorboard, train.py writes the same figures for TensorBoard too (see tensorboard.py).
"""

import contextlib
import csv
import json
import sys
from pathlib import Path

from tqdm import tqdm

from npgpt.checkpoint import write_atomic
from npgpt.cli import main_with_errors
from npgpt.errors import UserError
from npgpt.runs import find_run, read_log
from npgpt.tensorboard import EventFile


class RunLog:
    """The log of one run: every step goes to log.jsonl, every few to the terminal.

    Args:    run_dir; step, where the run begins or resumes: what an earlier, killed attempt
             logged from there on is dropped, so that nothing stands twice; total_steps;
             tensorboard, whether to write an event file too.
    """

    def __init__(self, run_dir, step, total_steps, tensorboard=False):
        self.path = Path(run_dir) / "log.jsonl"
        kept = [r for r in read_log(run_dir) if r["step"] < step + ("loss" in r)]
        write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")
        self.events = EventFile(run_dir) if tensorboard else None
        for record in kept if tensorboard else ():
            self._tell_tensorboard(record)
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
            self._tell_tensorboard(clean)
        except OSError as error:  # a full disk is met here first: lines are more than checkpoints
            raise UserError(
                f"could not write {self.path} ({error.strerror}): make room on that disk, "
                "then go on with --resume from the last checkpoint"
            ) from error

    def _tell_tensorboard(self, record):
        if self.events is not None:
            numbers = {k: v for k, v in record.items() if k != "step" and type(v) in (int, float)}
            self.events.add(record["step"], numbers)

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
            if self.events is not None:
                self.events.close()


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


def write_csv(records, file):
    """Write the records of a log as a table, one row a step.

    Args:    records, dicts with a step, as read_log gives them; file, open for text.
    """
    rows, columns = {}, {"step": None}  # a dict, for its order
    for record in records:
        figures = {k: v for k, v in record.items() if k != "title"}
        rows.setdefault(record["step"], {}).update(figures)
        columns |= dict.fromkeys(figures)
    table = csv.DictWriter(file, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows[step] for step in sorted(rows))


def main(argv):
    """Print the log of the run that argv names, the newest if none, as CSV."""
    if len(argv) > 1 or {"-h", "--help"} & set(argv):
        print("usage: python -m npgpt.runlog [RUN]\n\nPrint a run's figures as CSV.")
        return 0 if {"-h", "--help"} & set(argv) else 2
    write_csv(read_log(find_run(argv[0] if argv else None)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main_with_errors(main, sys.argv[1:]))
