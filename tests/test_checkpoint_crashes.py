"""A save is done wholly or not at all, whatever happens to the disk or the process meanwhile.

Three enemies are played here: the power cut (what is not synced is not there), the kill (for real,
and as a copy of the disk taken before each call that changes it), and the full disk (an error from
each such call in turn). The flipped bit is in test_checkpoint.py.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import fail, files_of, names, save_small, version_of

from npgpt import checkpoint
from npgpt.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    write_atomic,
)
from npgpt.errors import UserError

resource = pytest.importorskip("resource")  # Windows has neither it nor kills of this kind
FSYNC = os.fsync
pytestmark = pytest.mark.usefixtures("fast_disk")


# The power cut.


def test_everything_is_on_the_disk_before_it_is_relied_upon(tmp_path, monkeypatch):
    run = tmp_path / "new" / "run"
    root, first = run / "checkpoints", run / "checkpoints" / "step-00000001"
    synced, renamed, sizes = [], [], {}

    def fsync(handle):
        FSYNC(handle)
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        sizes[synced[-1]] = os.fstat(handle).st_size

    def rename(source, target, rename=os.rename):
        if target == first:  # the new one gets its name
            assert set(files_of(source)) <= set(synced)
            assert all(sizes[file] == file.stat().st_size > 0 for file in files_of(source))
            assert set(synced[-2:]) == {source, source / "tokenizer"}  # after all files are named
            synced.clear()
        if target.name.startswith(".tmp"):  # an old one goes
            assert synced == [root]
        renamed.append(source.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save_small(run, 1)
    assert synced == [root] and len(renamed) == 1
    save_small(run, 1, version=1)
    assert synced == [root] and renamed[1::2] == ["step-00000001", "step-00000001.replaced"]
    synced.clear()
    write_atomic(tmp_path / "a" / "b" / "file", b"")
    assert synced[:2] == [tmp_path, tmp_path / "a"] and synced[-1] == tmp_path / "a" / "b"
    assert len(synced) == 4


# The kill and the full disk.

CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace")


@pytest.fixture
def before_call(monkeypatch):
    """Return a list; the function appended to it runs before each call that changes the disk."""
    hooks = []

    def watch(name, function):
        def watched(*args, **kwargs):
            for hook in hooks:
                hook(name)
            return function(*args, **kwargs)

        return watched

    class File:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[: len(data) // 2])  # a write can stop half-way
            self.file.flush()
            for hook in hooks:
                hook("write")
            self.file.write(data[len(data) // 2 :])

    opened = watch("open", open)
    monkeypatch.setattr(checkpoint, "open", lambda *args: File(opened(*args)), raising=False)
    for name in CALLS[2:]:
        monkeypatch.setattr(os, name, watch(name, getattr(os, name)))
    return hooks


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_error_at_each_call_in_turn(tmp_path, before_call, code, again):
    seen, unharmed, n = set(), 0, 0
    while True:
        run = tmp_path / str(n)
        save_small(run, 1)
        save_small(run, 2)
        left = n

        def tick(name):
            nonlocal left
            left -= 1
            if left == -1:
                seen.add(name)
                raise OSError(code, os.strerror(code))

        before_call.append(tick)
        try:
            save_small(run, 2 if again else 3, version=1)
            failed = None
        except UserError as error:
            failed = error
        before_call.clear()
        assert not [name for name in names(run) if name.startswith(".tmp")]
        newest = newest_checkpoint(run, warn=fail)
        if failed:
            assert str(run) in str(failed) and os.strerror(code) in str(failed)
            assert ("MB are free" in str(failed)) == (code == errno.ENOSPC)
            assert version_of(load_checkpoint(run / "checkpoints" / "step-00000001")) == 0
            old = [p for p in list_checkpoints(run) if p.name.startswith("step-00000002")]
            assert version_of(load_checkpoint(old[0])) == 0
            unharmed += version_of(newest) == 0
        else:
            assert version_of(newest) == 1
        save_small(run, 4, keep=1)  # and the run goes on
        assert names(run) == ["step-00000004"]
        if left >= 0:  # the error was not reached: every call had its turn
            break
        n += 1
    assert seen >= set(CALLS) - {"replace"} and n >= 20 and unharmed >= n - 2


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_a_kill_before_each_call_in_turn(tmp_path, before_call, again):
    """What is on the disk before each call is what a kill at that moment leaves there."""
    run = tmp_path / "run"
    save_small(run, 1)
    save_small(run, 2)
    copies = []

    def copy(_):
        copies.append(tmp_path / f"copy{len(copies)}")
        before_call.clear()  # copytree makes folders as well
        shutil.copytree(run, copies[-1])
        before_call.append(copy)

    before_call.append(copy)
    save_small(run, 2 if again else 3, version=1, keep=1)
    before_call.clear()
    found = []
    for copied in copies:
        found.append(version_of(newest_checkpoint(copied, warn=fail)))
        save_small(copied, 4, keep=1)  # sweeps up what the kill left
        assert names(copied) == ["step-00000004"]
    assert found == sorted(found) and set(found) == {0, 1}


KILLED = """
import os, sys
sys.path[:0] = sys.argv[3:]
from checkpoint_helpers import save_small
os.fsync = lambda handle: None  # a kill leaves the system's memory alone
step = int(sys.argv[2])
while True:
    for version in range(3):  # each step is saved three times over
        save_small(sys.argv[1], step, version)
        print(step, version, flush=True)
    step += 1
"""


def test_kills_at_random_moments(tmp_path):
    rng, step, left_over, here = random.Random(0), 1, 0, Path(__file__).parents[:2]
    for _ in range(15):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(step), *map(str, here)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            first = process.stdout.readline()
            time.sleep(rng.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
            lines = (first + process.stdout.read()).splitlines(keepends=True)
        reported = [tuple(map(int, line.split())) for line in lines if line.endswith(b"\n")]
        newest = newest_checkpoint(tmp_path, warn=fail)
        assert (newest.step, version_of(newest)) >= reported[-1] >= (step, 0)
        step = newest.step + 1
        left_over += any(name.startswith(".tmp") for name in names(tmp_path))
    assert left_over > 0  # else the kills all missed the saves
    save_small(tmp_path, step)
    assert len(names(tmp_path)) == 2


def test_the_temporary_folder_of_a_living_process_is_left_alone(tmp_path, monkeypatch):
    root = tmp_path / "checkpoints"
    living, gone, absurd = (f".tmp-{pid}-ab" for pid in (os.getppid(), 2**22 + 1, 10**30))
    for name in (living, gone, absurd):
        (root / name / "tokenizer").mkdir(parents=True)
    save_small(tmp_path, 1)
    assert names(tmp_path) == [living, "step-00000001"]
    monkeypatch.setattr(os, "kill", lambda pid, sig: (_ for _ in ()).throw(PermissionError()))
    save_small(tmp_path, 2)
    assert living in names(tmp_path)


def test_a_disk_that_really_refuses(tmp_path):
    """A limit on the size of files stops a real write half-way."""
    save_small(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="too large"):
            save_checkpoint(tmp_path, 2, {"model": {"w": np.zeros(10**6)}}, {})
        with pytest.raises(UserError, match="too large"):
            write_atomic(tmp_path / "big", bytes(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-00000001"]
    assert os.listdir(tmp_path) == ["checkpoints"]


@contextmanager
def as_nobody():
    """Give up root's right to write anywhere, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_without_permission():
    with tempfile.TemporaryDirectory(prefix="npgpt-") as name:
        run, root = Path(name) / "run", Path(name) / "run" / "checkpoints"
        save_small(run, 1)
        Path(name).chmod(0o755)
        root.chmod(0o555)
        with as_nobody():
            with pytest.raises(UserError, match=r"Permission denied.*can be written to"):
                save_small(run, 2)
            with pytest.raises(UserError, match="Permission denied"):
                write_atomic(root / "x", b"")
            assert newest_checkpoint(run, warn=fail).step == 1
        root.chmod(0o000)
        with as_nobody():
            with pytest.raises(UserError, match=r"can't read .*checkpoints \(Permission denied"):
                newest_checkpoint(run)
            with pytest.raises(UserError, match="Permission denied"):
                save_small(run, 2)
        root.chmod(0o755)
        assert names(run) == ["step-00000001"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="could not save"):
        save_small(tmp_path / "run", 1)
    assert newest_checkpoint(tmp_path / "run") is None


def test_an_interrupt_leaves_nothing_behind(tmp_path, before_call):
    save_small(tmp_path, 1)

    def interrupt(name):
        if name == "write":
            raise KeyboardInterrupt

    before_call.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_small(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_folders_that_cannot_be_synced(tmp_path, monkeypatch):
    """Some network disks can't fsync a folder, and Windows can't even open one."""
    folders = []

    def files_only(handle):
        if os.path.isdir(f"/dev/fd/{handle}"):
            folders.append(handle)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", files_only)
    version_of(load_checkpoint(save_small(tmp_path, 1)))
    assert folders
    folders.clear()
    monkeypatch.setattr(checkpoint, "_WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *_: fail("a process was sent a signal"))
    (tmp_path / "checkpoints" / ".tmp-1-ab").mkdir()
    version_of(load_checkpoint(save_small(tmp_path, 2)))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert not folders


# Small files.


def test_write_atomic(tmp_path):
    path = tmp_path / "new" / "log.json"
    write_atomic(path, b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["log.json"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes with a name")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """/dev/null is another such file, and was once replaced by an empty one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"heard")
    assert os.read(reader, 99) == b"heard" and pipe.is_fifo()
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name != "posix", reason="on Windows links need a permission")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "file"
    link.symlink_to(target)
    for data in (b"one", b"two"):
        write_atomic(link, data)
        assert link.is_symlink() and target.read_bytes() == data
    assert os.listdir(target.parent) == ["file"]


def test_write_atomic_keeps_the_old_file_on_an_error_at_any_call(tmp_path, before_call):
    path = tmp_path / "log.json"
    write_atomic(path, b"one")
    for n, name in enumerate(["open", "write", "fsync", "replace"]):
        calls = []

        def tick(call):
            calls.append(call)  # noqa: B023
            if len(calls) == n + 1:  # noqa: B023
                assert call == name  # noqa: B023
                raise OSError(errno.ENOSPC, "No space left on device")

        before_call.append(tick)
        with pytest.raises(UserError, match=r"log\.json \(No space left.*MB are free"):
            write_atomic(path, b"two")
        before_call.clear()
        assert path.read_bytes() == b"one"
        assert os.listdir(tmp_path) == ["log.json"]
