"""The exercises: no answer is given away, a right one passes, and a wrong one learns why."""

import re
from pathlib import Path

import pytest

from gradcheck import __main__ as command
from gradcheck.exercise import file_of, load, mark, without_answers, write_exercise
from gradcheck.faults import MUTANTS
from npgpt.errors import UserError

LAYERS = (
    "attention", "attention_dropout", "dropout", "embedding", "layernorm", "linear", "loss", "mlp",
    "position", "rmsnorm", "rope", "rope_attention", "swiglu",
)  # fmt: skip


def file_with(folder, text, name="my.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("layer", LAYERS)
def test_an_exercise_gives_no_answer_away(layer, tmp_path, capsys):
    text = write_exercise(layer, tmp_path).read_text("utf-8")
    lecture = file_of(layer).read_text("utf-8")
    for part in ("Why\n", "Forward", "Your turn.", "Cached\n", "Source: "):
        assert part in text
    derivation = lecture.partition("\nBackward")[2].partition("\n")[2].partition("\nCached")[0]
    assert derivation.splitlines()[0] not in text
    assert not re.search(r"(?m)^ +d(wpe|[a-z])[^a-z ]* += ", text)  # no line of it elsewhere
    assert "fused" not in text and "# forward:" not in text
    mine = load(tmp_path / f"my_{layer}.py")
    backwards = [name for name in mine if name.endswith("_backward")]
    assert backwards and not mark(mine)
    out = capsys.readouterr().out
    assert "\n0 of " in out
    for name in backwards:
        assert f"{name} is yours to write" in out


@pytest.mark.parametrize("layer", LAYERS)
def test_the_lecture_itself_gets_full_marks(layer, tmp_path, capsys):
    path = file_with(tmp_path, file_of(layer).read_text("utf-8"))
    assert mark(load(path))
    assert "pass: it is the derivative" in capsys.readouterr().out


def test_a_wrong_answer_is_told_what_its_row_is_for(tmp_path, capsys):
    fault = next(m for m in MUTANTS if m.where.endswith("rmsnorm_backward"))
    (old, new), *_ = fault.edits
    text = file_of("rmsnorm").read_text("utf-8")
    assert text.count(old) == 1
    path = file_with(tmp_path, text.replace(old, new))
    assert command.main(["--mine", str(path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "what this row is for: " in out
    assert "10 of 10" not in out


def test_a_gradient_of_another_shape_is_a_sentence(tmp_path, capsys):
    text = "def rope_backward(dy, cache):\n    return dy[0]\n"
    assert not mark(load(file_with(tmp_path, text)))
    assert "but x has" in capsys.readouterr().out


def test_what_an_answer_raises_is_told_with_its_line(tmp_path, capsys):
    text = "def rope_backward(dy, cache):\n    return dy.nothing\n"
    assert not mark(load(file_with(tmp_path, text)))
    out = capsys.readouterr().out
    assert "AttributeError in line 2: 'numpy.ndarray' object has no attribute" in out


RETURNS = {
    "return [dy, dy]": "backward returned a list, but it has to end with return dx, dw",
    "dy, dy": "backward returned nothing, but it has to end with return dx, dw",
    "return dy": "backward returned 1 gradient, but what is wanted is dx, dw",
    "return dy, dy, dy": "backward returned 3 gradients, but what is wanted is dx, dw",
    "raise SystemExit": "SystemExit in line 2",
}


@pytest.mark.parametrize("line", RETURNS)
def test_what_is_returned_wrongly_is_told(line, tmp_path, capsys):
    path = file_with(tmp_path, f"def rmsnorm_backward(dy, cache):\n    {line}\n")
    assert command.main(["--mine", str(path)]) == 1
    assert RETURNS[line] in capsys.readouterr().out


def test_a_misspelt_backward_gets_no_marks(tmp_path, capsys):
    text = file_of("rmsnorm").read_text("utf-8")
    path = file_with(tmp_path, text.replace("def rmsnorm_backward", "def rmsnorm_backwards"))
    assert command.main(["--mine", str(path)]) == 1
    out = capsys.readouterr().out
    assert "rmsnorm_backward is not there: is its name spelt so?" in out and "\n0 of 10 rows" in out


def test_attention_may_be_derived_without_the_shorter_way(tmp_path):
    text = file_of("attention").read_text("utf-8")
    short = "_split_heads(np.sum(dy * y, axis=-1, keepdims=True), G)"
    assert text.count(short) == 1
    text = text.replace(short, "np.sum(probs * dprobs, axis=-1, keepdims=True)")
    assert mark(load(file_with(tmp_path, text)))


def test_who_writes_into_dy_is_seen(tmp_path, capsys):
    text = (
        "from npgpt.layers import rope_forward\n\n\n"
        "def rope_backward(dy, cache):\n"
        "    cos, sin = cache\n"
        "    dy[...] = rope_forward(dy, cos, -sin)[0]\n"
        "    return dy\n"
    )
    mine = load(file_with(tmp_path, text))
    assert list(mine) == ["rope_backward"]  # what is imported is the lecture's own
    assert not mark(mine)
    assert "dy was written to" in capsys.readouterr().out


def test_the_derivative_of_another_function_is_no_answer(tmp_path, capsys):
    text = (
        "def relu_forward(x):\n    return 2.0 * x, ()\n\n\n"
        "def relu_backward(dy, cache):\n    return 2.0 * dy\n"
    )
    assert not mark(load(file_with(tmp_path, text)))
    assert "y is not the lecture's" in capsys.readouterr().out


FILES = {
    "there is no file": None,
    "does not run: SyntaxError in line 1": "def rope_backward(",
    "does not run: ZeroDivisionError in line 1: division by zero": "1 / 0",
    "does not run: SystemExit in line 2": "import sys\nsys.exit(0)",
    "has no function with the name of one in npgpt.layers": "def rope(x):\n    return x\n",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_can_t_be_marked_is_one_sentence(what, tmp_path, capsys):
    path = tmp_path / "my.py"
    if FILES[what] is not None:
        path.write_text(FILES[what])
    assert command.main(["--mine", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert what in err


def test_a_file_of_another_kind_is_named(tmp_path, capsys):
    path = tmp_path / "my.txt"
    path.write_text("x")
    assert command.main(["--mine", str(path)]) == 2
    assert "is no Python file: its name should end in .py" in capsys.readouterr().err


def test_an_exercise_overwrites_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--exercise", "swiglu"]) == 0
    assert "python -m gradcheck --mine my_swiglu.py" in capsys.readouterr().out
    (tmp_path / "my_swiglu.py").write_text("mine")
    assert command.main(["--exercise", "swiglu"]) == 2
    assert (tmp_path / "my_swiglu.py").read_text() == "mine"
    assert command.main(["--exercise", "swigl"]) == 2
    assert "there is no exercise 'swigl': choose one of attention," in capsys.readouterr().err


def test_a_layer_that_is_not_here_can_be_judged_as_the_page_says(capsys):
    page = (Path(__file__).parents[1] / "docs" / "exercises.md").read_text("utf-8")
    program, shown = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.S).groups()
    exec(program, {})
    told = capsys.readouterr().out
    told, shown = (re.sub(r"\d\.\de[-+]\d+", "", text) for text in (told, shown))
    assert told == shown
    exec(program.replace("2.0 * x", "x"), {})
    assert "FAIL" in capsys.readouterr().out


def test_only_the_derivation_is_taken_out():
    head, tail = '"""T.\n\nBackward: find dx\n', 'Cached\n    x.\n"""\n'
    text = f"{head}    Easy:\n        dx = 1\n\n    And so on.\n\n{tail}"
    assert without_answers(text) == f"{head}    Your turn.\n\n{tail}"
    with pytest.raises(UserError):
        file_of("../model")
