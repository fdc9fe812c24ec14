"""How a CUDA kernel is compiled and launched, and all that it asks of the device.

A wrapper in rmsnorm.py says

    kernels = source("rmsnorm.cu", x.dtype, WIDTH=8)
    y = empty(x.shape, x.dtype)
    kernels.launch("rmsnorm_forward", (blocks,), (threads,), (x, w, y, rstd, N, C, eps))

source() joins three texts to one, which is compiled when it is first launched:
    primitives.cuh     what only the hardware knows: a few instructions, as functions
    constants          #define WIDTH 8, and `element`, the type of x: float, bf16 or fp16
    common.cuh         loading, storing and adding up, for all kernels alike
    rmsnorm.cu         the kernels
A source is kept: the same name, dtype and constants give the same one.

launch() reads each kernel's own signature, and gives it what it asks for: an array for a pointer
(const element* for one of the source's dtype, float* for float32, and so on, or it is an error),
Python numbers for int, long long, unsigned long long and float. It returns at once: the GPU works
on its own.

All that a wrapper needs of the device is `device`, an object with a few methods. The tests put
another one in its place, whose arrays lie in the host's memory and whose launches run the
same source on the CPU, compiled by g++: see tests/cuda_on_cpu.
"""

import re
import sys
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FLOAT32 = np.dtype(np.float32)
# What `element` is, by the name of a dtype.
ELEMENTS = {"float32": "float", "bfloat16": "bf16", "float16": "fp16"}
POINTERS = {
    "float": "float32", "bf16": "bfloat16", "fp16": "float16", "int": "int32",
    "long long": "int64", "unsigned long long": "uint64", "double": "float64",
}  # fmt: skip
ID_TYPES = {"int32": "int", "int64": "long long"}  # of tokens, by the name of a dtype
NUMBERS = {
    "int": np.int32, "long long": np.int64, "unsigned long long": np.uint64, "float": np.float32,
}  # fmt: skip
# The options that CuPy adds to these are repeated in the tests that compile without a GPU.
OPTIONS = ("-std=c++17",)
VECTOR = 16  # bytes: the most that one thread loads or stores at once
MOST_THREADS = 2**31  # elements of an array that a thread's 32-bit number can count
STATIC_SHARED_BYTES = 48 * 1024  # above this, a kernel has to be told how much it may take


class Device:
    """The GPU, by way of CuPy, which is imported when something is first asked of it."""

    def __init__(self):
        self._modules = {}  # by source and GPU
        self._functions = {}  # by source, GPU and kernel: compiled, and how much memory it may take
        self._said = False

    def empty(self, shape, dtype):
        """Memory for an array, with anything in it."""
        import cupy

        return cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        """Memory for an array, full of zeros."""
        import cupy

        return cupy.zeros(shape, dtype)

    def from_host(self, array):
        """A copy on the device of a NumPy array."""
        import cupy

        return cupy.asarray(array)

    def contiguous(self, x):
        """x itself if it is without gaps in memory, otherwise a copy that is."""
        import cupy

        return cupy.ascontiguousarray(x)

    def capability(self):
        """What the GPU can do, as a number: 75 is Turing, 80 Ampere, 90 Hopper."""
        import cupy

        return int(cupy.cuda.Device().compute_capability)

    def launch(self, source, kernel, grid, block, arguments, shared_bytes):
        """Start a kernel on the current stream; the current GPU compiles it if it is new."""
        import cupy

        key = source, cupy.cuda.runtime.getDevice(), kernel
        if key not in self._functions:
            if key[:2] not in self._modules:
                self._announce()
                self._modules[key[:2]] = cupy.RawModule(code=source.text(), options=OPTIONS)
            self._functions[key] = [self._modules[key[:2]].get_function(kernel), 0]
        function, granted = self._functions[key]
        if shared_bytes > max(granted, STATIC_SHARED_BYTES):
            function.max_dynamic_shared_size_bytes = shared_bytes
            self._functions[key][1] = shared_bytes
        function(grid, block, arguments, shared_mem=shared_bytes)

    def _announce(self):
        """Say it once: seconds without a sign look like a hang. CuPy keeps the result on disk."""
        if not self._said:
            self._said = True
            say("compiling CUDA kernels, or taking those kept ...")


def say(sentence):
    """Tell the person something that is no result."""
    if sys.stderr is not None:
        print(sentence, file=sys.stderr, flush=True)


device = Device()


def empty(shape, dtype):
    """Memory for an array on the device, with anything in it."""
    return device.empty(shape, dtype)


def zeros(shape, dtype):
    """Memory for an array on the device, full of zeros."""
    return device.zeros(shape, dtype)


def from_host(array):
    """A copy on the device of a NumPy array."""
    return device.from_host(array)


def contiguous(x):
    """x itself if it is without gaps in memory, otherwise a copy that is."""
    return device.contiguous(x)


def capability():
    """The compute capability of the device, as a number: 90 on an H100."""
    return device.capability()


@cache
def source(name, dtype, **constants):
    """The kernels of one file, for one type of element.

    Args:    name, of a .cu file in this folder; dtype, of the arrays that the kernels call
             element: float32, bfloat16 or float16; constants, more that is defined for its text.
    Returns: a Source.
    """
    return Source(name, np.dtype(dtype), constants)


class Source:
    """A text in CUDA C, and the kernels in it.

    Args:    name, of its file; dtype, of `element`; constants, a dict of what else is defined.
    """

    def __init__(self, name, dtype, constants):
        self.name, self.dtype, self.constants = name, dtype, constants
        self.kernels = (HERE / name).read_text("utf-8")
        names = {"element": ELEMENTS[dtype.name], **constants}
        self.signatures = read_signatures(self.kernels, names)

    def text(self, primitives=None):
        """All that the compiler reads.

        Args:    primitives, to stand in for those of primitives.cuh.
        """
        if primitives is None:
            primitives = (HERE / "primitives.cuh").read_text("utf-8")
        defined = {"WIDTH": 1, **self.constants}
        lines = [f"typedef {ELEMENTS[self.dtype.name]} element;"]
        lines += [f"#define {name} {value}" for name, value in sorted(defined.items())]
        common = (HERE / "common.cuh").read_text("utf-8")
        return "\n".join([primitives, *lines, common, self.kernels])

    def launch(self, kernel, grid, block, arguments, shared_bytes=0):
        """Start a kernel.

        Args:    kernel, its name; grid, how many blocks; block, how many threads in each: tuples;
                 arguments, arrays and numbers in the order of its signature; shared_bytes,
                 the shared memory of a block beside what the kernel declares.
        Raises:  TypeError if an argument is not of the type that the kernel declares.
        """
        wanted = self.signatures[kernel]
        if len(arguments) != len(wanted):
            raise TypeError(f"{kernel} takes {len(wanted)} arguments, but got {len(arguments)}")
        given = tuple(fitting(kernel, parameter, z) for parameter, z in zip(wanted, arguments))
        device.launch(self, kernel, grid, block, given, shared_bytes)


def fitting(kernel, parameter, argument):
    """An argument as a kernel's parameter (name, type, dtype of what it points to) wants it."""
    name, kind, pointee = parameter
    if pointee is None:
        return NUMBERS[kind](argument)
    found = argument.dtype.name if hasattr(argument, "dtype") else type(argument).__name__
    if found != pointee:
        raise TypeError(f"{kernel}: {name} points to {pointee}, but got {found}")
    return argument


def read_signatures(text, names):
    """The parameters of every kernel in a text.

    Args:    text, CUDA C; names, what words like element stand for.
    Returns: dict from the kernel's name to a list of (name, type, dtype name of what it points
             to, or None for a number).
    """
    pattern = r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)'
    signatures = {}
    for kernel, parameters in re.findall(pattern, text):
        signatures[kernel] = []
        for parameter in parameters.split(","):
            kind, star, name = re.fullmatch(
                r"\s*(?:const )?([\w ]+?)(\*?) (\w+)\s*", parameter
            ).groups()
            kind = names.get(kind, kind)
            pointee = POINTERS[kind] if star else None
            signatures[kernel].append((name, kind, pointee))
    return signatures


def width_for(channels, *arrays, strides=()):
    """How many elements a thread can load at once: 16 bytes' worth, or one.

    Args:    channels, the length of a row; arrays, the first of them of the elements' dtype;
             strides, in elements, by which rows lie apart where they are not neighbours.
    Returns: WIDTH, which divides channels; above 1 only if every row begins at a multiple of
             16 bytes.
    """
    width = VECTOR // arrays[0].dtype.itemsize
    whole = all(n % width == 0 for n in (channels, *strides))
    return width if whole and all(z.data.ptr % VECTOR == 0 for z in arrays) else 1


def in_place(x):
    """x itself if the numbers of its last axis are neighbours in memory, otherwise a copy."""
    return x if x.strides[-1] == x.dtype.itemsize else contiguous(x)


def element_strides(x):
    """How far apart neighbours along each axis lie in memory, in elements."""
    return tuple(stride // x.dtype.itemsize for stride in x.strides)
