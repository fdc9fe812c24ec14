"""A cublasLt that multiplies on the host, and believes only what it has been told.

It keeps the descriptions that it is given, checks them as the library does, and reads and writes
memory by the library's own rules: column by column, at the addresses and distances it was told.
Numbers of the enumerations are written down here a second time, from cublasLt.h.
"""

import ctypes
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
KINDS = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}
F32, F32_PEDANTIC, F32_TF32 = 68, 69, 77
INVALID, UNSUPPORTED = 7, 15


class FakeDll:
    """What ctypes.CDLL would return.

    Args:    algorithms, how many are guessed for a shape; refuses, compute types that none exists
             for; fails, the numbers of algorithms that fail when they are run.
    Attributes: ran, the algorithm of each product in order; asked, (attribute, value) of each
                preference that was stated.
    """

    def __init__(self, algorithms=3, refuses=(), fails=()):
        self.algorithms, self.refuses, self.fails = algorithms, refuses, fails
        self.things, self.numbers = {}, itertools.count(1000)
        self.ran, self.asked = [], []
        for name in dir(type(self)):
            if name.startswith("cublasLt"):
                setattr(self, name, Function(getattr(self, name)))

    def make(self, result, thing):
        number = next(self.numbers)
        self.things[number] = thing
        result._obj.value = number
        return 0

    def cublasLtCreate(self, result):
        return self.make(result, {})

    def cublasLtMatmulDescCreate(self, result, compute, scale):
        assert scale == 0, "alpha and beta are float32"
        return self.make(result, {"compute": compute, 3: 0, 4: 0})

    def cublasLtMatmulDescSetAttribute(self, where, attribute, value, size):
        assert attribute in (3, 4) and size == 4
        self.things[where.value][attribute] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(self, result, kind, rows, columns, lead):
        if lead < rows:
            return INVALID
        return self.make(result, (KINDS[kind], rows, columns, lead))

    def cublasLtMatmulPreferenceCreate(self, result):
        return self.make(result, {})

    def cublasLtMatmulPreferenceSetAttribute(self, where, attribute, value, size):
        assert size == {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4}[attribute]
        self.asked.append((attribute, value._obj.value))
        return 0

    def forget(self, where):
        del self.things[where.value]
        return 0

    cublasLtMatmulDescDestroy = cublasLtMatrixLayoutDestroy = forget
    cublasLtMatmulPreferenceDestroy = forget

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle, operation, a, b, c, d, preference, wanted, guesses, found
    ):
        compute = self.things[operation.value]["compute"]
        if compute in self.refuses or compute not in (F32, F32_PEDANTIC, F32_TF32):
            return UNSUPPORTED
        found._obj.value = min(wanted, self.algorithms)
        for i in range(found._obj.value):
            guesses[i].algorithm.data[0] = i
            guesses[i].status = 0
        return 0

    def cublasLtMatmul(
        self, handle, operation, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm,
        workspace, workspace_size, stream,
    ):  # fmt: skip
        number = algorithm._obj.data[0]
        self.ran.append(number)
        if number in self.fails:
            return UNSUPPORTED
        facts = self.things[operation.value]
        kinds = [self.things[x.value][0].name for x in (of_a, of_b, of_c, of_d)]
        assert kinds[0] == kinds[1] and kinds[2] == kinds[3]
        alpha, beta = (ctypes.c_float.from_address(x).value for x in (alpha, beta))
        left, right = self.matrix(a, of_a, facts[3]), self.matrix(b, of_b, facts[4])
        if left.shape[1] != right.shape[0]:
            return INVALID
        assert c != d or of_c.value == of_d.value, "what is added to on the spot is described once"
        result = alpha * (left.astype(np.float32) @ right.astype(np.float32))
        if beta:
            result += beta * self.matrix(c, of_c, 0).astype(np.float32)
        self.matrix(d, of_d, 0)[...] = result.astype(KINDS_BY_NAME[kinds[3]])
        return 0

    def matrix(self, address, layout, turned):
        """What the library sees at an address: columns, one after the other."""
        dtype, rows, columns, lead = self.things[layout.value]
        count = lead * (columns - 1) + rows
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        flat = np.frombuffer(memory, dtype)
        size = dtype.itemsize
        seen = np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, lead * size))
        return seen.T if turned else seen

    def cublasLtGetStatusString(self, status):
        return f"status {status}".encode()

    def cublasLtGetVersion(self):
        return 130000


KINDS_BY_NAME = {dtype.name: dtype for dtype in KINDS.values()}


class Function:
    """A method, to which ctypes' attributes can be given."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)


class FakeClock:
    """The device of CublasLt: a clock that shows what it is told, and no stream.

    Args:    seconds, what the algorithms take, by the order in which they are timed.
    Attributes: spared, the bytes of each spare memory that was asked for.
    """

    def __init__(self, seconds=(), recording=False):
        self.times, self.now_recording, self.spared = iter(seconds), recording, []

    def name(self):
        return "a device that does not exist"

    def stream(self):
        return 0

    def recording(self):
        return self.now_recording

    def memory(self, size):
        return type("Memory", (), {"ptr": 256})()

    def spare(self, size):
        memory = np.full(size, 0xFF, np.uint8)
        self.spared.append(size)
        return SimpleNamespace(ptr=memory.ctypes.data, memory=memory)

    def seconds(self, run):
        run()
        return next(self.times, 1.0)
