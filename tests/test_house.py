"""The house rules that a reader relies on, and that nothing else would notice being broken."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = sorted(p for p in (ROOT / "npgpt" / "layers").glob("*.py") if p.stem != "__init__")
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", LAYERS, ids=lambda p: p.stem)
def test_a_layer_file_is_a_lecture(path):
    text = path.read_text("utf-8")
    module = ast.parse(text)
    doc = ast.get_docstring(module)
    for part in ("Why\n", "Forward", "Backward", "Cached\n", "Source: "):
        assert part in doc, f"{path.name} has no part {part.strip()!r}"
    assert len(text.splitlines()) <= 150
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= {"numpy", "npgpt"}, "a layer knows no device and no kernel"
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        assert ast.get_docstring(function), f"{function.name} has no docstring"
        if function.name.endswith(("_forward", "_backward")):
            assert {"Args:", "Returns:"} <= set(ast.get_docstring(function).split())


@pytest.mark.parametrize("path", LAYERS, ids=lambda p: p.stem)
def test_every_array_line_of_a_layer_ends_with_its_shape(path):
    lines = path.read_text("utf-8").splitlines()
    code = ast.parse("\n".join(lines))
    for function in (n for n in code.body if isinstance(n, ast.FunctionDef)):
        if not function.name.endswith(("_forward", "_backward")):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign | ast.AugAssign):
                continue
            source = lines[node.end_lineno - 1]
            computes = any(isinstance(n, ast.BinOp | ast.Call) for n in ast.walk(node.value))
            names_shapes = "shape" in source  # B, T, C = x.shape makes numbers, no array
            assert not computes or names_shapes or re.search(r"# .*\(.*\)", source), (
                f"{path.name}:{node.end_lineno} has no shape in a comment: {source.strip()}"
            )


def test_the_core_needs_no_optional_library():
    block = (
        "import sys\n"
        "for name in ('numba', 'cupy', 'torch', 'matplotlib', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import npgpt.training, npgpt.sampling, npgpt.plot, npgpt.interchange.llama2c, train\n"
        "import generate, gradcheck.cases, data.storybook\n"
    )
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_what_the_readme_shows_of_a_layer_is_in_its_file():
    path = re.search(r"^From \[(npgpt/layers/\w+\.py)\]", README, re.M).group(1)
    derived, computed = re.findall(r"^```(?:python)?\n(    .*?)```$", README, re.M | re.S)[:2]
    text = (ROOT / path).read_text("utf-8")
    assert "= rstd · (gⱼ" in derived and derived in text
    assert "return dx, dw" in computed and computed in text


def test_the_readme_commands_have_the_options_that_they_use():
    pages = {}
    for program, rest in re.findall(r"^python (train\.py|generate\.py)(.*)$", README, re.M):
        if program not in pages:
            pages[program] = subprocess.run(
                [sys.executable, ROOT / program, "--help"],
                capture_output=True, text=True, check=True, encoding="utf-8",
            ).stdout  # fmt: skip
        for option in re.findall(r"--[a-z-]+", rest.split("#")[0]):
            assert option in pages[program], f"{program} has no {option}"
    assert set(pages) == {"train.py", "generate.py"}


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    marker = re.search(r"grep -A1 -m1 -F '([^']+)' README.md", script).group(1)
    line = next(line for line in README.splitlines() if marker in line)
    assert line.endswith("python -m pytest")


def test_no_banned_words():
    banned = re.compile(r"fastmath\s*=\s*True|allow_pickle\s*=\s*True|^\s*import pickle", re.M)
    for place in ("*.py", "npgpt/**/*.py", "gradcheck/*.py", "data/*.py", "benchmarks/*.py",
                  "lectures/*.py"):  # fmt: skip
        for path in ROOT.glob(place):
            assert not banned.search(path.read_text("utf-8")), path
