"""The command line: what it prints, and what it exits with."""

import io
import sys

import pytest

from gradcheck import __main__ as command
from gradcheck.cases import CASES
from gradcheck.faults import ROPE
from gradcheck.mutants import Mutant
from gradcheck.properties import Property


def test_all_is_well(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    for layer in {case.layer for case in CASES} | {"optim"}:
        assert f"\n{layer}" in out
    assert "0 failed" in out and "FAIL" not in out
    assert "\x1b" not in out  # not a terminal: no colour
    assert max(map(len, out.splitlines())) <= 105


def test_one_layer_row_by_row(capsys):
    assert command.main(["--layer", "rope", "--all"]) == 0
    out = capsys.readouterr().out
    assert "from position 1000" in out and "relativity" in out and "swiglu" not in out


def test_a_layer_with_properties_only(capsys):
    assert command.main(["--layer", "optim"]) == 0
    out = capsys.readouterr().out
    assert "schedule" in out and "central" not in out


def test_a_broken_property_fails(monkeypatch, capsys):
    broken = Property("optim", "schedule", lambda: "at step 7 it is negative")
    broken.run.__doc__ = "It stays positive."
    monkeypatch.setattr(command, "PROPERTIES", (broken,))
    assert command.main(["--layer", "rope"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(command, "LAYERS", ("rope",))
    assert command.main([]) == 1
    out = capsys.readouterr().out
    assert "1 failed" in out and "at step 7 it is negative" in out


@pytest.mark.parametrize("more", [[], ["--mutants"]])
def test_an_unknown_layer_is_one_sentence(more, capsys):
    assert command.main(["--layer", "rop", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: there is no layer 'rop': choose one of linear,")
    assert err.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(["--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "complex step" in out and "exit status" in out and "--mutants" in out


def test_a_wrong_backward_fails(monkeypatch, capsys):
    wrong = [
        case.replace(backward=lambda dy, cache: dy) if case.layer == "rope" else case
        for case in CASES
    ]
    monkeypatch.setattr(
        command, "cases_of", lambda layer: [case for case in wrong if case.layer == layer]
    )
    assert command.main(["--layer", "rope"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "2 failed" in out


def test_mutants_are_told_with_their_killers(capsys):
    assert command.main(["--layer", "rope", "--mutants", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "The gradient is turned forwards, not back." in out
    assert "all witnesses" in out and "continuation" in out and "0 survived" in out
    assert "-    dx, _ = rope_forward(dy, cos, -sin)" in out


def test_a_survivor_fails(monkeypatch, capsys):
    monkeypatch.setattr(command, "MUTANTS", (Mutant("rope", "Nothing is wrong.", ROPE, ()),))
    assert command.main(["--mutants"]) == 1
    out = capsys.readouterr().out
    assert "SURVIVED" in out and "1 survived" in out


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("layer", ["rope", "optim"])
def test_a_console_without_greek_and_one_without_colour(layer, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(raw, encoding="ascii", errors="strict"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert command.main(["--layer", layer]) == 0
    sys.stdout.flush()
    assert b"\x1b[32mpass" in raw.getvalue()
    coloured = len(raw.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    assert command.main(["--layer", layer, "--mutants"]) == 0
    sys.stdout.flush()
    assert b"\x1b" not in raw.getvalue()[coloured:]
