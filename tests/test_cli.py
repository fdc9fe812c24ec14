"""The command line that settings make: what it reads, and how it refuses."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest

from npgpt.cli import harmless, main_with_errors, option, parse
from npgpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    steps: int = option(5000, "how many batches: 100% of them")
    max_lr: float = option(6e-4, "the highest learning rate")
    top_k: int | None = option(None, "the best k only")
    limit: Optional[float] = option(1.0, "a limit", metavar="L")  # noqa: UP045
    tie: bool = option(True, "one table")
    out: Path | None = option(None, "a file", flag="-o")
    prompt: str = option("", "a text")
    run: str | None = option(None, "a name")
    backend: str = option("numpy", "where", choices=("numpy", "cupy"))
    betas: tuple[float, float] = option((0.9, 0.95), "two numbers")
    files: tuple[str, ...] = option((), "some files")


def test_defaults():
    assert parse(Settings, []) == (Settings(), set())


def test_reads_every_kind():
    line = "--steps 1_000 --max-lr 1e-3 --top-k 5 --limit none --no-tie -o a/b --prompt".split()
    line += ["- once", *"--run None --backend cupy --betas 0.8 0.9 --files a b".split()]
    settings, given = parse(Settings, line)
    assert settings == Settings(
        1000, 1e-3, 5, None, False, Path("a/b"), "- once", "None", "cupy", (0.8, 0.9), ("a", "b")
    )
    assert given == set(Settings.__dataclass_fields__)


def test_given_even_if_equal_to_the_default():
    assert parse(Settings, ["--steps=5000", "--tie"]) == (Settings(), {"steps", "tie"})


def test_a_value_that_begins_with_a_dash():
    assert parse(Settings, ["--steps", "-3", "--prompt=--x"])[0] == Settings(-3, prompt="--x")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--steps 1.5", "--steps: '1.5' is not a whole number"),
        ("--steps none", "--steps: 'none' is not a whole number"),
        ("--top-k x", "--top-k: 'x' is not a whole number"),
        ("--max-lr nan", "--max-lr: 'nan' is not a finite number"),
        ("--max-lr=-inf", "--max-lr: '-inf' is not a finite number"),
        ("--limit 1e999", "--limit: '1e999' is not a finite number"),
        ("--betas 1 x", "--betas: 'x' is not a finite number"),
        ("--betas 1", "--betas: expected 2 arguments"),
        ("--backend cuda", "--backend: 'cuda' is not one of numpy, cupy"),
        ("--stesp 5", "there is no option --stesp: did you mean --steps?"),
        ("--top_k=5", "there is no option --top_k: did you mean --top-k?"),
        ("--no-ti", "there is no option --no-ti: did you mean --no-tie?"),
        ("--xyzzy", "there is no option --xyzzy: --help lists all of them"),
        ("--step 5", "there is no option --step: did you mean --steps?"),  # no abbreviations
        ("hello", "'hello' belongs to no option: quote a text that has spaces in it"),
        ("--tie=yes", "--tie/--no-tie takes no value: write it without one"),
        ("--out=", "-o/--out: '' is not a path"),
        ("--prompt", "--prompt needs a value; one that begins with a dash, as --prompt=-VALUE"),
        ("-o", "--out needs a value; one that begins with a dash, as --out=-VALUE"),
    ],
)
def test_refuses_in_one_sentence(line, sentence):
    with pytest.raises(UserError) as error:
        parse(Settings, line.split())
    assert str(error.value) == sentence


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Settings, ["--help"], "What it is.\n  As laid out.", "An example.")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "What it is. As laid out.", "An example.", "--steps N", "100% of them (default: 5000)",
        "--tie, --no-tie", "one table (default: on)", "--backend {numpy,cupy}", "--limit L",
        "(default: 0.9 0.95)", "-o PATH, --out PATH a file --prompt",
    ):  # fmt: skip
        # Python 3.13 and later write a flag's value once: -o, --out PATH
        assert part in text or part.replace("-o PATH,", "-o,") in text, part


def _raise(error):
    raise error


def test_statuses(capsys):
    assert main_with_errors(lambda: None) == 0
    assert main_with_errors(lambda: 3) == 3
    assert main_with_errors(_raise, SystemExit(4)) == 4
    assert main_with_errors(_raise, UserError("no: do yes")) == 2
    assert capsys.readouterr().err == "error: no: do yes\n"
    assert main_with_errors(_raise, KeyboardInterrupt()) == 130
    assert main_with_errors(_raise, MemoryError("8 EB")) == 2
    with pytest.raises(ZeroDivisionError):  # a fault of the program keeps its traceback
        main_with_errors(_raise, ZeroDivisionError())


PROGRAM = """
import sys
from npgpt.cli import main_with_errors
def main():
    for _ in range(100_000):
        print("é" * 10)
sys.exit(main_with_errors(main))
"""


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_terminal_without_the_character():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    program = PROGRAM.replace("100_000", "1")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"?" * 10, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device: make room, or write elsewhere\n"


def test_other_faults_of_the_system_keep_their_traceback():
    with pytest.raises(PermissionError):
        main_with_errors(_raise, PermissionError(13, "no"))


@pytest.mark.skipif(os.name != "posix", reason="the shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_obstacle(closed):
    program = PROGRAM.replace("100_000", "1") + "\n"
    command = f'"$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, program], cwd=ROOT)
    assert done.returncode == 0


def test_what_a_terminal_would_obey_is_not_shown():
    assert harmless("a\x1b[2J\ab\r\x9b\x00") == "a�[2J�b���"
    whole = "Zoë said:\n\t“你好” 😀\n"
    assert harmless(whole) == whole
