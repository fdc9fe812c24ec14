"""How a kernel becomes machine code: once a machine, and never from a stale copy.

Numba compiles a function when it is first called, which takes seconds, and can keep the result
on disk. Its own check of whether a kept result is still good looks only at the file the kernel
stands in: edit a helper in another file, and the old machine code is served. So the results
are kept in a folder whose name is a hash of every kernel's source and of the versions they were
compiled with: change anything, and the folder is another one.

Where the folder can't be written, the kernels are compiled anew in every process: slower to
start, and otherwise the same.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from functools import lru_cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from llvmlite.binding import get_host_cpu_name
from numba.core import event

from npgpt.folders import user_cache

PACKAGE = Path(__file__).resolve().parents[2]
# Sums may be reordered, which vectorises them, and a multiplication may be fused with an addition.
# For functions that add up, and do nothing else: elsewhere the compiler might turn
# (a + b) − c into a + (b − c), which is another number when b and c are large.
# Never all of fastmath: it lets the compiler assume that no number is infinite or NaN.
REORDER = frozenset({"reassoc", "contract", "nsz"})
KEPT_FOLDERS = 4  # of older sources: someone who switches between versions compiles neither twice


def kernel(function=None, *, fastmath=frozenset({"contract"}), **options):
    """Compile a function of numbers and NumPy arrays when it is first called; keep the result.

    Without Python's lock, so that threads run side by side; and with NumPy's rule for a
    division by zero, as a check before each one would keep loops from being vectorised.

    Args:    function; fastmath, the liberties that the compiler may take with rounding;
             options, further ones of numba.njit.
    Returns: the compiled function.
    """
    if function is None:
        return lambda f: kernel(f, fastmath=fastmath, **options)
    options = {"error_model": "numpy", "nogil": True, "fastmath": set(fastmath), **options}
    # Of a function that another calls there are two copies, its own and one in the caller's code,
    # and which of them runs depends on what was compiled or loaded before. The compiler
    # has optimised the second one twice, so that it may add in another order: let there be none.
    options["forceinline"] = "reassoc" in fastmath
    folder = cache_folder()
    if folder is not None:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            return numba.njit(cache=True, **options)(function)
        except (RuntimeError, OSError):  # the folder has become unwritable: see below
            pass
        finally:
            numba.config.CACHE_DIR = before
    return numba.njit(**options)(function)


@lru_cache(maxsize=1)
def cache_folder():
    """The folder of compiled kernels for these sources, or None if none can be written.

    NPGPT_CACHE names another place than the user's cache folder.
    """
    root = Path(os.environ.get("NPGPT_CACHE") or user_cache()) / "kernels"
    folder = root / sources_sha256()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
        os.utime(folder)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        others = sorted(root.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for old in others[KEPT_FOLDERS:]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def sources_sha256():
    """A hash of all that decides the machine code: sources and versions, and the machine."""
    digest = hashlib.sha256()
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    machine = (platform.machine(), get_host_cpu_name(), numba.config.CPU_FEATURES)
    digest.update(repr((versions, machine)).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        if re.search(rb"(backend\.cpu\.compile|numba\.extending) import", source):
            digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(source)}\0".encode())
            digest.update(source)
    return digest.hexdigest()


COMPILING = "compiling kernels, the first time only ..."


class Announcer(event.Listener):
    """Say once that kernels are being compiled: seconds without a sign look like a hang.

    Attributes: seconds, that all compiling has taken in this process.
    """

    said = False

    def __init__(self):
        self.seconds, self.depth, self.since = 0.0, 0, 0.0

    def on_start(self, event):
        if self.depth == 0:  # a kernel compiles those that it calls
            self.since = time.perf_counter()
        self.depth += 1
        if not self.said and sys.stderr is not None:
            self.said = True
            print(COMPILING, file=sys.stderr, flush=True)

    def on_end(self, event):
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.perf_counter() - self.since


announcer = Announcer()
event.register("numba:compile", announcer)
