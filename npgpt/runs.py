"""Run folders: what a training run leaves on disk, and how to find it again.

runs/NAME/
  settings.json      what was asked for
  log.jsonl          one line of figures a step
  samples.txt        what the model wrote on the way
  loss.png           the loss curve
  tokens/            the data as token ids, so that a resumed run needs no text
  checkpoints/       weights, optimizer and tokenizer; see checkpoint.py
"""

import json
from pathlib import Path

from npgpt.checkpoint import list_checkpoints, newest_checkpoint
from npgpt.errors import UserError

RUNS = Path("runs")


def new_run_dir(name, preset):
    """Choose the folder of a new run: RUNS/name, or the first free RUNS/preset-NNN.

    Raises:  UserError if the named run already has checkpoints.
    """
    if name is None:
        number = 1
        while (RUNS / f"{preset}-{number:03d}").exists():
            number += 1
        return RUNS / f"{preset}-{number:03d}"
    run_dir = run_path(name)
    if list_checkpoints(run_dir):
        raise UserError(
            f"{run_dir} already holds a run: add --resume to continue it, or choose another --run"
        )
    return run_dir


def run_path(name):
    """A run's folder from its name under RUNS, or from a path."""
    path = Path(name)
    return path if path.is_dir() or len(path.parts) > 1 else RUNS / path


def find_run(name=None):
    """The folder of a run with a checkpoint: the named one, or the one saved to last.

    Args:    name, a name under RUNS or a path; None for the newest.
    Raises:  UserError if there is none.
    """
    if name is not None:
        run_dir = run_path(name)
        if not list_checkpoints(run_dir):
            raise UserError(f"there is no checkpoint in {run_dir}: train one with python train.py")
        return run_dir
    found = [c for folder in RUNS.glob("*") for c in list_checkpoints(folder)]
    if not found:
        raise UserError(f"there is no trained model under {RUNS}/ yet: run python train.py first")
    return max(found, key=lambda c: c.stat().st_mtime_ns).parent.parent


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
    """The lines of log.jsonl as dicts; a last line torn by a crash is passed over."""
    try:
        lines = (Path(run_dir) / "log.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
