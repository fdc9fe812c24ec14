"""Run folders: what a training run leaves on disk, and how to find it again.

runs/NAME/
  settings.json      what was asked for
  log.jsonl          one line of figures a step
  samples.txt        what the model wrote on the way
  loss.png           the loss curve
  tokens/            the data as token ids, so that a resumed run needs no text: links, where
                     that is possible, to files that runs on the same text share
  checkpoints/       weights, optimizer and tokenizer; see checkpoint.py
  .lock              held by the process that trains here
"""

import contextlib
import difflib
import json
import os
import shlex
from pathlib import Path

from npgpt.checkpoint import list_checkpoints, newest_checkpoint
from npgpt.errors import UserError
from npgpt.locks import claimed

RUNS = Path("runs")


def check_new_run(name):
    """Refuse a name that no new run can have, before any work is done for it.

    Args:    name, a name under RUNS or a path; None, which is always well, for a name of ours.
    Raises:  UserError if there is a run already, or a file.
    """
    if name is None:
        return
    run_dir = run_path(name)
    if list_checkpoints(run_dir):
        raise UserError(
            f"{run_dir} already holds a run: add --resume to continue it, or choose another --run"
        )
    if os.path.lexists(run_dir) and not os.path.isdir(run_dir):
        raise UserError(f"{run_dir} is a file, and a run needs a folder: choose another --run")


def make_run_dir(name, preset):
    """Make the folder of a new run: the named one, or the first free RUNS/preset-NNN.

    Two runs that start together may both find a number free, but only one can make its folder.

    Returns: its path.
    Raises:  UserError if it can't be made.
    """
    number = 1
    while True:
        run_dir = RUNS / f"{preset}-{number:03d}" if name is None else run_path(name)
        try:
            run_dir.mkdir(parents=True, exist_ok=name is not None)
            return run_dir
        except OSError as error:
            if name is not None or not os.path.lexists(run_dir):
                raise UserError(
                    f"can't make the folder {run_dir} ({error.strerror}): choose another --run"
                ) from None
            number += 1


def claim(run_dir):
    """Keep a run's folder to this process: two that train there would spoil each other's work.

    Args:    run_dir, which is there.
    Returns: a file; the folder is free again when it is closed, or the process ends.
    Raises:  UserError if another process trains there.
    """
    file = claimed(Path(run_dir) / ".lock")
    if file is None:
        raise UserError(
            f"another process trains in {run_dir}: wait for its end, or choose another --run"
        )
    return file


def run_path(name):
    """A run's folder from its name under RUNS, or from a path.

    A lone word is a name, even where a folder of that name lies here: `--run data` must not
    write into ./data. Only a folder that holds a run, and no run of that name, is meant itself.
    NAME/best is the best of the run of that name (see --keep-best).
    """
    path = Path(name)
    if path.name == "best" and not list_checkpoints(path) and list_checkpoints(RUNS / path):
        return RUNS / path
    if len(path.parts) != 1 or path.name in ("", "..") or set(str(name)) & {"/", os.sep}:
        return path
    return path if list_checkpoints(path) and not os.path.isdir(RUNS / path) else RUNS / path


def typed(path):
    """A path as one would type it in a command: in quotes if it has a space, say."""
    if os.name == "posix":
        return shlex.quote(str(path))
    return f'"{path}"' if " " in str(path) else str(path)


def find_run(name=None):
    """The folder of a run with a checkpoint: the named one, or the one saved to last.

    Args:    name, a name under RUNS or a path; None for the newest.
    Raises:  UserError if there is none.
    """
    if name is not None:
        run_dir = run_path(name)
        if not list_checkpoints(run_dir):
            raise UserError(f"there is no checkpoint in {run_dir}: {instead_of(name)}")
        return run_dir
    found = [c for folder in RUNS.glob("*") for c in list_checkpoints(folder)]
    if not found:
        raise UserError(f"there is no trained model under {RUNS}/ yet: run python train.py first")
    return max(found, key=lambda c: c.stat().st_mtime_ns).parent.parent


def instead_of(name):
    """What to do about a name that no run with a checkpoint has: the end of a sentence.

    Args:    name, a name under RUNS or a path.
    Returns: a str.
    """
    run_dir = run_path(name)
    if (run_dir / "settings.json").is_file():  # it is on its way, or was killed too early
        return (
            "wait for its first checkpoint, or begin anew with "
            f"python train.py --run {typed(run_dir)}"
        )
    names = sorted(folder.name for folder in RUNS.glob("*") if list_checkpoints(folder))
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose one of {', '.join(names)}" if names else "run python train.py first"


def load_run(run_dir, groups=None):
    """The newest whole checkpoint of a run.

    Args:    run_dir; groups of arrays to read, None for all.
    Raises:  UserError if there is none.
    """
    checkpoint = newest_checkpoint(run_dir, groups=groups)
    if checkpoint is None:
        raise UserError(f"there is no checkpoint in {run_dir}: train one with python train.py")
    return checkpoint


def read_log(run_dir):
    """The lines of log.jsonl as dicts, each with a step.

    A line that is something else is passed over, as the last one may be, torn by a crash.
    """
    try:
        lines = (Path(run_dir) / "log.jsonl").read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
    return records
