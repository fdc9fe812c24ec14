"""What the tests of train.py share: a run that takes a blink, and ways to start one."""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import train
from npgpt.checkpoint import list_checkpoints, load_checkpoint
from npgpt.cli import main_with_errors, parse
from npgpt.runs import read_log
from npgpt.settings import Settings

ROOT = Path(__file__).resolve().parents[1]

# Everything happens at least once in it: validation, a sample, several checkpoints.
SMALL = (
    "--preset tiny --words 3000 --vocab-size 280 --block-size 16 --n-layer 1 --n-embd 16 "
    "--n-hidden 16 --batch-size 4 --steps 12 --warmup-steps 3 --eval-every 5 --eval-tokens 200 "
    "--sample-every 4 --sample-tokens 8 --save-every 4 --threads 2"
).split()


def quick(monkeypatch):
    """Leave out what takes long and changes nothing: measuring the processor, and the picture."""
    monkeypatch.setattr(train.plan, "measure_matmul_peak", lambda workers: 1e12)
    monkeypatch.setattr(train, "plot_run", lambda run_dir: run_dir / "loss.png")


def call(capsys, *argv):
    """Run train.py within this process: its status, stdout and stderr."""
    summary, _, epilog = train.__doc__.partition("\n")
    status = main_with_errors(lambda: train.main(*parse(Settings, argv, summary, epilog)))
    return (status, *capsys.readouterr())


@functools.cache
def compile_kernels():
    """Run train.py once: the first process on a machine that does says so, and takes its time."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, ROOT / "train.py", *SMALL]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)


def start(*argv, cwd, **options):
    """Start train.py as a process of its own, its kernels compiled already."""
    compile_kernels()
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *argv], cwd=cwd, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def weights(run_dir):
    """Every array of a run's newest checkpoint, by group and name."""
    arrays = load_checkpoint(list_checkpoints(run_dir)[-1]).arrays
    return {(group, name): a for group, named in arrays.items() for name, a in named.items()}


def fingerprint(run_dir):
    """All of a run that must not depend on how often it was stopped: to be compared with ==."""
    newest = list_checkpoints(run_dir)[-1]
    log = [{k: v for k, v in record.items() if k != "ms"} for record in read_log(run_dir)]
    return {
        "checkpoint": newest.name,
        "model": (newest / "model.safetensors").read_bytes(),
        "optimizer": (newest / "optimizer.safetensors").read_bytes(),
        "log": sorted(log, key=lambda r: (r["step"], "loss" in r)),
        "samples": (Path(run_dir) / "samples.txt").read_text("utf-8"),
    }


def tree(folder):
    """Every file under a folder with its content: what must not change."""
    files = (f for f in Path(folder).rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}
