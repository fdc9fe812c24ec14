"""A device whose memory is the host's, and which runs CUDA C on the processor: see shim.h.

It takes the place of npgpt.backend.cuda.compile.device, so that a kernel is tried together with the
wrapper that launches it. Its arrays are `fake_device.DeviceArray`s, which refuse what a GPU would
refuse. New memory is full of NaN, so that a number that was never written is seen; and each
array lies between two strips of NaN, so that who reads past its end gets NaN, and who
writes there is found out.
"""

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from fake_device import DeviceArray

from npgpt.folders import user_cache
from npgpt.locks import locked

SHIM = (Path(__file__).parent / "shim.h").read_text("utf-8")
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    "-std=c++17", "-O1", "-march=native",
    "-ffp-contract=fast", "-fexpensive-optimizations",  # a GPU too adds as it multiplies
    "-shared", "-fPIC", "-fvisibility=hidden", "-w",
)  # fmt: skip
COMPILERS = ThreadPoolExecutor(os.cpu_count())
LEAST_SHARED_BYTES = 64 * 1024  # that a block can have on Turing; later GPUs have more
STRIP = 256  # bytes of NaN before and after each array
NUMBERS = {
    np.int32: ctypes.c_int, np.int64: ctypes.c_longlong, np.uint64: ctypes.c_ulonglong,
    np.float32: ctypes.c_float,
}  # fmt: skip


class CpuDevice:
    """What the wrappers ask of a GPU, done by the host.

    Args:    capability, the GPU that it pretends to be; reverse, whether blocks and warps take
             their turns from the last to the first; change, a function from a kernel's text to
             another text: a planted fault.
    """

    def __init__(self, capability=90, reverse=False, change=lambda text: text):
        self._capability, self.reverse, self.change = capability, reverse, change
        self._memory = []  # weak references to all that was given out
        self.launched = []  # the file and the name of each kernel, in order

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.full(16 + STRIP + size + STRIP, 0xFF, np.uint8)
        start = STRIP + -(memory.ctypes.data + STRIP) % 16
        self._memory.append((weakref.ref(memory), start, start + size))
        return DeviceArray(memory[start : start + size].view(dtype).reshape(shape))

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array._array[...] = 0
        return array

    def from_host(self, array):
        copy = self.empty(array.shape, array.dtype)
        copy._array[...] = array
        return copy

    def contiguous(self, x):
        return x if x.flags.c_contiguous else self.from_host(x._array)

    def capability(self):
        return self._capability

    def launch(self, source, kernel, grid, block, arguments, shared_bytes):
        assert len(block) == 1, "blocks are rows of threads"
        assert all(0 < n < 2**31 for n in grid[:1]) and all(0 < n < 65536 for n in grid[1:])
        assert shared_bytes <= LEAST_SHARED_BYTES
        self.launched.append((source.name, kernel))
        library = load(program(source, self.change))
        function = getattr(library, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        blocks = (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid)))
        error = function(
            blocks, ctypes.c_uint(block[0]), ctypes.c_ulonglong(shared_bytes),
            ctypes.c_int(self.reverse), *(_for_c(z) for z in arguments),
        )  # fmt: skip
        if error:
            raise RuntimeError(f"{kernel}: {error.decode()}")
        self._check_strips(kernel)

    def _check_strips(self, kernel):
        alive = []
        for reference, start, stop in self._memory:
            memory = reference()
            if memory is not None:
                alive.append((reference, start, stop))
                if not (np.all(memory[:start] == 0xFF) and np.all(memory[stop:] == 0xFF)):
                    raise RuntimeError(f"{kernel}: wrote past one end of an array")
        self._memory = alive


def _for_c(argument):
    if isinstance(argument, DeviceArray):
        return ctypes.c_void_p(argument.data.ptr)
    return NUMBERS[type(argument)](argument)


def glue(signatures):
    """C functions that launch the kernels, as ctypes can't call what is no plain function."""
    lines = []
    for kernel, parameters in signatures.items():
        types = [f"{kind}{'*' if pointee else ''} {name}" for name, kind, pointee in parameters]
        names = ", ".join(name for name, _, _ in parameters)
        lines.append(
            f'extern "C" __attribute__((visibility("default"))) const char* launch_{kernel}('
            "const unsigned* grid, unsigned threads, unsigned long long shared_bytes, int reverse, "
            f"{', '.join(types)}) {{ return shim::launch(grid, threads, shared_bytes, reverse, "
            f"[=] {{ {kernel}({names}); }}); }}"
        )
    return "\n".join(lines)


@cache
def build_soon(text):
    """Compile a program in the background: a Future of the path of the library."""
    return COMPILERS.submit(_built, text)


def program(source, change=lambda text: text):
    """The program for a Source: the shim, the kernels, and functions that launch them."""
    return change(source.text(SHIM)) + "\n" + glue(source.signatures)


@cache
def load(text):
    """The library of a program, once it is compiled."""
    return ctypes.CDLL(str(build_soon(text).result()))


def _built(text):
    """Compile a program, or take the library that was compiled from the same text before."""
    key = hashlib.sha256(repr((text, COMPILER, compiler_version(), FLAGS)).encode()).hexdigest()
    library = cache_folder() / f"{key[:24]}.so"
    with locked(library.with_suffix(".lock")):  # test files that run side by side ask for the same
        if not library.exists():
            part = library.with_suffix(f".{os.getpid()}.so")
            done = subprocess.run(
                [COMPILER, *FLAGS, "-x", "c++", "-", "-o", str(part)],
                input=text, capture_output=True, text=True, encoding="utf-8",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[:4000]
            os.replace(part, library)
    return library


@lru_cache(maxsize=1)
def cache_folder():
    """Where libraries are kept from run to run; where that can't be, until this one ends."""
    folder = Path(os.environ.get("NPGPT_CACHE") or user_cache()) / "cuda_on_cpu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        temporary = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)


@lru_cache(maxsize=1)
def compiler_version():
    """What the compiler says of itself and of the processor; None without one, or without Linux."""
    if sys.platform != "linux":
        return None
    try:
        questions = ["--version"], ["-march=native", "-Q", "--help=target"]
        return "".join(
            subprocess.run([COMPILER, *q], capture_output=True, text=True, check=True).stdout
            for q in questions
        )
    except (OSError, subprocess.CalledProcessError):
        return None
