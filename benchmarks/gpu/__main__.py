"""All that is claimed about npgpt on an NVIDIA GPU, checked and measured.

    python -m benchmarks.gpu                              everything, in under ten minutes
    python -m benchmarks.gpu --parts parity,steps         some parts of it
    python -m benchmarks.gpu --parts train --minutes 8 --data tokens/
    python -m benchmarks.gpu --parts sanitize             NVIDIA's memory and race checkers, slow

The parts, each in a process of its own, so that one that fails takes none of the others along:
    parity     every layer and the whole model on this GPU, in float32, bf16 and fp16, against the
               lecture text in float64; and whether the same seed gives the same bits
    ceilings   what the GPU can do at best: matrix products, and copying
    kernels    each kernel at the shapes of a preset: microseconds, and share of the ceiling
    steps      whole training steps, beside PyTorch's in its fastest forms, taking turns
    generate   tokens a second from a KV cache, beside PyTorch's
    train      the 40M preset, trained for some minutes: its loss curve
    sanitize   (only when named) compute-sanitizer over the small kernels of `parity`

Figures are printed as they come, and kept in OUT/gpu.json and OUT/gpu.md after each part.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.report import machine
from npgpt.cli import main_with_errors
from npgpt.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# The parts, and how many seconds each may take at most.
PARTS = {"parity": 120, "ceilings": 45, "kernels": 75, "steps": 280, "generate": 60, "train": 120}
EXTRA = {"sanitize": 560}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--minutes", type=float, default=0.75, help="of the part train")
    parser.add_argument("--data", help="what train learns from, as train.py's --data")
    parser.add_argument("--batches", default="256,32", help="rows of a step, in the part steps")
    parser.add_argument("--all-variants", action="store_true", help="all 16 of PyTorch's forms")
    parser.add_argument("--limit", type=float, help="seconds a part may take, in place of its own")
    parser.add_argument("--total", type=float, default=580, help="seconds all may take")
    parser.add_argument("--out", default="runs/gpu", help="folder for gpu.json and gpu.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    parts = [part.strip() for part in options.parts.split(",") if part.strip()]
    for part in parts:
        if part not in {**PARTS, **EXTRA}:
            known = ", ".join({**PARTS, **EXTRA})
            raise UserError(f"--parts has no {part!r}: choose from {known}")
    card = find_card(parts)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = machine()
    facts = {**facts, "gpu": card["gpu"], "versions": {**facts["versions"], **card["versions"]}}
    print(f"{facts['gpu']}, {facts['date']}, {facts['versions']}\n", flush=True)
    if options.data and Path(options.data).exists():
        options.data = str(Path(options.data).resolve())  # the parts run in the project's folder
    rows, end = [], time.monotonic() + options.total
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            print(f"--- {part}", flush=True)
            kept = Path(scratch) / f"{part}.jsonl"
            rows += run_part(part, options, out, kept, end - time.monotonic())
            write_tables(out, facts, rows)
    missed = [row["name"] for row in rows if row["met"] is False]
    bars = sum(row["met"] is not None for row in rows)
    print(
        f"\n{bars - len(missed)} of {bars} bars met" + "".join(f"\n  missed: {m}" for m in missed)
    )
    print(f"wrote {out / 'gpu.json'}, and {out / 'gpu.md'}:\n")
    print((out / "gpu.md").read_text("utf-8"))
    return 1 if options.check and missed else 0


def find_card(parts):
    """What the GPU is called, and the versions of what drives it.

    Returns: dict with "gpu" and "versions".
    Raises:  UserError if there is none: every part needs one.
    """
    from npgpt.backend import select_backend

    try:
        cupy = select_backend("cupy")
    except UserError as error:
        for part in parts:
            print(f"{part:10s} not measured: it needs a GPU", flush=True)
        raise UserError(f"nothing was measured: {error}") from None
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    versions = dict(
        cupy=cupy.__version__, cuda=runtime.runtimeGetVersion(), driver=runtime.driverGetVersion()
    )
    return dict(gpu=name, versions=versions)


def run_part(part, options, out, kept, left):
    """Run one part in a process of its own.

    Args:    part; options; out, a folder; kept, the file of its rows, one by one; left, the
             seconds that all parts together have left.
    Returns: its rows; one that says so, with a bar that is missed, if it failed or took too long.
    """
    limit = options.limit or {**PARTS, **EXTRA}[part] + (60 * options.minutes) * (part == "train")
    limit = min(limit, max(1.0, left))
    command = [sys.executable, "-u", "-m", f"benchmarks.gpu.{part}", str(kept)]
    if part == "sanitize":
        command = sanitizer() + command
    wishes = dict(minutes=options.minutes, data=options.data, batches=options.batches,
                  all_variants=options.all_variants, out=str(out), seconds=limit)  # fmt: skip
    process = subprocess.Popen(
        [*command, json.dumps(wishes)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=os.name == "posix",
    )  # fmt: skip
    late = threading.Event()

    def stop():
        late.set()
        kill(process)

    timer = threading.Timer(limit, stop)
    timer.start()
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    status = process.wait()
    timer.cancel()
    kill(process)  # and what it started, which may outlive it
    rows = [json.loads(line) for line in read_lines(kept)]
    if late.is_set() or status != 0:
        why = f"it took longer than {limit:.0f} s" if late.is_set() else f"status {status}: {last}"
        print(f"{part} failed: {why}", flush=True)
        rows.append(dict(name=f"{part} failed: {why[:200]}", value=None, unit="", at_least=None,
                         at_most=None, met=False))  # fmt: skip
    return [{"part": part, **row} for row in rows]


def kill(process):
    """End a process and those that it started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, 9)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


def sanitizer():
    """The command that runs a program under NVIDIA's memory checker."""
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if found is None:
        raise UserError("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    return [found, "--tool", "memcheck", "--error-exitcode", "9"]


def read_lines(path):
    return path.read_text("utf-8").splitlines() if path.exists() else []


def write_tables(out, facts, rows):
    """Keep what is known so far, for programs and for people."""
    (out / "gpu.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", "utf-8")
    lines = [
        f"Measured on {facts['date']}: {facts['gpu']}, {facts['processor']}, Python "
        f"{facts['python']}, " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        "",
        "| part | what | figure | bar | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:,.4g} {row['unit']}".strip()
        bar = ""
        if row["at_least"] is not None:
            bar = f"≥ {row['at_least']:g}"
        if row["at_most"] is not None:
            bar = f"≤ {row['at_most']:g}"
        met = {None: "", True: "met", False: "**missed**"}[row["met"]]
        lines.append(f"| {row['part']} | {row['name']} | {value} | {bar} | {met} |")
    (out / "gpu.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main_with_errors(main))
