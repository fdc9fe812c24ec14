"""Where arrays live: NumPy on a CPU, CuPy on an NVIDIA GPU.

The layers never ask. CuPy's arrays answer to NumPy's own functions, so the lecture text runs
on whatever it is given; only where numbers enter the device and where they leave it does
the program need to know, and both doors are here.
"""

import contextlib
import importlib.util
import os
import sys
from functools import cache

import numpy as np

from npgpt.errors import UserError

BACKENDS = ("numpy", "cupy")


def select_backend(name):
    """Return the array module of a backend: its `asarray` is the door in.

    Args:    name, "numpy" or "cupy".
    Returns: the module numpy or cupy.
    Raises:  UserError if the name is unknown, CuPy is not installed, or there is no GPU.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise UserError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    try:
        import cupy
    except ImportError:
        raise UserError(
            "--backend cupy needs CuPy, which is not installed: run "
            'python -m pip install -e ".[cupy-cuda13]" (or cupy-cuda12), or use --backend numpy'
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(
            f"--backend cupy found no usable NVIDIA GPU ({error}): "
            "check that nvidia-smi lists one, or use --backend numpy"
        ) from None
    if count == 0:
        raise UserError("--backend cupy found no NVIDIA GPU: use --backend numpy")
    return cupy


def to_host(array):
    """A NumPy array of the same numbers: the door out. A NumPy array comes back as it is."""
    return array if isinstance(array, np.ndarray | np.generic) else array.get()


def bfloat16():
    """The dtype of numbers with the range of float32, and 8 of its 24 binary digits.

    Raises:  UserError if ml_dtypes, where NumPy's and CuPy's come from, is not installed.
    """
    try:
        import ml_dtypes
    except ImportError:
        raise UserError(
            "bf16 needs ml_dtypes, which is not installed: run python -m pip install ml_dtypes, "
            "or use --dtype float32"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


@cache
def kernels_enabled(backend="numpy"):
    """Whether compiled kernels may take the place of the text: they can run, and are not unwanted.

    NPGPT_KERNELS=off runs the text everywhere.

    Args:    backend, "numpy", whose kernels Numba compiles, or "cupy", which brings a compiler.
    """
    wanted = os.environ.get("NPGPT_KERNELS", "").strip().lower() not in ("off", "0", "no", "false")
    return wanted and (backend != "numpy" or importlib.util.find_spec("numba") is not None)


def seconds_compiling():
    """How long a processor's kernels have been compiled in this process, in seconds."""
    compiler = sys.modules.get("npgpt.backend.cpu.compile")  # not imported, it has compiled nothing
    return compiler.announcer.seconds if compiler else 0.0


def kernels_compiled_ahead():
    """A context in which a processor's kernels for training are compiled beside other work."""
    if not kernels_enabled():
        return contextlib.nullcontext()
    from npgpt.backend.cpu.ahead import compiled_ahead

    return compiled_ahead()
