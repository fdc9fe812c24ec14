"""A CuPy without a GPU: whole programs can be tried with it, in a process of their own.

Its arrays are fake_device's, which refuse what a GPU would refuse; its kernels are compiled by g++
and run on the processor (see cuda_on_cpu). Streams and events do nothing, as everything is done at
once; and graphs can't be recorded. Put this folder's parent and tests/ on PYTHONPATH.
"""

import contextlib
import re
import time
from types import SimpleNamespace

import fake_device
import numpy as np
from cuda_on_cpu.runner import SHIM, CpuDevice

from npgpt.backend.cuda.compile import HERE, read_signatures

__version__ = "0"
ndarray = fake_device.DeviceArray
ndarray.__module__, ndarray.__qualname__ = "cupy", "ndarray"
ndarray.nbytes = property(lambda self: self._array.nbytes)
host = CpuDevice()  # who gives out memory, and checks its ends
memory_in_use = 0


def set_array(self, array, stream=None):
    assert array.dtype == self.dtype and array.flags.c_contiguous
    self._array[...] = array


ndarray.set = set_array


def empty(shape, dtype=float):
    return host.empty(shape if isinstance(shape, tuple) else (shape,), dtype)


def asarray(array, dtype=None):
    if isinstance(array, ndarray):
        return array if dtype is None else array.astype(dtype)
    return host.from_host(np.array(array, dtype, order="C"))


def zeros(shape, dtype=float):
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def full(shape, value, dtype=float):
    array = empty(shape, dtype)
    array[...] = value
    return array


def ascontiguousarray(x):
    return host.contiguous(x)


def tile(x, count):
    return np.tile(x, count)


def copyto(target, source):
    target[...] = source


class RawModule:
    """A text in CUDA C, whose way to the hardware is replaced by the way to the processor."""

    def __init__(self, code, options=()):
        primitives = (HERE / "primitives.cuh").read_text("utf-8")
        assert code.startswith(primitives)
        self.code = SHIM + code.removeprefix(primitives)
        names = dict(re.findall(r"^#define (\w+) (.+)$", self.code, re.M))
        names["element"] = re.search(r"^typedef (\w+) element;$", self.code, re.M).group(1)
        self.signatures, self.name = read_signatures(self.code, names), "RawModule"

    def text(self, primitives):
        return self.code

    def get_function(self, name):
        assert name in self.signatures
        return Function(self, name)


class Function:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, grid, block, arguments, shared_mem=0):
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "more was not granted"
        host.launch(self.module, self.name, grid, block, arguments, shared_mem)


class Device:
    id, compute_capability = 0, "90"

    def synchronize(self):
        pass


class Stream:
    ptr = 1

    def __init__(self, non_blocking=False):
        assert non_blocking

    def use(self):
        return self

    def synchronize(self):
        pass

    def wait_event(self, event):
        pass

    def is_capturing(self):
        return False

    def begin_capture(self):
        raise RuntimeError("this device that does not exist records no graphs")


class Event:
    def __init__(self, disable_timing=False):
        self.time = None

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


class MemoryPool:
    malloc = None

    def __init__(self, allocator=None):
        self.allocator = allocator

    def total_bytes(self):
        return 1 << 20

    def free_all_blocks(self):
        pass


@contextlib.contextmanager
def using_allocator(allocator):
    yield


default_pool, stream = MemoryPool(), Stream(non_blocking=True)


def get_default_memory_pool():
    return default_pool


runtime = SimpleNamespace(
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    getDeviceProperties=lambda number: {
        "name": b"A GPU that does not exist",
        "totalGlobalMem": 16 << 30,
    },
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
    memGetInfo=lambda: (8 << 30, 16 << 30),
    CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
)
cuda = SimpleNamespace(
    runtime=runtime,
    Device=Device,
    Stream=Stream,
    Event=Event,
    MemoryPool=MemoryPool,
    MemoryPointer=None,
    using_allocator=using_allocator,
    get_current_stream=lambda: stream,
    get_elapsed_time=lambda first, last: 1e3 * (last.time - first.time),
    memory=SimpleNamespace(Memory=lambda size: SimpleNamespace(ptr=256)),
)
