"""The learning-rate finder: it finds the slope of a known curve, and writes nothing."""

import os

import numpy as np
import pytest

from npgpt.cli import main_with_errors, parse
from npgpt.find_rate import FinderSettings, main, propose


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


def test_too_few_trials_are_refused(capsys):
    status, _, err = find(capsys, "--trials", "3")
    assert status == 2 and "--trials is 3, but it must be 10 or more" in err
