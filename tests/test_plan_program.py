"""python -m npgpt.plan: what a run would take, told of any model, on a GPU that is not there."""

import os
import re

import pytest
from training_helpers import SMALL, call, quick

from npgpt.cli import main_with_errors, parse
from npgpt.plan import SPARE, PlanSettings, human_flop, main, training_bytes
from npgpt.presets import PRESETS
from npgpt.settings import Settings
from npgpt.training import model_config

BILLION = "--preset gpt-1b --checkpoint-activations --backend cupy".split()


def planned(capsys, *argv):
    status = main_with_errors(lambda: main(*parse(PlanSettings, argv)))
    return (status, *capsys.readouterr())


def lines(text, *names):
    """The lines of a plan that begin so."""
    return [line for line in text.splitlines() if line.split()[:1] and line.split()[0] in names]


def test_it_says_what_train_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = planned(capsys, *SMALL)
    assert status == 0 and os.listdir(tmp_path) == []
    quick(monkeypatch)
    _, told, _ = call(capsys, *SMALL)
    assert lines(out, "model") == lines(told, "model")
    (memory,), (disk,) = lines(out, "memory"), lines(out, "disk")
    assert f"{memory} of arrays," in told and f"{disk}; " in told


def test_a_billion_parameters_on_a_gpu_by_hand(capsys):
    """1,060,434,432 numbers: of four bytes the weights, of two their copy."""
    status, out, _ = planned(capsys, *BILLION, "--tflops", "400")
    assert status == 0 and out.startswith("gpt-1b, on a GPU, in bf16\n")
    assert "64 batches of 8 rows of 1,024 tokens: 524,288 tokens, " in out
    assert " 100,000 steps: 52.4B tokens, " in out
    for kept in (
        "4.2 GB  weights",
        "4.2 GB  gradients\n",
        "8.5 GB  AdamW's",
        "2.1 GB  the weights",
    ):
        assert f"  {kept}" in out
    # 6 · 983 million weights of matrices, and 12 · 24 · 1,024 · 1,536 for attention.
    flop = 524_288 * (6 * 983_179_776 + 12 * 24 * 1024 * 1536)
    assert f"tokens, {flop / 1e15:.1f} PFLOP\n" in out
    days = 100_000 * flop / 400e12 / 86_400
    assert f"  time     {days:.0f} days at 400 TFLOP/s" in out


@pytest.mark.parametrize("dtype, bits", [("bf16", 16), ("float32", 32)])
def test_the_largest_batch_that_fits(capsys, dtype, bits):
    _, out, _ = planned(capsys, *BILLION, "--dtype", dtype)
    (line,) = lines(out, "fits")
    found = re.findall(r"(\d+) in (\d+) GB", line)
    assert len(found) >= 5
    s = Settings(**{**PRESETS["gpt-1b"], "checkpoint_activations": True})
    config = model_config(s, s.vocab_size)
    for rows, card in found:
        most = SPARE * 1e9 * int(card)
        assert training_bytes(config, int(rows), bits=bits) <= most
        assert training_bytes(config, int(rows) + 1, bits=bits) > most


def test_no_more_rows_than_a_step_has(capsys):
    _, out, _ = planned(capsys, "--preset", "tinystories-40m", "--backend", "cupy")
    assert lines(out, "fits") == ["  fits     --batch-size 256 in 8 GB"]


def test_what_fits_nowhere_is_said_to(capsys):
    _, out, _ = planned(capsys, *BILLION, "--n-layer", "500")
    assert lines(out, "fits") == ["  fits     no GPU of 141 GB or less"]


def test_a_vocabulary_that_only_the_text_knows(capsys, tmp_path):
    remark = "another text has others"
    _, out, _ = planned(capsys, "--preset", "shakespeare-char")
    assert "10,788,929 parameters" in out and remark in out
    _, out, _ = planned(capsys, "--preset", "shakespeare-char", "--vocab-size", "100")
    assert "vocabulary 100," in out and remark not in out
    _, out, _ = planned(capsys, "--preset", "small-gpt")
    assert "16,070,144 parameters" in out


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--tflops 0", "--tflops is 0.0, but it must be above 0"),
        ("--resume", "leave out --resume"),
        ("--init-from a", "leave out --init-from"),
        ("--n-head 3", "n_embd 128 does not split into n_head 3 heads"),
        ("--n-layer 100000", "more than a computer holds"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, line, sentence):
    status, out, err = planned(capsys, *line.split())
    assert (status, out) == (2, "") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "n, text",
    [
        (7.4e9, "7.4 GFLOP"),
        (999.9e9, "1.0 TFLOP"),
        (3.3e15, "3.3 PFLOP"),
        (2.5e21, "2,500.0 EFLOP"),
    ],
)
def test_human_flop(n, text):
    assert human_flop(n) == text
