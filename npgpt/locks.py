"""A lock between processes, so that two of them do not write the same file."""

import contextlib
import errno
import os
import time

POLL_SECONDS = 0.2


@contextlib.contextmanager
def locked(path, on_wait=lambda: None):
    """Hold a lock while the block runs; a second process waits until the first is done.

    The system takes the lock back when its holder ends, however it ends, so nothing has to be
    cleared away after a crash; the empty file stays. On a disk that knows no locks, there is none;
    nor in a folder that can't be written, where nobody is in the way.

    Args:    path of the lock's file; on_wait, called once if somebody else holds it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(path, "ab"))
            waiting = False
            while not _try_lock(file):
                if not waiting:
                    waiting = True
                    on_wait()
                time.sleep(POLL_SECONDS)
        yield  # closing the file lets go of the lock


def claimed(path):
    """Hold a lock from now on, until the file is closed or the process ends.

    Args:    path of the lock's file, in a folder that is there.
    Returns: the file, or None if somebody else holds the lock. In a folder that can't be written,
             or on a disk that knows no locks, it is a file that locks nothing.
    """
    try:
        file = open(path, "ab")
    except OSError:
        return open(os.devnull, "ab")
    if _try_lock(file):
        return file
    file.close()
    return None


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
