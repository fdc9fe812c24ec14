"""What all tests share: the mark `parity`, its guard, and the folder of development data.

A test that is skipped says nothing, and on a green page of dots nobody hears it say so. The
tests that compare npgpt with something else (torch, a compiled kernel) are the ones that get
skipped, when that something is not installed: on a reader's machine rightly, with a reason. But
where the environment variable CI is set, parity is what the run is for. There
    a `parity` test that is skipped fails, and so does a test file that names the mark and is
        skipped as a whole, by pytest.importorskip say;
    a run over all of tests/ in which no `parity` test has passed fails, whatever the cause: a
        file renamed, a mark lost, a `-m "not parity"` left behind.
"""

import contextlib
import os
import signal
from pathlib import Path

import pytest

# Before NumPy is imported: its products in these tests are small, and OpenBLAS's second thread
# spins while it waits. Where other programs want the processor too, that costs more than the
# product: 200 training steps of a tiny model took 7.5 s with one thread and 40 to 55 s with two.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

TESTS = Path(__file__).resolve().parent


def in_ci():
    """Whether CI is set, to anything but what means no."""
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The tests keep what they prepare in a folder of theirs, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPGPT_DATA", str(tmp_path_factory.mktemp("npgpt-data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def compiling_is_not_announced():
    """Which test is the first to need a kernel is chance; what that one prints should not be."""
    from npgpt.backend import kernels_enabled

    if kernels_enabled():
        from npgpt.backend.cpu.compile import Announcer

        Announcer.said = True


@pytest.fixture(scope="session")
def shared_data():
    """The folder of development data beside the project, for tests on real text."""
    path = TESTS.parent.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the development data folder {path} is not on this machine")
    return path


@pytest.fixture
def fast_disk(monkeypatch):
    """Leave the disk its time: only a power cut needs fsync, and we have none to offer.

    That it is called, and when, is tested in test_checkpoint_crashes.py.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def named_when_safe(monkeypatch):
    """Fail where a file gets its name before all of it is on the disk: a power cut could empty it.

    Returns: a list, of the names that were given since.
    """
    on_disk, names, replace = {}, [], os.replace

    def synced(handle):
        about = os.fstat(handle)
        on_disk[about.st_ino] = about.st_size

    def moved(source, target):
        about = os.stat(source)
        assert on_disk.get(about.st_ino) == about.st_size, f"{target} is not on the disk yet"
        names.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    return names


@pytest.fixture
def text_only(monkeypatch):
    """A context in which the lecture text runs everywhere, and no kernel."""
    from npgpt.backend import kernels_enabled

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setenv("NPGPT_KERNELS", "off")
            kernels_enabled.cache_clear()
            yield
        kernels_enabled.cache_clear()

    return context


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "parity: compares with an independent implementation; skipping it fails CI"
    )
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be whatever the tests
    # start, though some of them press it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI, a skipped parity test is a failed one."""
    report = yield
    marked = item.get_closest_marker("parity") is not None
    if in_ci() and marked and report.skipped and not hasattr(report, "wasxfail"):
        fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """In CI, a skipped file of parity tests is a failed one.

    A file that skips itself has no tests whose marks could be asked for, so its text is.
    """
    report = yield
    if in_ci() and report.skipped and isinstance(collector, pytest.Module):
        if "mark.parity" in collector.path.read_text(encoding="utf-8"):
            fail(report)
    return report


def fail(report):
    """Turn a report that says skipped into one that says failed, and keep its reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"parity may not be skipped where CI is set. {reason}"


def no_parity(config):
    """Whether this is a run in CI over all of tests/ in which no parity test passed."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not in_ci() or reporter is None or config.option.collectonly:
        return False
    asked = [Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args]
    whole = any(TESTS.is_relative_to(path.resolve()) for path in asked)
    return whole and not any("parity" in r.keywords for r in reporter.stats.get("passed", []))


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and no_parity(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if no_parity(config):
        terminalreporter.write_line(
            "ERROR: CI is set, all of tests/ was asked for, and no parity test has passed.",
            red=True,
        )
