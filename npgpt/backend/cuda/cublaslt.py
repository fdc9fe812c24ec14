"""cublasLt: NVIDIA's matrix products, called through ctypes.

Why not cupy.matmul, which asks the same makers' older library? A training step wants what that
can't give: a product of bfloat16 numbers written as float32, which a weight's gradient is; a
product that is added to another array on its way out, which the residual stream is, and the
gradient so far; and a place in a CUDA graph, in which CuPy refuses its own products.

Rows and columns
    The library counts down the columns: its matrix (r, c) lies in memory as ours does when it is
    (c, r). So what we call out = a @ b, it sees as outᵀ = bᵀ @ aᵀ: give it b first and a second,
    each as it lies, and nothing has to be turned. A view that is turned already, as wteᵀ is when
    the table serves as lm_head, is passed as what it is a view of, and the library is told so.

Which algorithm
    The library has hundreds, and guesses which is the fastest for a shape. The best guesses are
    run, and timed, when a shape is met for the first time; the choice is kept, in the user's cache
    folder too. Another algorithm may add in another order, and so change the last bit: with the
    choice kept, the same seed gives the same bits on the same machine. For that reason no algorithm
    is asked that lets parts of a sum race for their place (the scheme called in-place).

    Algorithms that cut a long sum of 16-bit numbers into parts are reported to forget its end where
    that fills no tile: 8 terms of 8,648, say, in versions 12.8 to 13.2, on Hopper too. So they may
    cut only sums of whole tiles, which those over the tokens of a batch are as a rule.

Where a product is added to
    An array may be added to on the spot, if it is described to the library once, and not a second
    time as the result. But what is timed is run many times, and a gradient must be added once: so
    it is timed on other memory.

NPGPT_CUBLASLT=first takes the library's first guess and times nothing; NPGPT_CUBLASLT=off leaves
the library out, and cupy.matmul does what it can.

Source: the numbers of the enumerations and the sizes of the structures are those of cublasLt.h,
    cublas_api.h and library_types.h, the same in CUDA 12 and 13.
"""

import contextlib
import ctypes
import functools
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p

from npgpt.backend.cuda.choices import Choices
from npgpt.backend.cuda.compile import say
from npgpt.backend.cuda.matrices import describe

WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper
GUESSES = 8  # how many algorithms are timed for a shape
NEARLY = 1.03  # an earlier guess that is slower by less than this is taken: it is chosen again

LIBRARY_FILES = (
    "libcublasLt.so.13", "libcublasLt.so.12", "cublasLt64_13.dll", "cublasLt64_12.dll",
)  # fmt: skip

DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType: CUDA_R_32F, 16F, 16BF
LARGEST = 4  # bytes of a number
FLOAT32 = 0  # of alpha and beta
# cublasComputeType: for each way to multiply, the first that the library has an algorithm for.
COMPUTE = {"exact": (69, 68), "tf32": (77,), "half": (68,)}  # 32F_PEDANTIC, 32F, 32F_FAST_TF32
TURNED_A, TURNED_B = 3, 4  # cublasLtMatmulDescAttributes: TRANSA, TRANSB
TURN = 1  # cublasOperation: CUBLAS_OP_T
MAX_WORKSPACE, REDUCTION_SCHEMES, ALIGNMENTS = 1, 3, (5, 6, 7, 8)  # cublasLtMatmulPreference...
UNSUPPORTED = 15  # cublasStatus: NOT_SUPPORTED
# cublasLtReductionScheme: NONE, a sum is not cut; COMPUTE_TYPE, its parts are added afterwards.
IN_ONE, IN_ORDER = 0, 2
TILE = 128  # terms of a sum that are added at once, at most


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: may be kept and used again with the same version of the library."""

    _fields_ = (("data", c_uint64 * 8),)


class Guess(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


# Every function that is called, by its arguments; all but the last two return a status.
SIGNATURES = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulAlgoGetHeuristic": (
        *[c_void_p] * 7, c_int, POINTER(Guess), POINTER(c_int),
    ),
    "cublasLtMatmul": (
        *[c_void_p] * 5, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        POINTER(Algorithm), c_void_p, c_size_t, c_void_p,
    ),
    "cublasLtGetStatusString": (c_int,),
    "cublasLtGetVersion": (),
}  # fmt: skip


class CublasLtError(RuntimeError):
    """A call of the library failed; the message says which, and what the library says of it."""


class Plan:
    """How one shape is multiplied: the library's descriptions of it, and an algorithm."""

    def __init__(self, operation, layouts, guesses):
        self.operation, self.layouts, self.guesses = operation, layouts, guesses
        self.chosen = guesses[0].algorithm
        self.settled = len(guesses) == 1
        self.kept = False  # whether an earlier process has chosen


class CublasLt:
    """The library, on one device.

    Args:    dll, of ctypes; device, which gives a stream, memory and a clock: CupyDevice.
    Raises:  CublasLtError if the library can't be started.
    """

    def __init__(self, dll, device):
        self.dll, self.device = dll, device
        for name, arguments in SIGNATURES.items():
            getattr(dll, name).argtypes = arguments
        dll.cublasLtGetStatusString.restype = c_char_p
        dll.cublasLtGetVersion.restype = c_size_t
        self.plans = {}
        self.handle = self._made("cublasLtCreate")
        self.workspace = device.memory(WORKSPACE)
        self.choices = Choices(f"cublaslt-{dll.cublasLtGetVersion()}-{device.name()}")
        self.timed = os.environ.get("NPGPT_CUBLASLT", "").strip().lower() != "first"

    def multiply(self, out, a, b, add=None, tf32=False):
        """out = a @ b, or add + a @ b, summed in float32.

        Args:    out (m, n), rows in order of memory; a (m, k); b (k, n), of one dtype; add, None
                 or an array as out, which may be out itself; tf32, whether products of float32
                 numbers may read ten of their 23 binary places.
        Returns: whether it was done: False if the library has no algorithm for these arrays.
        Raises:  CublasLtError if the library fails.
        """
        shape = describe(out, a, b, add, tf32)
        if shape is None:
            return False
        if shape not in self.plans:
            self.plans[shape] = self._plan(shape)
        plan = self.plans[shape]
        if plan is None:
            return False
        pointers = b.data.ptr, a.data.ptr, (out if add is None else add).data.ptr, out.data.ptr
        if not plan.settled and not self.device.recording():  # into a graph: there nothing runs
            self._settle(shape, plan, pointers)
        try:
            self._run(plan, plan.chosen, pointers, shape.adds)
        except CublasLtError:
            if not plan.kept:
                raise
            plan.kept, plan.chosen = False, plan.guesses[0].algorithm  # of another driver, say
            self._run(plan, plan.chosen, pointers, shape.adds)
        return True

    def _plan(self, shape):
        """The Plan of a shape, or None if the library has no algorithm for it."""
        *first, last = COMPUTE[shape.compute]
        for compute in (*first, last):
            operation, layouts = self._describe(shape, compute)
            guesses = []
            with contextlib.suppress(*[] if compute == last else [CublasLtError]):
                guesses = self._guesses(shape, operation, layouts)
            if guesses:
                plan = Plan(operation, layouts, guesses)
                kept = self.choices.get(shape) if self.timed else None
                if kept is not None and len(kept) == ctypes.sizeof(Algorithm):
                    plan.chosen = Algorithm.from_buffer_copy(kept)
                    plan.settled = plan.kept = True
                return plan
            self._call("cublasLtMatmulDescDestroy", operation)
            for layout in layouts:
                self._call("cublasLtMatrixLayoutDestroy", layout)
        say(f"cublasLt has no algorithm for {shape}: CuPy makes this product, which is slower")
        return None

    def _describe(self, shape, compute):
        """The library's own descriptions: the operation, and b, a and out, which add lies as."""
        operation = self._made("cublasLtMatmulDescCreate", compute, FLOAT32)
        for turned, attribute in ((shape.turned_b, TURNED_A), (shape.turned_a, TURNED_B)):
            if turned:
                self._set("cublasLtMatmulDescSetAttribute", operation, attribute, c_int(TURN))
        m, n, k = shape.m, shape.n, shape.k
        kind, out_kind = DATA_TYPES[shape.dtype], DATA_TYPES[shape.out_dtype]
        b = (kind, k, n, shape.lead_b) if shape.turned_b else (kind, n, k, shape.lead_b)
        a = (kind, m, k, shape.lead_a) if shape.turned_a else (kind, k, m, shape.lead_a)
        out = (out_kind, n, m, shape.lead_out)
        return operation, [self._made("cublasLtMatrixLayoutCreate", *x) for x in (b, a, out)]

    def _guesses(self, shape, operation, layouts):
        """The library's best guesses, the best first; none if it knows no way."""
        preference = self._made("cublasLtMatmulPreferenceCreate")
        scheme = IN_ORDER if shape.compute != "half" or shape.k % TILE == 0 else IN_ONE
        wishes = [
            (MAX_WORKSPACE, c_uint64(WORKSPACE)),
            (REDUCTION_SCHEMES, ctypes.c_uint32(scheme)),
        ]
        wishes += [(wish, ctypes.c_uint32(n)) for wish, n in zip(ALIGNMENTS, shape.alignments)]
        for attribute, value in wishes:
            self._set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
        found, guesses = c_int(0), (Guess * GUESSES)()
        of_b, of_a, of_out = layouts
        status = self.dll.cublasLtMatmulAlgoGetHeuristic(
            self.handle, operation, of_b, of_a, of_out, of_out, preference, GUESSES, guesses,
            byref(found),
        )  # fmt: skip
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        if status == UNSUPPORTED:
            return []
        self._check("cublasLtMatmulAlgoGetHeuristic", status)
        return [g for g in guesses[: found.value] if g.status == 0]

    def _settle(self, shape, plan, pointers):
        """Time the guesses, and keep the fastest."""
        if self.timed:
            b, a, add, out = pointers
            if shape.adds and add == out:  # each run would add once more
                spare = self.device.spare(LARGEST * shape.m * shape.lead_out)
                pointers = b, a, spare.ptr, spare.ptr
            seconds = [self._seconds(plan, guess, pointers, shape.adds) for guess in plan.guesses]
            best = min(seconds)
            if best < float("inf"):
                place = next(i for i, s in enumerate(seconds) if s <= NEARLY * best)
                plan.chosen = plan.guesses[place].algorithm
                self.choices.keep(shape, bytes(plan.chosen))
        plan.settled = True

    def _seconds(self, plan, guess, pointers, adds):
        """How long a guess takes; infinitely long if it fails."""
        try:
            return self.device.seconds(lambda: self._run(plan, guess.algorithm, pointers, adds))
        except CublasLtError:
            return float("inf")

    def _run(self, plan, algorithm, pointers, adds):
        one, beta = c_float(1.0), c_float(1.0 if adds else 0.0)
        b, a, add, out = pointers
        of_b, of_a, of_out = plan.layouts
        self._call(
            "cublasLtMatmul", self.handle, plan.operation, ctypes.addressof(one), b, of_b, a, of_a,
            ctypes.addressof(beta), add, of_out, out, of_out, byref(algorithm),
            self.workspace.ptr, WORKSPACE, self.device.stream(),
        )  # fmt: skip

    def _made(self, name, *args):
        """What a function makes and gives back by its first argument."""
        result = c_void_p()
        self._call(name, byref(result), *args)
        return result

    def _set(self, name, where, attribute, value):
        self._call(name, where, attribute, byref(value), ctypes.sizeof(value))

    def _call(self, name, *args):
        self._check(name, getattr(self.dll, name)(*args))

    def _check(self, name, status):
        if status != 0:
            said = self.dll.cublasLtGetStatusString(status)
            raise CublasLtError(
                f"{name} failed: {said.decode() if said else status}; NPGPT_CUBLASLT=off in the "
                "environment does without this library"
            )


class CupyDevice:
    """What CublasLt asks of a device, answered by CuPy."""

    def __init__(self):
        import cupy

        self.cupy = cupy

    def name(self):
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        return properties["name"].decode().replace(" ", "-").lower()

    def stream(self):
        return self.cupy.cuda.get_current_stream().ptr

    def recording(self):
        """Whether the calls of now are recorded into a graph, and nothing runs."""
        stream = self.cupy.cuda.get_current_stream()
        return stream.ptr != 0 and stream.is_capturing()

    def memory(self, size):
        """Memory that is nobody else's, for as long as what is returned lives."""
        return self.cupy.cuda.memory.Memory(size)

    def spare(self, size):
        """Memory with anything in it, which goes back to where arrays get theirs."""
        return self.cupy.cuda.alloc(size)

    def seconds(self, run, repeats=4, rounds=3):
        """How long a run takes, the best of some rounds."""
        stream, best = self.cupy.cuda.get_current_stream(), float("inf")
        run()
        for _ in range(rounds):
            first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            first.record(stream)
            for _ in range(repeats):
                run()
            last.record(stream)
            last.synchronize()
            best = min(best, self.cupy.cuda.get_elapsed_time(first, last) / repeats)
        return best


def load_dll():
    """Find cublasLt: where NVIDIA's packages, CuPy or the system keep it.

    Returns: a ctypes library.
    Raises:  OSError if it is nowhere.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception as error:  # not installed, or it did not find it: each version has its own
        for name in LIBRARY_FILES:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(f"cublasLt was not found ({why})") from None


@functools.lru_cache(maxsize=1)
def open_library():
    """The CublasLt of this process and its current device.

    Returns: (CublasLt, None), or (None, why not, as half a sentence).
    """
    if os.environ.get("NPGPT_CUBLASLT", "").strip().lower() in ("off", "0", "no", "false"):
        return None, "NPGPT_CUBLASLT is off"
    try:
        return CublasLt(load_dll(), CupyDevice()), None
    except (OSError, AttributeError, ImportError, CublasLtError) as error:
        return None, str(error)
