"""The guard of parity: where CI is set, no test that compares npgpt with a peer is skipped unseen.

conftest.py promises it. Here pytest runs in other processes: over the parity tests of this project
where torch is missing, and over small projects that have this conftest.py and nothing else.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
PARITY = "tests/test_torch_parity.py"


def run_pytest(folder, *arguments, ci, path=""):
    """Run pytest in another process. Returns: its exit status, and what it wrote."""
    project = HERE.parents[1]  # which may not be installed, but lie here only
    alone = {"PYTHONPATH": f"{path}{os.pathsep}{project}", "PYTEST_ADDOPTS": ""}
    plain = {"NPGPT_KERNELS": "off"}  # nothing here computes, and Numba takes a second to begin
    environment = os.environ | alone | plain | {"CI": ci}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    command += ["-p", "no:hypothesispytest", *arguments]  # whose import takes a second as well
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


IN_ONE, IN_TWO = ("-n", "0"), ("-n", "1")  # processes: what a worker skips, its chief must hear


@pytest.mark.parametrize("processes", [IN_ONE, IN_TWO], ids="-".join)
@pytest.mark.parametrize("ci", ["true", "False"])
def test_without_torch(tmp_path, ci, processes):
    """The parity tests, where torch can't be imported: skipped with a reason, but failed in CI."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('as if not installed')")
    status, text = run_pytest(HERE.parents[1], PARITY, *processes, ci=ci, path=tmp_path)
    assert "torch is not installed" in text
    assert ("parity may not be skipped" in text) == (ci == "true"), text
    if ci == "true":
        assert status in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED), text
    else:
        assert status == pytest.ExitCode.NO_TESTS_COLLECTED, text


PLAIN = "def test_plain(): pass\n"
PASSING = "import pytest\n@pytest.mark.parity\ndef test_parity(): pass\n"
SKIPPING = {
    "in the test": PASSING.replace("pass\n", "pytest.skip('no kernel')\n"),
    "by a mark": PASSING.replace("def", "@pytest.mark.skipif(True, reason='no kernel')\ndef"),
    "by a fixture": PASSING.replace("()", "(shared_data)"),
}


def make_suite(folder, *files):
    """A project with this conftest.py and these test files."""
    (folder / "project" / "tests").mkdir(parents=True)
    tests = folder / "project" / "tests"
    (folder / "project" / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tests / "conftest.py").write_text(HERE.with_name("conftest.py").read_text("utf-8"), "utf-8")
    for i, text in enumerate(files):
        (tests / f"test_{i}.py").write_text(text)
    return folder / "project"


@pytest.mark.parametrize("processes", [IN_ONE, IN_TWO], ids="-".join)
def test_a_skipped_parity_test_fails_in_ci(tmp_path, processes):
    """Though another one has passed; and on a reader's machine it is only skipped."""
    project = make_suite(tmp_path, PASSING, *SKIPPING.values())
    status, text = run_pytest(project, *processes, ci="1")
    assert status == pytest.ExitCode.TESTS_FAILED and "1 passed" in text, text
    assert text.count("parity may not be skipped") == len(SKIPPING), text
    assert text.count("no kernel") >= 2 and "not on this machine" in text, text
    status, text = run_pytest(project, *processes, ci="0")
    assert status == pytest.ExitCode.OK, text
    assert f"1 passed, {len(SKIPPING)} skipped" in text, text


@pytest.mark.parametrize("processes", [IN_ONE, IN_TWO], ids="-".join)
def test_a_whole_run_without_parity_fails_in_ci(tmp_path, processes):
    """However the parity tests came to be missing; a part of the suite may do without."""
    nothing = "no parity test has passed"
    project = make_suite(tmp_path, PLAIN, PASSING)
    for arguments, wrong in (
        ([], False),
        (["-m", "not parity"], True),
        (["tests/test_0.py"], False),
    ):
        status, text = run_pytest(project, *arguments, *processes, ci="true")
        assert (status == pytest.ExitCode.TESTS_FAILED) == wrong, text
        assert (nothing in text) == wrong, text
    (project / "tests" / "test_1.py").unlink()
    for ci, wrong in (("true", True), ("", False)):
        status, text = run_pytest(project, *processes, ci=ci)
        assert (status == pytest.ExitCode.TESTS_FAILED) == wrong, text
        assert (nothing in text) == wrong, text
