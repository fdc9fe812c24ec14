"""A lock keeps others out for as long as it is held, and never where there can be none."""

import errno
import os

import pytest

from npgpt import locks
from npgpt.locks import claimed, locked


def test_who_waits_is_told_once_and_gets_in_in_the_end(tmp_path, monkeypatch):
    path, told, naps = tmp_path / "lock", [], []
    holder = claimed(path)

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            holder.close()

    monkeypatch.setattr(locks.time, "sleep", nap)
    with locked(path, lambda: told.append(len(naps))):
        assert told == [0] and len(naps) == 3
        assert claimed(path) is None
    claimed(path).close()


def test_who_need_not_wait_is_told_nothing(tmp_path):
    told = []
    with locked(tmp_path / "lock", lambda: told.append("wait")):
        pass
    assert not told


def test_a_fault_in_the_block_lets_go_of_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    claimed(tmp_path / "lock").close()


def test_where_no_file_can_be_made_nobody_is_kept_out(tmp_path):
    """As in a folder that can't be written: here a folder has the name of the file."""
    (tmp_path / "lock").mkdir()
    with claimed(tmp_path / "lock") as file, locked(tmp_path / "lock"):
        assert file is not None


@pytest.mark.skipif(os.name != "posix", reason="Windows has another call")
def test_a_disk_that_knows_no_locks_keeps_nobody_out(tmp_path, monkeypatch):
    import fcntl

    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path / "lock") as file, locked(tmp_path / "lock"):
        assert file is not None
