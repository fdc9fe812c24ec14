"""The learning-rate finder: it finds the slope of a known curve, and writes nothing."""

import os
from pathlib import Path

import numpy as np
import pytest

from data import storybook
from npgpt.backend import kernels_enabled
from npgpt.cli import main_with_errors, parse
from npgpt.find_rate import FinderSettings, main, propose
from npgpt.pretrained import STORYBOOK


def test_the_steepest_fall_of_a_known_curve():
    rates = np.geomspace(1e-6, 1.0, 200)
    falling = 4.0 - 2.0 / (1.0 + np.exp(-3.0 * np.log(rates / 3e-3)))  # steepest at 3e-3
    rising = np.maximum(0.0, np.log(rates / 0.1))
    assert propose(rates, falling + rising) == pytest.approx(3e-3, rel=0.1)


def find(capsys, *argv):
    status = main_with_errors(lambda: main(*parse(FinderSettings, argv)))
    return (status, *capsys.readouterr())


def test_it_proposes_a_rate_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--preset tiny --words 3000 --vocab-size 280 --block-size 16 --n-embd 16 --threads 1"
    status, out, err = find(capsys, *small.split(), "--trials", "60")
    assert status == 0, err
    *lines, last = [line for line in out.splitlines() if "lr " in line]
    rates = [float(line.split()[1]) for line in lines]
    assert rates == sorted(rates) and rates[0] == 1e-6
    assert last.endswith("is a good beginning")
    assert 1e-4 < float(last.split()[1]) < 1.0
    assert os.listdir(tmp_path) == []


def proposal(capsys, *argv):
    small = "--preset tiny --words 3000 --vocab-size 280 --block-size 16 --threads 1 --trials 20"
    status, out, err = find(capsys, *small.split(), *argv)
    assert status == 0, err
    return [line for line in out.splitlines() if line.startswith("lr ")]


def test_batches_that_are_accumulated_are_one_large_batch(capsys):
    assert proposal(capsys, "--batch-size", "2", "--accumulate", "4") == proposal(
        capsys, "--batch-size", "8"
    )


@pytest.mark.skipif(not kernels_enabled(), reason="without Numba nothing is rounded")
def test_it_rounds_as_training_does(capsys, monkeypatch):
    from npgpt.backend.cpu import matmul_bf16
    from npgpt.backend.cpu.linear import round_factors

    monkeypatch.setattr(matmul_bf16, "NATIVE", True)
    monkeypatch.setattr(matmul_bf16, "SLOW", False)
    try:
        rounded = proposal(capsys, "--dtype", "bf16")
        assert rounded != proposal(capsys)
    finally:
        round_factors("float32")


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("--dtype fp16", "in float32 or bf16: leave out --dtype fp16"),
        ("--block-size 99999", "one context"),
    ],
)
def test_what_it_can_not_try_is_refused(capsys, option, sentence):
    small = ["--preset", "tiny", "--words", "3000", "--vocab-size", "280"]
    status, _, err = find(capsys, *small, *option.split())
    assert status == 2 and sentence in err and err.count("\n") == 1


def test_it_begins_with_the_model_that_is_given(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(storybook.corpus_text(storybook.generate(3000, seed=5)))
    status, out, err = find(
        capsys, "--init-from", str(STORYBOOK), "--data", "book.txt", "--block-size", "32",
        "--threads", "1", "--trials", "10",
    )  # fmt: skip
    assert status == 0, err
    first = next(line for line in out.splitlines() if line.startswith("lr 1.0e-06"))
    assert float(first.split()[3]) < 2.0  # a model that has learned nothing says log 1280 = 7.2


def test_too_few_trials_are_refused(capsys):
    status, _, err = find(capsys, "--trials", "3")
    assert status == 2 and "--trials is 3, but it must be 10 or more" in err
