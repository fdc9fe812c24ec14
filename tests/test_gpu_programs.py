"""Whole programs on a GPU that does not exist: fake_cupy stands in for CuPy.

Its arrays refuse to meet those of the host, its kernels are the real sources on a processor. So
what is tried here is everything but speed: train.py, --resume, generate.py, and the benchmark.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_on_cpu.runner import compiler_version
from fake_runtime import FakeRuntime

import benchmarks.gpu.__main__ as gpu_main
from benchmarks.gpu import ahead
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu.__main__ import PARTS, share, write_tables
from benchmarks.gpu.contestant import ContestantError
from benchmarks.gpu.part import Clock, PartReport
from benchmarks.gpu.runner import LAST_LINES, read_rows, run_part
from npgpt.backend import fused

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SMALL = (
    "--preset tiny --words 3000 --vocab-size 280 --block-size 8 --n-layer 1 --n-embd 32 "
    "--n-head 2 --n-hidden 32 --batch-size 2 --accumulate 2 --steps 4 --log-every 2 --eval-every 4 "
    "--eval-tokens 40 --sample-every 3 --sample-tokens 2 --save-every 2 --valid-fraction 0.01"
).split()
needs_compiler = pytest.mark.skipif(compiler_version() is None, reason="there is no C++ compiler")


def program(*words, cwd, fake=True, **environment):
    """Run a program of the project; with a CuPy that is a fake, or with none."""
    folders = [TESTS / "fake_cupy", TESTS] if fake else []
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT])),
        "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **environment,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True,
        text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def train(cwd, *words, **environment):
    return program(ROOT / "train.py", "--backend", "cupy", *words, cwd=cwd, **environment)


def read_losses(folder):
    lines = (folder / "runs" / "a" / "log.jsonl").read_text("utf-8").splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


@needs_compiler
def test_a_run_is_trained_resumed_and_heard(tmp_path):
    done = train(tmp_path, *SMALL, "--run", "a")
    assert done.returncode == 0, done.stderr
    assert "preset tiny, seed 1, cupy, bf16\n" in done.stdout
    assert "of the GPU's" in done.stdout and "step 4/4 | loss" in done.stdout
    assert "so matrix products go by way of CuPy" in done.stderr
    assert "can't be recorded as a CUDA graph" in done.stderr
    losses = read_losses(tmp_path)
    assert sorted(losses) == [1, 2, 3, 4]

    done = train(tmp_path, "--resume", "--steps", "5", "--dtype", "float32", "--no-graph")
    assert done.returncode == 0, done.stderr
    assert "cupy, float32\n" in done.stdout and "CUDA graph" not in done.stderr
    assert sorted(read_losses(tmp_path)) == [1, 2, 3, 4, 5]

    for dtype in ("float32", "bf16"):
        done = program(
            ROOT / "generate.py", "--backend", "cupy", "--dtype", dtype, "--prompt", "A",
            "--max-new-tokens", "2", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.startswith("A"), done.stderr


@needs_compiler
def test_fp16_keeps_its_scale_where_a_run_is_stopped(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, steps in ((whole, "4"), (halves, "2")):
        folder.mkdir()
        done = train(folder, *SMALL, "--run", "a", "--dtype", "fp16", "--steps", steps)
        assert done.returncode == 0, done.stderr
        assert "preset tiny, seed 1, cupy, fp16\n" in done.stdout
        assert " | scale 65,536 | " in done.stdout
    done = train(halves, "--resume", "--steps", "4")
    assert done.returncode == 0 and " | scale 65,536 | " in done.stdout, done.stderr
    states = [
        json.loads((folder / "runs/a/checkpoints/step-00000004/state.json").read_text("utf-8"))
        for folder in (whole, halves)
    ]
    for state in states:
        assert state["loss_scale"] == [65536.0, 4] and state["optimizer_step"] == 4


@needs_compiler
def test_what_the_other_presets_are_made_of_has_kernels_too(tmp_path):
    parts = (
        "--norm layernorm --position learned --mlp gelu_tanh --bias --dropout 0.1 "
        "--attention-dropout 0.1 --label-smoothing 0.1 --steps 2"
    ).split()
    done = train(tmp_path, *SMALL, *parts, "--run", "a")
    assert done.returncode == 0, done.stderr
    assert "cupy, bf16\n" in done.stdout and "there are no bf16 kernels" not in done.stderr
    assert sorted(read_losses(tmp_path)) == [1, 2]


@needs_compiler
def test_the_text_trains_on_a_gpu_and_the_kernels_as_it_does(tmp_path):
    losses = {}
    for kernels in ("off", "on"):
        folder = tmp_path / kernels
        folder.mkdir()
        done = train(folder, *SMALL, "--dtype", "float32", "--run", "a", NPGPT_KERNELS=kernels)
        assert done.returncode == 0, done.stderr
        losses[kernels] = read_losses(folder)
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)


@pytest.mark.parametrize("parts", ["parity,steps", "parity,ceilings,kernels,steps,generate,train"])
def test_without_a_gpu_the_benchmark_says_so(tmp_path, parts):
    code = (
        "import sys; sys.modules['cupy'] = None; sys.argv[1:] = ['--parts', sys.argv[1]]; "
        "import runpy; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    done = program("-c", code, parts, cwd=tmp_path, fake=False)
    assert done.returncode == 2
    assert done.stdout.count("not measured: it needs a GPU") == len(parts.split(","))
    assert done.stderr.count("\n") == 1 and "nothing was measured: " in done.stderr


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path):
    words = ("-m", "benchmarks.gpu", "--parts", "generate,train", "--limit", "0.2", "--out", "out")
    done = program(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 bars met" in done.stdout
    table = (tmp_path / "out" / "gpu.md").read_text("utf-8")
    assert "A GPU that does not exist" in table
    for part in ("generate", "train"):
        assert f"| {part} | {part} failed: it took longer than 0 s |" in table
    assert program(*words, "--check", cwd=tmp_path).returncode == 1


def run_a_part(folder, monkeypatch, text, seconds=60.0):
    """Run a part whose program is a text: its rows, what was told meanwhile, and the log."""
    package = folder / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    for path, real in ((package.parent, ROOT / "benchmarks"), (package, ROOT / "benchmarks/gpu")):
        (path / "__init__.py").write_text(f"__path__.append({str(real)!r})", "utf-8")
    (package / "speed.py").write_text(text, "utf-8")
    monkeypatch.setattr("benchmarks.gpu.runner.ROOT", folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    told = []
    with (folder / "gpu.log").open("w", encoding="utf-8") as log:
        wishes = dict(seconds=seconds)
        rows = run_part("speed", wishes, folder / "speed.jsonl", log, told.append)
    return rows, told, (folder / "gpu.log").read_text("utf-8")


def test_an_error_in_a_part_leaves_its_rows_and_its_traceback(tmp_path, monkeypatch):
    rows, told, log = run_a_part(tmp_path, monkeypatch, """
from benchmarks.gpu.part import run

def measure(report, wishes):
    report.add("figure", wishes.seconds)
    try:
        far = 1 / 0
    except Exception as error:
        report.failed("the first", error, counts=False)
    nobody_knows_this_name

run("Speed", measure)
""")  # fmt: skip
    figure, first, last = rows
    assert (figure["part"], figure["value"], "trace" in figure) == ("speed", 60.0, False)
    assert first["name"] == "the first failed: ZeroDivisionError: division by zero"
    assert first["met"] is None and "far = 1 / 0" in first["trace"]
    assert last["name"].startswith("Speed failed: NameError") and last["met"] is False
    assert "in measure\n    nobody_knows_this_name" in last["trace"] and last["trace"] in log
    assert told[0][0] == figure and told[-1] == rows


def test_a_part_that_dies_is_told_by_its_last_lines(tmp_path, monkeypatch):
    lines = "\n".join(f"print('line', {i})" for i in range(LAST_LINES + 5))
    (row,), told, log = run_a_part(tmp_path, monkeypatch, f"{lines}\nimport os\nos._exit(7)")
    assert row["name"] == f"speed failed: status 7: line {LAST_LINES + 4}" and told == []
    assert row["met"] is False and row["trace"].splitlines()[0] == "line 5"
    assert log.splitlines()[1] == "line 0"


def test_a_part_ends_where_the_gpu_refuses_all_else(tmp_path, monkeypatch):
    rows, _, _ = run_a_part(tmp_path, monkeypatch, """
import sys
from types import SimpleNamespace
from benchmarks.gpu.part import run

def measure(report, wishes):
    for name in ("a kernel", "and a good one"):
        try:
            refuse()
        except RuntimeError as error:
            report.failed(name, error)

def refuse():
    raise RuntimeError("illegal address")

cuda = SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=refuse))
sys.modules["cupy"] = SimpleNamespace(cuda=cuda)
run("Speed", measure)
""")  # fmt: skip
    said = "a kernel failed: RuntimeError: illegal address"
    end = f"speed failed: status 1: the GPU refuses all else, so this part ends with: {said}"
    assert [row["name"] for row in rows] == [said, end]


def test_a_part_that_takes_too_long_leaves_its_rows(tmp_path, monkeypatch):
    rows, told, _ = run_a_part(tmp_path, monkeypatch, """
import time
from benchmarks.gpu.part import run
run("Speed", lambda report, wishes: (report.add("figure", 1.0), time.sleep(60)))
""", 2.0)  # fmt: skip
    assert [row["name"] for row in rows] == ["figure", "speed failed: it took longer than 2 s"]
    assert told == [rows[:1]]


def test_a_row_that_is_half_written_is_no_row_yet(tmp_path):
    kept = tmp_path / "steps.jsonl"
    assert read_rows("steps", kept) == []
    kept.write_text('{"name": "a"}\n{"na', "utf-8")
    assert read_rows("steps", kept) == [{"part": "steps", "name": "a"}]


def test_parts_share_the_time_and_leave_what_they_do_not_need():
    assert share(["steps"], 1.0, 500.0) == 500.0
    first = share(["ceilings", "steps"], 1.0, 530.0)
    assert first == 530.0 * PARTS["ceilings"] / (PARTS["ceilings"] + PARTS["steps"])
    asked = PARTS["generate"] + PARTS["train"] + 360.0
    assert share(["generate", "train"], 6.0, asked) == PARTS["generate"]
    assert sum(PARTS.values()) <= 600


def test_npgpt_gets_ready_alone_and_who_fails_leaves_the_race(tmp_path, monkeypatch):
    notes = []

    class Contestant:
        def __init__(self, module, name, rows):
            self.name, self.seconds = name, 0.5 if name == "npgpt" else 1.0
            notes.append(("starts", name))

        def hear(self, seconds):
            if self.name == "torch b":
                raise ContestantError("OutOfMemoryError: no", "where it happened")
            notes.append(("is ready", self.name))
            return dict(seconds=self.seconds, loss=2.0)

        def ask(self, do, **what):
            return dict(memory=1e9) if do == "memory" else dict(seconds=self.seconds, loss=1.0)

        def stop(self):
            notes.append(("stops", self.name))

    monkeypatch.setattr(gpu_steps, "Contestant", Contestant)
    report = PartReport("Steps", tmp_path / "rows")
    found = gpu_steps.race(report, 32, ["npgpt", "torch a", "torch b"], 60.0)
    assert notes[:5] == [
        ("starts", "npgpt"), ("is ready", "npgpt"), ("starts", "torch a"), ("starts", "torch b"),
        ("is ready", "torch a"),
    ]  # fmt: skip
    assert found == {
        "npgpt": dict(seconds=0.5, loss=2.0, memory=1e9, ratio=1.0),
        "torch a": dict(seconds=1.0, loss=2.0, memory=1e9, ratio=2.0),
    }
    (row,) = report.rows
    assert row["name"] == "32 rows: torch b failed: ContestantError: OutOfMemoryError: no"
    assert row["trace"] == "where it happened" and row["met"] is None


def test_races_share_the_time_and_the_best_is_none_without_the_usual_form(tmp_path, monkeypatch):
    asked = []

    def race(report, rows, names, seconds):
        asked.append((rows, names[0], round(seconds, -1)))
        found = {name: dict(seconds=1.0, ratio=1.0, loss=1.0, memory=1e9) for name in names}
        if rows == 256:
            del found["torch default flash autocast"]  # it was not ready in time
        return found

    monkeypatch.setattr(gpu_steps, "race", race)
    report = PartReport("Steps", tmp_path / "rows")
    gpu_steps.measure(report, SimpleNamespace(batches="256,32", all_variants=False, seconds=300.0))
    assert asked == [(256, "npgpt", 100.0), (32, "npgpt", 250.0)]  # the first took no time at all
    bars = {row["name"]: row["at_least"] for row in report.rows if " faster than " in row["name"]}
    plain = "torch default flash autocast"
    assert bars == {
        "256 rows: faster than torch eager flash autocast, the best of 4": None,
        "32 rows: faster than torch eager flash autocast, the best of 5": None,
        f"32 rows: faster than {plain}": 1.25,
    }


def test_forms_of_pytorch_are_compiled_beside_a_part(tmp_path, monkeypatch):
    forms = gpu_steps.compiled_forms("256,32", False)
    assert len(forms) == 8 and forms[0] == ("torch default flash autocast", 256)
    assert ("torch reduce-overhead flash masters", 32) in forms
    package = tmp_path / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    for folder, real in ((package.parent, ROOT / "benchmarks"), (package, ROOT / "benchmarks/gpu")):
        (folder / "__init__.py").write_text(f"__path__.append({str(real)!r})", "utf-8")
    contestant = """
import json, sys, time
while sys.argv[2] == "slow":
    open("slow.txt", "a").write("still here, ")
    time.sleep(0.01)
print(json.dumps(dict(error="no such form", trace="") if sys.argv[2] == "bad" else dict(loss=1.0)))
"""
    (package / "steps.py").write_text(contestant, "utf-8")
    monkeypatch.setattr(ahead, "ROOT", tmp_path)
    monkeypatch.setattr("benchmarks.gpu.contestant.ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (package / "ahead.py").write_text(
        "from pathlib import Path\nfrom benchmarks.gpu import contestant\n"
        f"contestant.ROOT = Path({str(tmp_path)!r})\n{Path(ahead.__file__).read_text('utf-8')}",
        "utf-8",
    )
    log, slow = tmp_path / "gpu.log", tmp_path / "slow.txt"
    with (
        log.open("w", encoding="utf-8") as file,
        ahead.compiled_ahead([("good", 4), ("bad", 4), ("slow", 4)], file),
    ):
        for _ in range(600):
            if slow.exists() and log.read_text("utf-8").count("\n") > 1:
                break
            time.sleep(0.1)
    lines = sorted(log.read_text("utf-8").splitlines())
    assert lines[0] == "bad, 4 rows: no such form"
    assert lines[1].startswith("good, 4 rows: compiled in ") and len(lines) == 2
    before = slow.stat().st_size
    time.sleep(0.3)
    assert slow.stat().st_size == before  # it went with the context


@pytest.mark.parametrize(
    "parts, size, beside",
    [("parity,steps", 80e9, ["parity"]), ("parity,steps", 24e9, []), ("steps", 80e9, []),
     ("steps,parity", 80e9, []), ("parity,kernels", 80e9, [])],
)  # fmt: skip
def test_forms_are_compiled_where_there_is_time_and_room(
    tmp_path, monkeypatch, parts, size, beside
):
    compiling, ran = [], []

    @contextlib.contextmanager
    def compiled_ahead(forms, log):
        assert forms[0] == ("torch default flash autocast", 8) and len(forms) == 4
        compiling.append(True)
        yield
        compiling.clear()

    def run_part(part, *rest):
        ran.extend([part] if compiling else [])
        return []

    card = dict(gpu="H", bytes=size, versions={})
    for name, stand_in in (
        ("compiled_ahead", compiled_ahead), ("run_part", run_part), ("find_card", lambda _: card),
    ):  # fmt: skip
        monkeypatch.setattr(gpu_main, name, stand_in)
    words = ["gpu", "--parts", parts, "--batches", "8", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert gpu_main.main() == 0 and ran == beside


def test_a_clock_keeps_results_apart():
    class Result:
        pass

    alive, most, events = weakref.WeakSet(), [], SimpleNamespace(record=lambda stream: None)
    events.synchronize = lambda: None

    def call():
        result = Result()
        alive.add(result)
        most.append(len(alive))
        return result

    cuda = SimpleNamespace(Event=lambda: events, get_elapsed_time=lambda first, last: 6.0)
    runtime = FakeRuntime()
    runtime.cupy = SimpleNamespace(cuda=cuda)
    assert Clock(runtime).seconds(call, call, call, rounds=1) == pytest.approx(2e-3)
    assert most == [1, 2, 3] * 2  # before it is recorded, and then


def test_on_the_host_parity_runs_the_text():
    pytest.importorskip("numba", reason="numba is not installed")
    from benchmarks.gpu.parity import text_on_the_host

    x = np.zeros(3, np.float32)
    with pytest.raises(KeyError), text_on_the_host():
        assert fused.kernel_package([x]) is None
        raise KeyError
    assert fused.kernel_package([x]) == "npgpt.backend.cpu"


def test_all_who_record_in_a_thread_share_its_queue(tmp_path):
    code = (
        "from npgpt.backend.cuda.runtime import Runtime; a, b = Runtime(), Runtime(); "
        "assert a.stream is b.stream is not b.uploads and a.pool is not b.pool; "
        "import threading; c = []; t = threading.Thread(target=lambda: c.append(Runtime())); "
        "t.start(); t.join(); assert c[0].stream is not a.stream"
    )
    done = program("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


NO_MEMORY = """
import cupy
from npgpt.backend.cuda.runtime import Runtime

def fails(size):
    error = cupy.cuda.runtime.CUDARuntimeError()
    error.status = status
    raise error

class OutOfMemoryError(MemoryError): pass

cupy.cuda.Memory, cupy.cuda.memory.OutOfMemoryError = fails, OutOfMemoryError
runtime = Runtime()
for status, recorded in ((2, False), (2, True), (700, True)):
    runtime.memory.recorded = recorded
    try:
        runtime.pool.allocator(8)
    except Exception as error:
        print(type(error).__name__)
for before in (False, True):
    runtime.memory.recorded = before
    try:
        runtime.record(print)
    except RuntimeError as error:
        print(error, runtime.memory.recorded)
"""


def test_memory_that_a_graph_uses_is_not_given_back(tmp_path):
    """CuPy's pool answers a CUDARuntimeError by giving memory back, and hands on what is none."""
    done = program("-c", NO_MEMORY, cwd=tmp_path)
    none = "this device that does not exist records no graphs"
    assert done.stdout.splitlines() == [
        "CUDARuntimeError", "OutOfMemoryError", "CUDARuntimeError", f"{none} False", f"{none} True"
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("batches", ["many", "256,", "0"])
def test_batches_that_are_none_are_refused(tmp_path, batches):
    done = program("-m", "benchmarks.gpu", "--batches", batches, cwd=tmp_path)
    assert done.returncode == 2 and "must be numbers of rows, as 256,32" in done.stderr


def test_an_unknown_part_is_refused(tmp_path):
    done = program("-m", "benchmarks.gpu", "--parts", "speed", cwd=tmp_path)
    assert done.returncode == 2 and "--parts has no 'speed': choose from parity, " in done.stderr


def test_the_table_says_what_when_and_whether(tmp_path):
    facts = dict(date="2026-01-02", gpu="H", processor="P", python="3", versions={"cupy": "14"})
    row = dict(part="steps", name="n", value=1234.5, unit="x", at_least=1.0, at_most=None, met=True)
    rows = [row, {**row, "value": None, "at_least": None, "at_most": 2.0, "met": False}]
    write_tables(tmp_path, facts, rows)
    lines = (tmp_path / "gpu.md").read_text("utf-8").splitlines()
    assert lines[0] == "Measured on 2026-01-02: H, P, Python 3, cupy 14"
    assert lines[-2:] == [
        "| steps | n | 1,234 x | ≥ 1 | met |",
        "| steps | n |  | ≤ 2 | **missed** |",
    ]
    assert json.loads((tmp_path / "gpu.json").read_text("utf-8"))["rows"] == rows
