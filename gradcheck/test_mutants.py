"""Every mutant must be killed, by a check that the true program passes, and not by a crash."""

from collections import Counter

import pytest

from gradcheck import faults
from gradcheck.faults import MUTANTS
from gradcheck.mutants import WITNESSES, Mutant, planted, trial
from npgpt import block
from npgpt.layers import rmsnorm

LAYERS = tuple(dict.fromkeys(mutant.layer for mutant in MUTANTS))


@pytest.fixture(scope="module")
def testimonies():
    """What the witnesses measured of the true forwards, once for all mutants."""
    return {}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}: {mutant.what}")
def test_is_killed(mutant, testimonies):
    verdict = trial(mutant, testimonies)
    assert verdict.killed, f"survived: {mutant.what}\n" + "\n".join(mutant.diff())
    assert verdict.raised == [], "a fault must be a silent one"
    seen = [name for name in WITNESSES if name in verdict.killers]
    assert bool(seen) == mutant.derivative, f"seen by {', '.join(verdict.killers)}"


@pytest.mark.parametrize("layer", LAYERS)
def test_the_true_program_passes_the_same_checks(layer, testimonies):
    """A mutant without a fault goes the same way, and nothing sees it."""
    where = next(mutant.where for mutant in MUTANTS if mutant.layer == layer)
    verdict = trial(Mutant(layer, "Nothing is wrong.", where, edits=()), testimonies)
    assert verdict.killers == {} and verdict.raised == []


def test_there_are_enough():
    assert len(MUTANTS) >= 40
    assert min(Counter(mutant.layer for mutant in MUTANTS).values()) >= 3
    assert len({(mutant.where, mutant.edits) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)


def test_a_mutant_is_planted_wherever_the_program_knows_the_function_and_taken_out_again():
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "rmsnorm_backward")
    true = rmsnorm.rmsnorm_backward
    with planted(mutant) as swap:
        assert rmsnorm.rmsnorm_backward is block.rmsnorm_backward is swap(true) is not true
        assert swap(len) is len
    assert rmsnorm.rmsnorm_backward is block.rmsnorm_backward is true
    with pytest.raises(RuntimeError), planted(mutant):
        raise RuntimeError
    assert block.rmsnorm_backward is true


def test_a_mutant_whose_text_is_gone_says_so():
    stale = Mutant("loss", "Stale.", faults.LOSS, (("no such text", ""),))
    with pytest.raises(ValueError, match=r"'no such text' occurs 0 times"):
        stale.faulty()
    twice = Mutant("loss", "Twice.", faults.LOSS, (("dz", ""),))
    with pytest.raises(ValueError, match="must occur once"):
        twice.faulty()


def test_a_mutant_reads_as_a_diff():
    mutant = next(mutant for mutant in MUTANTS if "1/N is missing" in mutant.what)
    minus, plus = mutant.diff()
    assert minus.startswith("-") and "dloss / N" in minus
    assert plus.startswith("+") and "dloss / N" not in plus


def test_an_exception_kills_nothing():
    """A fault that crashes was never silent: a check that raises has seen nothing."""
    crash = Mutant("swiglu", "Crashes.", faults.SWIGLU, (("(x,) = cache", "x, y = cache"),))
    verdict = trial(crash)
    assert not verdict.killed
    assert verdict.raised and "ValueError" in verdict.raised[0]
