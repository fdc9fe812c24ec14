"""@fused: the lecture text, or a compiled kernel that does the same faster.

A layer file says what a layer computes. A kernel says the same once more, for one kind of
hardware and one precision, in one pass over the data and without the arrays in between. It has
the same name and the same arguments, gives the same results up to rounding, and fills the same
cache: so a kernel's backward can undo the text's forward, and the reverse.

Which one runs is decided here, by what a function is given:

    float32 NumPy arrays            the kernel in npgpt.backend.cpu, if Numba is installed
    float32, 16-bit CuPy arrays     the kernel in npgpt.backend.cuda; 16-bit is bfloat16, float16
    float64, complex128             the text, always: so a gradient check checks the text
    anything that a kernel refuses  the text: a kernel returns NotImplemented for shapes that
                                    do not fit, and what is wrong is said in one place only

NPGPT_KERNELS=off runs the text everywhere. The layers and the model have no other `if` about
backends; only what brings numbers to a device and back (training, sampling) must ask.
"""

import functools
import importlib
import importlib.util

import numpy as np

from npgpt.backend import kernels_enabled

# Whose kernels take an array, by its type. Types of libraries that may be missing stand in the
# second table by name, and in the first one once an array of theirs has been met.
KERNELS = {np.ndarray: "npgpt.backend.cpu"}
KERNELS_BY_NAME = {"cupy.ndarray": "npgpt.backend.cuda"}
BACKENDS = {"npgpt.backend.cpu": "numpy", "npgpt.backend.cuda": "cupy"}
FLOAT32 = np.dtype(np.float32)
PLAIN = (int, float, bool, str, type(None), np.generic)


def fused(text):
    """Let a kernel of the same name take the place of a function wherever it can.

    The kernel of npgpt.layers.rmsnorm's rmsnorm_forward is rmsnorm_forward in
    npgpt.backend.cpu.rmsnorm. It is imported when it is first called.

    Args:    text, a pure function of arrays, caches (tuples), numbers and names.
    Returns: the function; its attribute `text` is the one that was given.
    """
    kernels = {}  # by the name of their package

    @functools.wraps(text)
    def function(*args, **kwargs):
        package = kernel_package([*args, *kwargs.values()] if kwargs else args)
        if package is not None and kernels_enabled(BACKENDS[package]):
            if package not in kernels:
                kernels[package] = find_kernel(package, text) or text
            result = kernels[package](*args, **kwargs)
            if result is not NotImplemented:
                return result
        return text(*args, **kwargs)

    function.text = text
    return function


def kernel_package(values):
    """Which package's kernels take these arguments.

    Args:    values, arguments of a fused function.
    Returns: the package's name if all arrays of real numbers are of one kind that has kernels,
             and float32, or on a GPU bfloat16 or float16; otherwise None.
    """
    package = None
    for value in values:
        kind = type(value)
        if kind is tuple:
            if all(isinstance(part, PLAIN) or is_integers(part) for part in value):
                continue  # a cache without real numbers in arrays, as dropout's
            found = kernel_package(value)
        elif kind not in KERNELS and isinstance(value, PLAIN):
            continue
        elif kind in KERNELS or is_known(kind):
            if is_integers(value):
                continue
            found = KERNELS[kind] if fits(value.dtype, KERNELS[kind]) else None
        else:
            return None
        if found is None or package not in (None, found):
            return None
        package = found
    return package


def is_integers(value):
    """Whether a value is an array of integers."""
    return hasattr(value, "dtype") and value.dtype.kind in "iu"


def is_known(kind):
    """Whether a type has kernels that KERNELS did not list yet; now it does."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in KERNELS_BY_NAME:
        KERNELS[kind] = KERNELS_BY_NAME[name]
    return name in KERNELS_BY_NAME


def fits(dtype, package):
    """Whether a package has kernels for numbers of this type."""
    if package == "npgpt.backend.cuda":
        return dtype.name in ("float32", "bfloat16", "float16")
    return dtype == FLOAT32


def find_kernel(package, text):
    """The kernel for a function: the same name, in the module of the same name.

    Returns: the kernel; None if there is none, as not every function is worth one.
    """
    name = f"{package}.{text.__module__.rpartition('.')[2]}"
    module = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return getattr(module, text.__name__, None)
