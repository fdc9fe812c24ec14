"""Derive one yourself: a layer's file without its derivation, and a mark for what you write there.

    python -m gradcheck --exercise rmsnorm          writes my_rmsnorm.py
    python -m gradcheck --mine my_rmsnorm.py        marks it

The exercise is the lecture's own file with two things taken out, the derivation and what the
backward functions do. What is marked may be any file with functions that have the names of the
lecture's: they take the lecture's places in the rows of cases.py, and the same witnesses judge
them. A row that fails tells what it is for, which is a hint at what is wrong.

A forward of your own is held against the lecture's as well, for a derivative can be that of the
wrong function.
"""

import ast
import importlib.util
import inspect
import re
import traceback
from pathlib import Path

import numpy as np

import npgpt.layers
from gradcheck.cases import CASES
from gradcheck.numerical import COMPLEX_BAR, DIRECTION_BAR, check, flatten, relative_error
from gradcheck.properties import OF_EVERY_ROW
from gradcheck.terminal import BOLD, GREEN, RED, number, paint, verdict
from npgpt.errors import UserError

NAMES = [name for name in npgpt.layers.__all__ if name.endswith(("_forward", "_backward"))]


def file_of(layer):
    """The path of a layer's file.

    Raises:  UserError if there is no such layer, or it has no file of its own.
    """
    folder = Path(npgpt.layers.__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    if layer not in known:
        raise UserError(f"there is no exercise {layer!r}: choose one of {', '.join(known)}")
    return known[layer]


def write_exercise(layer, folder="."):
    """Write my_LAYER.py: the lecture's file without the derivation and the backward.

    Returns: its path.
    Raises:  UserError if there is no such layer, or the file is there already.
    """
    text = file_of(layer).read_text("utf-8")
    path = Path(folder) / f"my_{layer}.py"
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(without_answers(text))
    except FileExistsError:
        raise UserError(
            f"{path} is there already: mark it with python -m gradcheck --mine {path}, or move it "
            "away to begin anew"
        ) from None
    except OSError as error:
        raise UserError(
            f"could not write {path} ({error.strerror}): go to another folder"
        ) from None
    return path


def without_answers(text):
    """A layer's file without its derivation, and without what its backward functions do."""
    # The section that begins with "Backward", up to the next line that begins at the margin.
    text = re.sub(r"(?m)^(Backward.*\n)(?:(?:    .*)?\n)+", r"\1    Your turn.\n\n", text, count=1)
    text = re.sub(r"\n?from npgpt\.backend\.fused import fused\n|@fused\n", "", text)
    lines = text.splitlines()
    for function in reversed(ast.parse(text).body):
        if not isinstance(function, ast.FunctionDef) or not function.name.endswith("_backward"):
            continue
        given = [s for s in function.body if ast.unparse(s).endswith("= cache")]
        last = given[-1] if given else function.body[0]  # which is the docstring
        lines[last.end_lineno : function.end_lineno] = [
            f'    raise NotImplementedError("{function.name} is yours to write")'
        ]
    return "\n".join(lines) + "\n"


def load(path):
    """The functions of a file that have a lecture's name, and are not the lecture's.

    Returns: a dict from name to function.
    Raises:  UserError if the file can't be read or run, or has none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: write one with python -m gradcheck --exercise")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UserError(f"{path} is no Python file: its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        why = what_went_wrong(error, {path.resolve()})
        raise UserError(f"{path} does not run: {why}") from None
    theirs = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and n in NAMES}
    mine = {n: f for n, f in theirs.items() if f is not getattr(npgpt.layers, n)}
    if not mine:
        raise UserError(
            f"{path} has no function with the name of one in npgpt.layers, as rmsnorm_backward: "
            "give yours such a name"
        )
    return mine


def what_went_wrong(error, paths):
    """An error in words: its kind, the last line in one of these files, and what it says."""
    kind, said = type(error).__name__, str(error)
    if isinstance(error, SyntaxError):
        return f"{kind} in line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() in paths]
    if lines:
        return f"{kind} in line {lines[-1]}: {said}"
    # What the witnesses raise of an answer is a sentence by itself.
    return said if isinstance(error, ValueError) else f"{kind}: {said}"


def mark(mine):
    """Let the witnesses judge functions in the lecture's places, and print what they say.

    Args:    mine, a dict from a lecture's name to the function that takes its place.
    Returns: whether all is well, and no backward is missing whose forward is there.
    """
    rows = []
    for case in CASES:
        forward, backward = case.forward.__name__, case.backward.__name__
        # Some rows have a backward that is made of a layer's: there the lecture's would be judged.
        if backward in mine or (forward in mine and backward in NAMES):
            rows.append(case)
    print(f"{', '.join(mine)}: yours, in the lecture's place\n")
    head = f"{'row':36}{'gradient':14}{'shape':16}{'central':>10}{'complex':>10}  verdict"
    print(paint(head, BOLD))
    passed, unwritten = 0, set()
    for row in rows:
        if row.backward.__name__ not in mine:
            # The lecture's own would be judged, and a misspelt name get full marks.
            unwritten.add(f"{row.backward.__name__} is not there: is its name spelt so?")
            continue
        try:
            lines, reasons = judge(row, mine)
        except NotImplementedError as error:
            unwritten.add(str(error))
            continue
        ok = not reasons and all(ok for *_, ok in lines)
        passed += ok
        label = row.name
        for gradient, shape, central, complex_, right in lines:
            print(f"{label:36}{gradient:14}{shape:16}{central}{complex_}  {verdict(right)}")
            label = ""
        if reasons:
            print(f"{label:86}  {verdict(False)}")
        for reason in reasons:
            print(paint(f"    {reason}", RED))
        if not ok:
            print(f"    what this row is for: {row.note}")
    for reason in sorted(unwritten):
        print(reason)
    ok = passed == len(rows)
    score = paint(f"{passed} of {len(rows)} rows pass", GREEN if ok else RED)
    print(f"\n{score}{': it is the derivative' if ok else ''}")
    return ok


def judge(row, mine):
    """One row with functions of one's own in it.

    Returns: lines (argument, shape, central, complex, whether it passes), and reasons, sentences
             on what else is wrong.
    Raises:  NotImplementedError where something is still to be written.
    """
    case = row.replace(
        forward=mine.get(row.forward.__name__, row.forward),
        backward=mine.get(row.backward.__name__, row.backward),
    )
    lines, reasons = [], []
    try:
        with np.errstate(all="ignore"):
            if case.forward is not row.forward:
                apart = forward_error(case, row)
                if apart > COMPLEX_BAR:
                    reasons.append(f"y is not the lecture's, but {apart:.1e} away")
            report = check(case)
            for line in report.lines:
                errors = number(line.central), number(line.complex)
                lines.append((f"d{line.argument}", str(line.shape), *errors, line.ok))
            along = number(report.direction)
            whole = report.direction <= DIRECTION_BAR
            lines.append(("together", "", " " * 10, along, whole))
            reasons += [reason for prop in OF_EVERY_ROW.values() if (reason := prop(case))]
    except NotImplementedError:
        raise
    except (Exception, SystemExit) as error:
        files = {Path(inspect.getfile(function)).resolve() for function in mine.values()}
        reasons.append(what_went_wrong(error, files))
    return lines, reasons


def forward_error(case, row):
    """How far a forward is from the lecture's, in units of the largest number."""
    y, truth = (flatten(z.forward(**z.inputs())[0]) for z in (case, row))
    return relative_error(y, truth) if y.shape == truth.shape else np.inf
