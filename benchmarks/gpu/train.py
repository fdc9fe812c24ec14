"""The 40M preset, trained by train.py for some minutes: its loss curve, and samples.

The run stays in runs/, to be heard with generate.py; the curve, the log and the samples are copied.

The number of steps is chosen from the time of a few, so that the learning rate comes down in time.
"""

import gc
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.part import run

ROOT = Path(__file__).resolve().parents[2]
LINES = 20  # of the loss curve
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
    steps = steps_in(wishes.minutes, 256)
    run_dir = ROOT / "runs" / f"gpu-{int(time.time())}"
    data = ["--data", wishes.data] if wishes.data else ["--data", "storybook", *STORYBOOK]
    command = [
        sys.executable, "-u", "train.py", "--backend", "cupy", "--preset", "tinystories-40m",
        "--run", run_dir, *data, "--steps", steps, "--warmup-steps", max(10, steps // 20),
        "--log-every", max(1, steps // 40), "--eval-every", max(1, steps // 8),
        "--sample-every", max(1, steps // 3), "--save-every", steps,
    ]  # fmt: skip
    try:
        subprocess.run([str(word) for word in command], cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        report.failed("train.py", error)
    tell(report, run_dir)
    for name in ("loss.png", "log.jsonl", "samples.txt"):
        if (run_dir / name).exists():
            shutil.copy(run_dir / name, Path(wishes.out) / f"train-{name}")


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
