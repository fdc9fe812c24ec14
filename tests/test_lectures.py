"""The ladder: each step's backward is the derivative of its forward, and each step learns."""

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradcheck.numerical import COMPLEX_STEP, DIRECTION_BAR
from lectures import common
from npgpt.cli import parse
from npgpt.errors import UserError
from npgpt.layers import cross_entropy_backward, cross_entropy_forward

ROOT = Path(__file__).resolve().parents[1]
STEPS = sorted(path.stem for path in (ROOT / "lectures").glob("step*.py"))
every_step = pytest.mark.parametrize("name", STEPS)
TEXT = "the cat sat on the mat, and the rat sat on the cat. " * 60
V = 7


def lecture(name):
    return importlib.import_module(f"lectures.{name}")


def double(step):
    """Its first weights in float64, moved from where they begin, so that no gain is 1."""
    rng = np.random.default_rng(0)
    p = step.init(rng, V)
    return {n: w.astype(np.float64) + 0.1 * rng.standard_normal(w.shape) for n, w in p.items()}


def gradients_of(lecture, p, ids, targets, **chance):
    logits, cache = lecture.forward(p, ids, **chance)
    _, loss_cache = cross_entropy_forward(logits, targets)
    return lecture.backward(cross_entropy_backward(1.0, loss_cache), cache)


@every_step
def test_backward_is_the_derivative_of_forward(name):
    """Along a random direction in all parameters, and in each of them alone, by a complex step."""
    step, rng = lecture(name), np.random.default_rng(1)
    p = double(step)
    ids, targets = rng.integers(V, size=(2, 2, 5))
    chance = {"step": 3} if name == "step5_blocks" else {}
    grads = gradients_of(step, p, ids, targets, **chance)
    assert grads.keys() == p.keys()
    for names in (*([n] for n in p), list(p)):
        d = {n: rng.standard_normal(p[n].shape) for n in names}
        moved = {n: w + 1j * COMPLEX_STEP * d[n] if n in d else w for n, w in p.items()}
        logits, _ = step.forward(moved, ids, **chance)
        slope = cross_entropy_forward(logits, targets)[0].imag / COMPLEX_STEP
        terms = np.concatenate([(grads[n] * d[n]).ravel() for n in names])
        assert abs(slope - terms.sum()) <= DIRECTION_BAR * np.abs(terms).sum(), names


@every_step
def test_no_letter_sees_a_later_one(name):
    step = lecture(name)
    p, ids = double(step), np.random.default_rng(2).integers(V, size=(1, 6))
    logits, _ = step.forward(p, ids)
    for place in range(6):
        changed = ids.copy()
        changed[0, place] = (changed[0, place] + 1) % V
        after, _ = step.forward(p, changed)
        assert np.array_equal(after[0, :place], logits[0, :place])
        assert np.any(after[0, place] != logits[0, place])


def test_the_last_step_drops_in_training_only():
    step = lecture("step5_blocks")
    p, ids = double(step), np.zeros((2, 5), int)
    calm, _ = step.forward(p, ids)
    again, _ = step.forward(p, ids)
    one, _ = step.forward(p, ids, step=1)
    two, _ = step.forward(p, ids, step=2)
    assert np.array_equal(calm, again)
    assert not np.array_equal(calm, one) and not np.array_equal(one, two)


@every_step
def test_it_runs_learns_and_writes(name, tmp_path):
    (tmp_path / "a text.txt").write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-m", f"lectures.{name}", "--data", tmp_path / "a text.txt",
         "--steps", "40", "--letters", "20"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" parameters, 2,808 letters, 14 different ones")
    losses = [float(line.split()[4]) for line in lines if line.startswith("step ")]
    assert len(losses) == common.REPORTS and losses[-1] < 0.9 * losses[0]
    assert float(done.stdout.partition("validation loss ")[2].split()[0]) < np.log(14)
    assert set(done.stdout.partition(" s\n\n")[2]) <= set(TEXT + "\n")


def test_each_step_is_one_idea_more():
    """It calls every layer that the step before it calls, and perhaps some more."""
    used = [(ROOT / "lectures" / f"{name}.py").read_text() for name in STEPS]
    calls = [{word for word in re.findall(r"\w+_forward(?=\()", text)} for text in used]
    for before, after in itertools.pairwise(calls):
        assert before <= after
    assert len(used[-1].splitlines()) < 150


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "No such file or directory; name a text file"),
        (b"a\xff", "is not UTF-8 text: look at byte 1"),
        (b"too short", "has 9 letters, and 640 are the least"),
    ],
)
def test_what_is_wrong_with_a_text_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "a.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=says):
        common.read_text(path, 32)


@pytest.mark.parametrize("option", ["--steps=0", "--steps=-1", "--seed=-1", "--letters=0"])
def test_a_number_that_can_not_be_is_one_sentence(option):
    with pytest.raises(UserError, match=r"but it must be [01] or more"):
        parse(common.Settings, [option])
