"""The learning-rate finder: it finds the slope of a known curve, and writes nothing."""

import os
import types
from pathlib import Path

import numpy as np
import pytest

import train
from data import storybook
from npgpt.backend import kernels_enabled
from npgpt.cli import main_with_errors, parse
from npgpt.data import get_batch
from npgpt.find_rate import FinderSettings, main, propose, try_rates
from npgpt.model import GPTConfig, init_parameters
from npgpt.optim import AdamW
from npgpt.parallel import Workers
from npgpt.pretrained import STORYBOOK
from npgpt.settings import Settings


def test_the_steepest_fall_of_a_known_curve():
    rates = np.geomspace(1e-6, 1.0, 200)
    falling = 4.0 - 2.0 / (1.0 + np.exp(-3.0 * np.log(rates / 3e-3)))  # steepest at 3e-3
    rising = np.maximum(0.0, np.log(rates / 0.1))
    assert propose(rates, falling + rising) == pytest.approx(3e-3, rel=0.1)


def test_each_trial_is_a_step_of_training():
    """With its batch, its masks, its smoothing and its clipping, until the loss is lost."""
    config = GPTConfig(
        vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8, n_hidden=12, dropout=0.1
    )
    s = Settings(batch_size=2, accumulate=2, block_size=8, label_smoothing=0.01, clip=0.1, seed=3)
    tokens = np.arange(300) % 11  # easily learned, and easily lost

    def fresh():
        params = init_parameters(config, 3)
        return params, AdamW.for_parameters(params), Workers(params, 1)

    params, optimizer, workers = fresh()
    rates, losses, smoothed = try_rates(params, optimizer, workers, tokens, s, config, 200)
    assert rates == pytest.approx(np.geomspace(1e-6, 1.0, 200)[: len(rates)])

    params, optimizer, workers = fresh()
    run = types.SimpleNamespace(
        settings=s, xp=np, config=config, params=params, grads=params.zeros_like(),
        optimizer=optimizer, workers=workers, loss_scale=None,
    )  # fmt: skip
    for run.step, rate in enumerate(rates):
        ids, targets = get_batch(tokens, s.seed, run.step, 4, s.block_size)
        loss, norm, _ = train.take_step(run, ids, targets, rate)
        assert losses[run.step] == pytest.approx(loss, rel=1e-6), run.step
        assert norm > s.clip

        remembered = 0.9 ** np.arange(run.step, -1, -1)
        mean = np.average(losses[: run.step + 1], weights=remembered)
        assert smoothed[run.step] == pytest.approx(mean, rel=1e-9), run.step
        is_lost = mean > 1.3 * min(smoothed[: run.step + 1])
        assert is_lost == (run.step + 1 == len(rates)), run.step
    assert len(rates) < 200


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
