"""The 40M preset, trained by train.py for some minutes: its loss curve, and samples.

The run stays in runs/, to be heard with generate.py; the curve, the log and the samples are copied.

The number of steps is chosen from the time of a few, so that the learning rate comes down in time.
Were they too many, train.py is asked to stop while there is time to tell how far it came.
"""

import contextlib
import gc
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.part import run
from npgpt.errors import UserError
from npgpt.plot import plot_run

ROOT = Path(__file__).resolve().parents[2]
LINES = 20  # of the loss curve
STOPPING_TAKES = 30.0  # seconds: the step it is in, a checkpoint, and what is told here
STORYBOOK = ("--words", "2000000", "--vocab-size", "1280")  # it has no 10,000 different tokens


def steps_in(minutes, rows):
    """How many steps of so many rows fit into some minutes."""
    import cupy

    from benchmarks.gpu.steps import Npgpt

    steps = Npgpt(rows)
    steps.run(4)
    seconds, _ = steps.run(10)
    del steps  # its memory is for train.py, which is another process
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    return max(40, int(60 * minutes / (1.05 * seconds)))


def measure(report, wishes):
    end = time.monotonic() + wishes.seconds - STOPPING_TAKES
    steps = steps_in(wishes.minutes, 256)
    run_dir = ROOT / "runs" / f"gpu-{int(time.time())}"
    data = ["--data", wishes.data] if wishes.data else ["--data", "storybook", *STORYBOOK]
    command = [
        sys.executable, "-u", "train.py", "--backend", "cupy", "--preset", "tinystories-40m",
        "--run", run_dir, *data, "--steps", steps, "--warmup-steps", max(10, steps // 20),
        "--log-every", max(1, steps // 40), "--eval-every", max(1, steps // 8),
        "--sample-every", max(1, steps // 3), "--save-every", steps,
    ]  # fmt: skip
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT)
    try:
        status = process.wait(max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"{steps} steps take too long: stopping", flush=True)
        process.terminate()  # it finishes its step, and saves
        status = process.wait()
    if status != 0:
        report.failed("train.py", RuntimeError(f"it ended with status {status}"))
        with contextlib.suppress(UserError):  # it draws only what it has finished
            plot_run(run_dir)
    for name in ("loss.png", "log.jsonl", "samples.txt"):
        if (run_dir / name).exists():
            shutil.copy(run_dir / name, Path(wishes.out) / f"train-{name}")
    tell(report, run_dir)


def tell(report, run_dir):
    """The curve, from the run's log."""
    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text("utf-8").splitlines()]
    train = [row for row in log if "loss" in row]
    print("\nstep      loss    norm      ms")
    for row in train[:: max(1, len(train) // LINES)]:
        print(
            f"{row['step']:<8d} {row['loss']:7.4f} {row['norm']:7.3f} {row['ms']:7.2f}", flush=True
        )
    valid = [row for row in log if "valid_loss" in row]
    report.add("steps taken", len(train))
    report.add("training loss at the end", train[-1]["loss"], "nats")
    report.add("time of a step", sorted(row["ms"] for row in train)[len(train) // 2], "ms")
    if valid:
        report.add("validation loss at the end", valid[-1]["valid_loss"], "nats")
        if valid[-1].get("floor") is not None:
            report.add("entropy of the source", valid[-1]["floor"], "nats")


if __name__ == "__main__":
    run("Training the 40M preset", measure)
