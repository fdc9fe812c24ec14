"""What is told before, during and after a run: cost, quality, picture."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import plan, plot
from npgpt.checkpoint import save_checkpoint
from npgpt.errors import UserError
from npgpt.evaluate import document_starts, evaluate, evaluation_windows
from npgpt.model import GPTConfig, count_parameters, forward, init_parameters
from npgpt.parallel import Workers
from npgpt.plan import (
    checkpoint_bytes,
    flops_per_token,
    human_bytes,
    human_count,
    human_time,
    measure_matmul_peak,
    rows_at_once,
    training_bytes,
)
from npgpt.runlog import RunLog
from npgpt.runs import find_run, make_run_dir, read_log, run_path, typed

ROOT = Path(__file__).resolve().parents[1]
TINY = GPTConfig(
    vocab_size=11, block_size=6, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12
)

# plan.py


def test_flops_of_the_default_model_by_hand():
    config = GPTConfig()
    weights = 10_000 * 512 + 8 * (512 * 3 * 512 + 512 * 512 + 512 * 4096 + 2048 * 512)
    assert weights == 38_674_432
    assert count_parameters(config) == weights + 17 * 512
    attention = 8 * (2 * 2 * 128 * 512) * 3  # q·k and p·v, forward and twice that backward
    assert flops_per_token(config) == 6 * weights + attention


def test_a_table_is_looked_up_for_nothing():
    assert flops_per_token(GPTConfig(tie=False)) == flops_per_token(GPTConfig())
    assert flops_per_token(GPTConfig(position="learned")) == flops_per_token(GPTConfig())


def test_checkpoints_on_disk(tmp_path):
    n = count_parameters(TINY)
    arrays = {"model": dict(init_parameters(TINY, 0)), "optimizer": {"m": np.zeros(2 * n, "f4")}}
    path = save_checkpoint(tmp_path, 1, arrays, {})
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    assert checkpoint_bytes(TINY, keep=2) / 3 == pytest.approx(size, abs=4096)  # headers


def test_memory_is_told_within_a_factor_of_two():
    pytest.importorskip("resource")
    program = """
import numpy as np
from npgpt.model import *
from npgpt.optim import AdamW
from npgpt.plan import peak_memory_bytes, training_bytes
config = GPTConfig(vocab_size=2000, n_layer=4, n_embd=128, n_hidden=384, n_head=4, block_size=128)

def two_steps(config, ids):
    params = init_parameters(config, 0)
    grads, optimizer = params.zeros_like(), AdamW.for_parameters(params)
    for _ in range(2):
        loss_and_gradients(params, grads, ids, ids, config)
        optimizer.update(params.flat, grads.flat, 1e-3)

tiny = GPTConfig(vocab_size=8, n_layer=1, n_embd=8, n_hidden=8, n_head=1, block_size=8)
two_steps(tiny, np.zeros((1, 8), np.int64))  # the kernels' compiler is no array
before = peak_memory_bytes()
two_steps(config, np.zeros((16, 128), np.int64))
print((peak_memory_bytes() - before) / training_bytes(config, 16))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.5 < float(done.stdout) < 2.0


def test_memory_grows_with_the_batch():
    assert training_bytes(TINY, 2) > training_bytes(TINY, 1) > 16 * count_parameters(TINY)
    assert training_bytes(TINY, 64, most_rows=2) == training_bytes(TINY, 2)
    assert training_bytes(TINY, 5, threads=2) == training_bytes(TINY, 6, threads=2)


def test_memory_in_two_bytes_a_number():
    """Half for the activations, and a second copy of the weights."""
    P = count_parameters(TINY)
    rows = training_bytes(TINY, 8) - 16 * P
    assert training_bytes(TINY, 8, bits=16) == 18 * P + rows / 2


def test_dropped_attention_keeps_what_rope_turned():
    """The queries and keys of each layer, which the layer that does both makes again."""

    def rows(**settings):
        return training_bytes(replace(TINY, **settings), 1)

    turned = 4 * TINY.n_layer * TINY.block_size * (8 + 4)  # n_embd, and half of it in one kv head
    assert rows(attention_dropout=0.1) == rows() + turned
    assert rows(attention_dropout=0.1, position="none") == rows(position="none")


def test_a_layer_that_is_run_again_keeps_what_it_was_given():
    eight, nine = (plan.row_bytes(GPTConfig(n_layer=n, recompute=True)) for n in (8, 9))
    assert nine - eight == 4 * 128 * 512


def test_a_long_context_is_wider_than_a_small_vocabulary():
    config = GPTConfig(11, 1024, n_layer=1, n_embd=64, n_hidden=64)
    assert plan.row_bytes(config) > 4 * 4 * config.n_head * 1024**2


def test_rows_of_a_large_model_go_in_parts_and_those_of_a_small_one_together():
    assert 2 <= rows_at_once(GPTConfig()) <= 8
    assert rows_at_once(TINY) > 1000
    assert rows_at_once(GPTConfig(vocab_size=1_000_000, block_size=1024)) == 1


def test_the_matrix_peak_is_a_rate():
    assert 1e7 < measure_matmul_peak(Workers({}, 1), size=64, repeats=2) < 1e15


def test_the_matrix_peak_is_of_the_best_attempt(monkeypatch):
    """Of attempts of 3, 1 and 2 seconds: 2 · 8³ operations in each of two threads in a second."""
    moments = iter((0.0, 3.0, 10.0, 11.0, 20.0, 22.0))
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    workers = SimpleNamespace(threads=2, map=map)
    assert measure_matmul_peak(workers, size=8, repeats=3) == 2 * 8**3 * 2


def test_the_memory_of_this_process_is_told_in_bytes():
    most = plan.peak_memory_bytes()
    assert most is None or 2e7 < most < 1e12  # NumPy alone takes more than 20 MB


def test_the_matrix_peak_is_that_of_all_threads():
    made = []

    def map_slowly(function, items):
        made.append([function(item).shape for item in items])
        time.sleep(0.01)

    workers = SimpleNamespace(threads=3, map=map_slowly)
    assert measure_matmul_peak(workers, size=64, repeats=2) < 3 * 2 * 64**3 / 0.01
    assert made == [[(64, 64)] * 3] * 2


@pytest.mark.parametrize(
    "n, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_999, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (999_999_999, "1.0 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_human_bytes(n, text):
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    "n, text",
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (99_949, "99.9k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_950, "1.0M"),
        (38_683_136, "38.7M"),
        (1.5e9, "1.5B"),
    ],
)
def test_human_count(n, text):
    assert human_count(n) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (161, "2 min 41 s"),
        (3599.6, "1 h 00 min"),
        (90_061, "25 h 01 min"),
        (359_999, "99 h 59 min"),
        (360_000, "4 days"),
    ],
)
def test_human_time(seconds, text):
    assert human_time(seconds) == text


# evaluate.py


@pytest.mark.parametrize("T", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 9, 10, 63])
def test_every_target_counts_once_with_half_a_context(n, T):
    counted = []
    for start, stop, new in evaluation_windows(n, T):
        assert 0 <= start < stop <= n - 1
        assert stop - start <= T
        for target in range(stop - new + 1, stop + 1):  # token `target` is told from those before
            seen = target - start
            assert seen >= min(target, math.ceil(T / 2))
            counted.append(target)
    assert counted == list(range(1, n))


@pytest.mark.parametrize("n", [2, 6, 7, 8, 31])
def test_the_loss_is_the_naive_one(n):
    params = init_parameters(TINY, 3, dtype=np.float64)
    params.flat[:] *= 1.5  # far from a uniform guess
    tokens = np.random.default_rng(n).integers(0, 11, n)
    losses = []
    for start, stop, new in evaluation_windows(n, TINY.block_size):
        for target in range(stop - new + 1, stop + 1):
            scores = forward(params, tokens[None, start:target], TINY)[0][0, -1]
            losses.append(np.log(np.sum(np.exp(scores))) - scores[tokens[target]])
    for batch_size in (1, 3, 100):
        result = evaluate(params, TINY, tokens, bytes_per_token=2.5, batch_size=batch_size)
        assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
        assert result.num_tokens == n - 1
        assert result.num_bytes == 2.5 * (n - 1)
        assert result.perplexity == pytest.approx(np.exp(np.mean(losses)))
        bits = np.sum(losses) / np.log(2) / (2.5 * (n - 1))
        assert result.bits_per_byte == pytest.approx(bits)


def test_a_document_is_a_text_of_its_own():
    starts = np.array([0, 5, 6, 26])
    counted = []
    for start, stop, new in evaluation_windows(30, 8, starts):
        first = starts[starts <= stop - new].max()  # of the document that the targets are in
        assert first <= start and stop - start <= 8
        assert start == first or new <= 4, "less than half a context"
        counted += range(stop - new + 1, stop + 1)
    assert counted == list(range(1, 30))


def test_documents_that_fit_are_known_by_their_ends():
    tokens = np.array([0] + ([1, 1, 1, 0] * 10 + [2] * 20 + [0]) * 2)
    assert np.array_equal(document_starts(tokens, 0, 20)[:3], [0, 4, 8])
    assert len(document_starts(tokens, 0, 20)) == 22, "two of 22 are longer, not one in ten"
    one_in_ten = np.array([0] + [1, 1, 1, 0] * 9 + [2] * 20 + [0])
    assert len(document_starts(one_in_ten, 0, 4)) == 10
    two_in_ten = np.array([0] + [1, 1, 1, 0] * 8 + ([2] * 20 + [0]) * 2)
    assert document_starts(two_in_ten, 0, 4) is None
    assert document_starts(tokens, 0, 3) is None
    assert document_starts(tokens, None, 20) is None
    assert document_starts(np.array([0, 1, 2, 0]), 0, 20) is None, "a single document"


def test_documents_do_not_see_each_other():
    params = init_parameters(TINY, 3)
    text = np.array([0, 1, 2, 0, 3, 4, 0])
    parts = [evaluate(params, TINY, t, 1.0) for t in (text[:4], text[3:])]
    whole = evaluate(params, TINY, text, 1.0, starts=np.array([0, 3]))
    assert whole.loss == pytest.approx(np.mean([p.loss for p in parts]), rel=1e-6)
    assert whole.loss != pytest.approx(evaluate(params, TINY, text, 1.0).loss, rel=1e-4)
    part = evaluate(params, TINY, text, 1.0, max_tokens=4, starts=np.array([0, 3]))
    assert part.loss == pytest.approx(parts[0].loss, rel=1e-6)


def test_a_model_that_knows_nothing():
    params = init_parameters(TINY, 0, dtype=np.float64)
    params["wte"][...] = 0.0
    result = evaluate(params, TINY, np.arange(11), bytes_per_token=1.0)
    assert result.loss == pytest.approx(math.log(11), rel=1e-12)
    assert result.perplexity == pytest.approx(11)
    assert result.bits_per_byte == pytest.approx(math.log2(11))


def test_only_the_beginning_is_read():
    params = init_parameters(TINY, 0)
    tokens = np.random.default_rng(0).integers(0, 11, 40)
    part = evaluate(params, TINY, tokens, 1.0, max_tokens=13)
    assert part == evaluate(params, TINY, tokens[:13], 1.0)
    assert part.num_tokens == 12
    assert evaluate(params, TINY, tokens, 1.0, max_tokens=99).num_tokens == 39


# runs.py and runlog.py


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_checkpoint(run_dir):
    (Path(run_dir) / "checkpoints" / "step-00000001").mkdir(parents=True)


def test_a_lone_word_is_a_name_under_runs(here):
    Path("data").mkdir()  # a folder that is no run: `--run data` must not write into it
    assert run_path("data") == Path("runs/data")
    assert run_path("new") == Path("runs/new")
    make_checkpoint("here")  # a run in this folder may be named as it is ...
    assert run_path("here") == Path("here")
    make_checkpoint("runs/here")  # ... unless runs has one of that name
    assert run_path("here") == Path("runs/here")
    for path in ("./data", "data/", "a/b", ".", "..", str(Path("x").absolute())):
        assert run_path(path) == Path(path)


def test_the_best_of_a_run_is_found_by_the_runs_name(here):
    assert run_path("a/best") == Path("a/best")
    make_checkpoint("runs/a/best")
    assert run_path("a/best") == run_path("runs/a/best") == Path("runs/a/best")
    make_checkpoint("a/best")  # what lies here is meant itself
    assert run_path("a/best") == Path("a/best")


def test_new_runs_are_numbered_and_none_is_shared(here):
    assert make_run_dir(None, "tiny") == Path("runs/tiny-001")
    assert make_run_dir(None, "tiny") == Path("runs/tiny-002")
    assert make_run_dir("mine", "tiny") == make_run_dir("mine", "tiny") == Path("runs/mine")
    Path("runs/tiny-003").write_text("a file")
    assert make_run_dir(None, "tiny") == Path("runs/tiny-004")


def test_a_run_dir_that_can_not_be(here):
    Path("runs").write_text("a file")
    for name in (None, "x"):
        with pytest.raises(UserError, match="can't make the folder"):
            make_run_dir(name, "tiny")


def test_the_run_saved_last_is_found(here):
    for i, name in enumerate(["b", "c", "a"]):
        make_checkpoint(f"runs/{name}")
        os.utime(f"runs/{name}/checkpoints/step-00000001", (i, i))
    Path("runs/file").write_text("")
    assert find_run() == Path("runs/a")
    assert find_run("b") == Path("runs/b")
    with pytest.raises(UserError, match=r"no checkpoint in .*d: choose one of a, b, c$"):
        find_run("d")
    make_checkpoint("runs/storybook-001")
    with pytest.raises(UserError, match="did you mean storybook-001"):
        find_run("storybok-001")


def test_a_run_without_a_checkpoint_yet_can_be_begun_anew(here):
    with pytest.raises(UserError, match=r"no checkpoint in .*a: run python train.py first$"):
        find_run("a")
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/settings.json").write_text("{}")
    with pytest.raises(UserError, match=r"begin anew with python train\.py --run"):
        find_run("a")


def test_a_path_can_be_typed_as_it_is_shown():
    assert typed(Path("runs/a-1")) == str(Path("runs/a-1"))
    assert typed("my runs/x")[0] == typed("my runs/x")[-1] in "'\""


def test_a_log_forgets_what_will_be_logged_again(tmp_path):
    log = RunLog(tmp_path, 0, 10)
    for step in range(1, 6):
        if step in (1, 4):  # validation stands before the step of the next number
            log.record(step=step - 1, valid_loss=2.0)
        log.record(step=step, loss=float(step))
    log.close()
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'7\n[1]\n{"loss": 1}\n{"step": "x"}\n\xff\n')  # somebody's slip
        file.write(b"[" * 10**5 + b"\n")
        file.write(b'{"step": 6, "lo')  # torn by a kill
    log = RunLog(tmp_path, 3, 10)
    log.record(step=3, valid_loss=float("nan"))
    log.close()
    kept = [tuple(r.values()) for r in read_log(tmp_path)]
    assert kept == [(0, 2.0), (1, 1.0), (2, 2.0), (3, 3.0), (3, None)]


def test_a_log_on_a_full_disk_is_a_sentence(tmp_path):
    log = RunLog(tmp_path, 0, 10)

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            self.write("")

    log.file.close()
    log.file = Full()
    with pytest.raises(UserError, match=r"log.jsonl \(No space left on device\): make room"):
        log.record(step=1, loss=2.0)
    log.close()  # which would write it once more, and must not complain again


# plot.py


def write_log(run_dir, records):
    Path(run_dir).mkdir(exist_ok=True)
    (Path(run_dir) / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def losses(*values):
    return [{"step": i + 1, "loss": v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    "records",
    [
        losses(3.0),
        losses(1e-9, 0.0),  # learned by heart
        [*losses(0.0, 0.0), {"step": 2, "valid_loss": 0.0}],  # there was nothing to learn
        [*losses(2.0), {"step": 0, "valid_loss": 1.0, "title": "half a character: \udcc3"}],
        [*losses(3.0, None), {"step": 1, "valid_loss": None}],  # exploded
        [*losses(3.0), {"step": 0, "valid_loss": 99.0, "floor": 0.2, "title": "a $x$ 日本 _"}],
    ],
    ids=["one step", "zero", "zeros", "a name", "not finite", "everything"],
)
def test_a_curve_is_drawn(tmp_path, records):
    pytest.importorskip("matplotlib")
    write_log(tmp_path, records)
    path = plot.plot_run(tmp_path)
    assert path == tmp_path / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("records", [[], losses(None), [{"step": 0, "valid_loss": 1.0}]])
def test_no_step_no_curve(tmp_path, records):
    pytest.importorskip("matplotlib")
    write_log(tmp_path, records)
    with pytest.raises(UserError, match="has no training step to draw"):
        plot.plot_run(tmp_path)


def test_plot_as_a_program(here, capsys):
    pytest.importorskip("matplotlib")
    assert plot.main([]) == 2
    assert capsys.readouterr().err.startswith("error: there is no trained model under ")
    make_checkpoint("runs/a")
    write_log("runs/a", losses(2.0))
    for argv in ([], ["a"], ["runs/a"]):
        assert plot.main(argv) == 0
        assert capsys.readouterr().out.strip() == str(Path("runs/a/loss.png"))
    assert plot.main(["--help"]) == 0
