"""A lock between processes, so that two of them do not write the same file."""

import contextlib
import errno
import time

POLL_SECONDS = 0.2


@contextlib.contextmanager
def locked(path, on_wait=lambda: None):
    """Hold a lock while the block runs; a second process waits until the first is done.

    The system takes the lock back when its holder ends, however it ends, so nothing has to be
    cleared away after a crash; the empty file stays. On a disk that knows no locks, there is none.

    Args:    path of the lock's file; on_wait, called once if somebody else holds it.
    """
    with open(path, "ab") as file:
        waiting = False
        while not _try_lock(file):
            if not waiting:
                waiting = True
                on_wait()
            time.sleep(POLL_SECONDS)
        yield  # closing the file lets go of the lock


def _try_lock(file):
    """Take the lock if nobody has it; whether it is ours now, or can't be had on this disk."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True
