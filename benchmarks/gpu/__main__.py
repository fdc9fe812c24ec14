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
On a GPU of 60 GB or more PyTorch's forms for `steps` are compiled beside `parity`: see ahead.py.

Figures are printed as they come, and kept in OUT/gpu.json and OUT/gpu.md as they come, too: whoever
stops this program loses nothing. All that was printed is in OUT/gpu.log; what failed has its
traceback in gpu.json.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.ahead import compiled_ahead
from benchmarks.gpu.runner import run_part
from benchmarks.gpu.steps import compiled_forms
from benchmarks.report import machine
from npgpt.checkpoint import write_atomic
from npgpt.cli import main_with_errors
from npgpt.errors import UserError

# The parts, and the seconds that each would like to have: they share those that there are.
PARTS = {"parity": 150, "ceilings": 25, "kernels": 60, "steps": 240, "generate": 45, "train": 70}
EXTRA = {"sanitize": 560}
ROOMY = 60e9  # bytes of a GPU on which PyTorch's forms leave `parity` beside them enough


def main():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--minutes", type=float, default=0.75, help="of the part train")
    parser.add_argument("--data", help="what train learns from, as train.py's --data")
    parser.add_argument("--batches", default="256,32", help="rows of a step, in the part steps")
    parser.add_argument("--all-variants", action="store_true", help="all 16 of PyTorch's forms")
    parser.add_argument("--limit", type=float, help="seconds a part may take, not its share")
    parser.add_argument("--total", type=float, default=580, help="seconds all may take")
    parser.add_argument("--out", default="runs/gpu", help="folder for gpu.json and gpu.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    parts = [part.strip() for part in options.parts.split(",") if part.strip()]
    for part in parts:
        if part not in {**PARTS, **EXTRA}:
            known = ", ".join({**PARTS, **EXTRA})
            raise UserError(f"--parts has no {part!r}: choose from {known}")
    if not all(rows.strip().isdigit() and int(rows) > 0 for rows in options.batches.split(",")):
        raise UserError(f"--batches {options.batches!r} must be numbers of rows, as 256,32")
    card = find_card(parts)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = machine()
    facts = {**facts, "gpu": card["gpu"], "versions": {**facts["versions"], **card["versions"]}}
    print(f"{facts['gpu']}, {facts['date']}, {facts['versions']}\n", flush=True)
    if options.data and Path(options.data).exists():
        options.data = str(Path(options.data).resolve())  # the parts run in the project's folder
    rows, end = [], time.monotonic() + options.total
    with (
        tempfile.TemporaryDirectory() as scratch,
        (out / "gpu.log").open("w", encoding="utf-8") as log,
    ):
        for i, part in enumerate(parts):
            left = max(1.0, end - time.monotonic())
            limit = min(left, options.limit or share(parts[i:], options.minutes, left))
            wishes = dict(
                minutes=options.minutes, data=options.data, batches=options.batches,
                all_variants=options.all_variants, out=str(out), seconds=limit,
            )  # fmt: skip
            kept, beside = Path(scratch) / f"{part}.jsonl", contextlib.nullcontext()
            if part == "parity" and "steps" in parts[i:] and card["bytes"] > ROOMY:
                beside = compiled_ahead(compiled_forms(options.batches, options.all_variants), log)
            with beside:
                rows.extend(
                    run_part(
                        part, wishes, kept, log, lambda new: write_tables(out, facts, rows + new)
                    )
                )
            write_tables(out, facts, rows)
    missed = [row["name"] for row in rows if row["met"] is False]
    bars = sum(row["met"] is not None for row in rows)
    print(f"\nwrote {out / 'gpu.json'}, and {out / 'gpu.md'}:\n")
    print((out / "gpu.md").read_text("utf-8"))
    print(f"{bars - len(missed)} of {bars} bars met" + "".join(f"\n  missed: {m}" for m in missed))
    return 1 if options.check and missed else 0


def find_card(parts):
    """What the GPU is called, its memory, and the versions of what drives it.

    Returns: dict with "gpu", "bytes" and "versions".
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
    properties = runtime.getDeviceProperties(0)
    name, size = properties["name"].decode(), properties["totalGlobalMem"]
    versions = dict(
        cupy=cupy.__version__, cuda=runtime.runtimeGetVersion(), driver=runtime.driverGetVersion()
    )
    return dict(gpu=name, bytes=size, versions=versions)


def share(parts, minutes, left):
    """The seconds that the first of some parts may take, where all have so many left together.

    What a part leaves, those after it have more.
    """
    wants = {**PARTS, **EXTRA, "train": PARTS["train"] + 60 * minutes}
    return left * wants[parts[0]] / sum(wants[part] for part in parts)


def write_tables(out, facts, rows):
    """Keep what is known so far, for programs and for people."""
    write_atomic(out / "gpu.json", (json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())
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
    write_atomic(out / "gpu.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main_with_errors(main))
