"""Matrix products on a GPU, without one: how cublasLt is asked, and what it is asked for.

The library is played by fake_cublaslt.FakeDll, which multiplies as it was told, column by column.
Where the real one is installed, its descriptions are made too, for which it needs no GPU.
"""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from fake_cublaslt import KINDS, FakeClock, FakeDll
from fake_device import DeviceArray

from npgpt.backend.cuda import cublaslt, linear
from npgpt.backend.cuda.cublaslt import CublasLt, CublasLtError
from npgpt.backend.cuda.matrices import describe, lie
from npgpt.block import linear_backward_into, linear_forward_onto
from npgpt.layers import linear_backward, linear_forward

F32, F16, BF16 = KINDS[0], KINDS[2], KINDS[14]


@pytest.fixture(autouse=True)
def own_choices(tmp_path, monkeypatch):
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path))
    monkeypatch.delenv("NPGPT_CUBLASLT", raising=False)


def numbers(*shape, dtype=F32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def on_device(x):
    return DeviceArray(x)


def exact(a, b):
    return a.astype(np.float64) @ b.astype(np.float64)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 1), (6, 1, 2), (1, 1, 1), (8, 16, 24)])
@pytest.mark.parametrize("adds", [False, True])
def test_a_product_is_what_numpy_says(dtype, turn_a, turn_b, shape, adds):
    m, n, k = shape
    a = numbers(k, m, dtype=dtype).T if turn_a else numbers(m, k, dtype=dtype)
    b = numbers(n, k, dtype=dtype, seed=1).T if turn_b else numbers(k, n, dtype=dtype, seed=1)
    for out_dtype in {dtype, F32}:
        add = numbers(m, n, dtype=out_dtype, seed=2) if adds else None
        out = np.full((m, n), np.nan, out_dtype)
        library = CublasLt(FakeDll(), FakeClock())
        given = [on_device(x) for x in (out, a, b)]
        assert library.multiply(*given, None if add is None else on_device(add))
        expected = exact(a, b) + (0.0 if add is None else add.astype(np.float64))
        error = np.abs(out.astype(np.float64) - expected).max()
        assert error <= (1e-5 if out_dtype == F32 else 2**-8) * (1.0 + np.abs(expected).max())


def test_rows_with_gaps_are_read_where_they_are():
    wide = numbers(4, 12)
    a, b = wide[:, 3:8], numbers(5, 6)
    out = np.empty((4, 6), F32)
    assert CublasLt(FakeDll(), FakeClock()).multiply(*map(on_device, (out, a, b)))
    assert np.allclose(out, exact(a, b), atol=1e-5)


def test_what_is_no_matrix_in_memory_is_refused():
    x = numbers(4, 12)
    assert lie(x[:, ::2]) is None
    assert lie(np.broadcast_to(x[:1], (4, 12))) is None  # every row in the same place
    assert lie(x) == (False, 12) and lie(x.T) == (True, 12) and lie(x[:, :5]) == (False, 12)
    out, b = np.empty((4, 3), F32), numbers(6, 3)
    assert describe(*map(on_device, (out, x[:, ::2], b))) is None
    assert describe(*map(on_device, (out, x[:, :6].astype(np.float64), b))) is None
    assert describe(*map(on_device, (out.T.copy().T, x[:, :6], b))) is None  # a turned result
    assert describe(*map(on_device, (np.empty((0, 3), F32), x[:0, :6], b))) is None


def test_no_sums_race_and_alignments_are_told():
    dll = FakeDll()
    memory = np.zeros(4 * 6 + 16, F32)
    start = (-memory.ctypes.data // 4) % 4 + 1  # one number beyond a multiple of 16 bytes
    a = memory[start : start + 24].reshape(4, 6)
    CublasLt(dll, FakeClock()).multiply(*map(on_device, (np.empty((4, 8), F32), a, numbers(6, 8))))
    asked = dict(dll.asked)
    assert asked[3] == 2, "parts of a sum are added in order, or not divided"
    assert asked[1] == 32 << 20
    assert asked[6] == 4, "a begins at a multiple of 4 bytes"
    assert all(asked[i] in (4, 8, 16, 32, 64, 128, 256) for i in (5, 6, 7, 8))


@pytest.mark.parametrize(
    "dtype, k, scheme", [(F32, 6, 2), (BF16, 128, 2), (F16, 1024, 2), (BF16, 1028, 0), (F16, 10, 0)]
)
def test_a_16_bit_sum_is_cut_into_whole_tiles_only(dtype, k, scheme):
    dll = FakeDll()
    a, b = numbers(4, k, dtype=dtype), numbers(k, 8, dtype=dtype)
    CublasLt(dll, FakeClock()).multiply(*map(on_device, (np.empty((4, 8), F32), a, b)))
    assert dict(dll.asked)[3] == scheme


def product(library, m=4, add=None):
    out = np.empty((m, 8), F32)
    library.multiply(on_device(out), on_device(numbers(m, 6)), on_device(numbers(6, 8)), add)
    return out


def test_the_fastest_is_chosen_once_and_kept_for_the_next_process():
    dll = FakeDll(algorithms=4)
    library = CublasLt(dll, FakeClock([5.0, 3.05, 3.0, 4.0]))
    product(library)
    assert dll.ran == [0, 1, 2, 3, 1], "an earlier guess that is as good as the best is taken"
    product(library)
    product(library, m=5)  # another shape is timed for itself
    assert dll.ran[5:] == [1, 0, 1, 2, 3, 0]
    later = FakeDll(algorithms=4)
    product(CublasLt(later, FakeClock([1.0, 9.0, 9.0, 9.0])))
    assert later.ran == [1]


def test_a_damaged_table_of_choices_is_an_empty_one(tmp_path):
    dll = FakeDll()
    product(CublasLt(dll, FakeClock()))
    (path,) = (tmp_path / "choices").iterdir()
    path.write_text("{", "utf-8")
    product(CublasLt(dll, FakeClock()))
    assert dll.ran == [0, 1, 2, 0] * 2


def test_where_nothing_can_be_written_choices_last_as_long_as_the_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path / "file"))
    dll = FakeDll()
    library = CublasLt(dll, FakeClock([3.0, 1.0, 2.0]))
    product(library)
    product(library)
    assert dll.ran == [0, 1, 2, 1, 1]


def test_a_kept_choice_that_fails_now_is_given_up():
    product(CublasLt(FakeDll(), FakeClock([2.0, 1.0, 3.0])))
    dll = FakeDll(fails=[1])
    library = CublasLt(dll, FakeClock())
    product(library)
    product(library)
    assert dll.ran == [1, 0, 0]


def test_nothing_is_timed_while_a_graph_is_recorded():
    dll, clock = FakeDll(), FakeClock([2.0, 1.0, 3.0], recording=True)
    library = CublasLt(dll, clock)
    product(library)
    assert dll.ran == [0]
    clock.now_recording = False
    product(library)
    assert dll.ran == [0, 0, 1, 2, 1]


def sum_in_place(library, width=8):
    """How far off a sum is where the product was added to what was there, whose rows have gaps."""
    wide = numbers(4, width, seed=3)
    before, (a, b) = wide.astype(np.float64), (numbers(4, 6), numbers(6, 8))
    place = on_device(wide[:, :8])
    assert library.multiply(place, on_device(a), on_device(b), place)
    assert np.array_equal(wide[:, 8:], before[:, 8:])
    return np.abs(wide[:, :8] - before[:, :8] - exact(a, b)).max()


@pytest.mark.parametrize("width", [8, 11])
def test_where_a_product_is_added_to_it_is_added_once(width):
    """Its algorithms are timed on other memory, and only while none is chosen."""
    dll, clock = FakeDll(), FakeClock([3.0, 1.0, 2.0])
    library = CublasLt(dll, clock)
    assert sum_in_place(library, width) < 1e-5
    assert dll.ran == [0, 1, 2, 1] and clock.spared == [4 * 4 * width]
    assert sum_in_place(library, width) < 1e-5
    assert dll.ran[4:] == [1] and len(clock.spared) == 1
    later = FakeDll()
    assert sum_in_place(CublasLt(later, FakeClock()), width) < 1e-5 and later.ran == [1]


def test_nor_is_it_added_twice_where_a_graph_is_recorded_or_a_choice_fails():
    dll, clock = FakeDll(), FakeClock([2.0, 1.0, 3.0], recording=True)
    assert sum_in_place(CublasLt(dll, clock)) < 1e-5
    assert dll.ran == [0] and clock.spared == []
    sum_in_place(CublasLt(FakeDll(), FakeClock([2.0, 1.0, 3.0])))
    dll = FakeDll(fails=[1])
    assert sum_in_place(CublasLt(dll, FakeClock())) < 1e-5
    assert dll.ran == [1, 0]


def test_the_first_guess_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("NPGPT_CUBLASLT", "first")
    dll = FakeDll()
    product(CublasLt(dll, FakeClock()))
    assert dll.ran == [0]


def test_an_algorithm_that_fails_is_not_chosen():
    dll = FakeDll(fails=[0])
    product(CublasLt(dll, FakeClock([1.0, 1.0, 2.0])))
    assert dll.ran == [0, 1, 2, 1]


def test_a_failure_is_told_by_name():
    library = CublasLt(FakeDll(algorithms=1, fails=[0]), FakeClock())
    with pytest.raises(CublasLtError, match="cublasLtMatmul failed: status 15"):
        product(library)


def test_where_there_is_no_pedantic_float32_the_plain_one_does(capsys):
    exact_only = FakeDll(refuses=(69,))
    assert CublasLt(exact_only, FakeClock()).multiply(
        *map(on_device, (np.empty((4, 8), F32), numbers(4, 6), numbers(6, 8)))
    )
    none = CublasLt(FakeDll(refuses=(68, 69)), FakeClock())
    assert not none.multiply(*map(on_device, (np.empty((4, 8), F32), numbers(4, 6), numbers(6, 8))))
    assert capsys.readouterr().err.count("cublasLt has no algorithm for Shape(m=4, n=8,") == 1


@pytest.fixture(params=["cublasLt", "fallback"])
def gpu(request, monkeypatch):
    """Arrays of the fake device go to the kernels, and these to a fake."""
    from npgpt.backend.fused import KERNELS

    opened = (CublasLt(FakeDll(), FakeClock()), None)
    if request.param == "fallback":
        opened = None, "there is none"
    monkeypatch.setattr(linear, "open_library", lambda: opened)
    monkeypatch.setattr(linear, "empty", lambda shape, dtype: on_device(np.empty(shape, dtype)))
    monkeypatch.setattr(linear.Products, "said", False)
    monkeypatch.setitem(KERNELS, DeviceArray, "npgpt.backend.cuda")
    return request.param


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (5,)])
def test_linear_layers(gpu, capsys, dtype, turned, shape):
    x = numbers(*shape, 6, dtype=dtype)
    w = numbers(8, 6, dtype=dtype).T if turned else numbers(6, 8, dtype=dtype)
    dy = numbers(*shape, 8, dtype=dtype, seed=5)
    y, cache = linear_forward(*map(on_device, (x, w)))
    dx, dw = linear_backward(on_device(dy), cache)
    wide = [z.astype(np.float64) for z in (x, w, dy)]
    expected, expected_cache = linear_forward.text(*wide[:2])
    expected = expected, *linear_backward.text(wide[2], expected_cache)
    allowed = {F32: 1e-5, BF16: 2**-7, F16: 2**-10}
    for got, want, kind in zip((y, dx, dw), expected, (dtype, dtype, F32)):
        assert got.dtype == kind and got.shape == want.shape
        error = np.abs(got.get().astype(np.float64) - want).max()
        assert error <= allowed[kind] * (1.0 + np.abs(want).max())
    if turned:
        assert dw.T.flags.c_contiguous, "it is added to a table that lies so"
    said = capsys.readouterr().err
    assert ("which is slower: there is none" in said) == (gpu == "fallback")
    assert said.count("\n") == (gpu == "fallback"), "it is said once"


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_a_branch_is_added_to_the_stream_before_it_is_rounded(gpu, dtype):
    """The second stream leaves of the sum only what rounding would cut off."""
    x, w = numbers(2, 5, 6, dtype=dtype), numbers(6, 8, dtype=dtype)
    given = on_device(x), on_device(w)
    y, _ = linear_forward(*given)
    for stream in (numbers(2, 5, 8, dtype=dtype, seed=9), -y.get()):
        before = stream.copy()
        total, cache = linear_forward_onto(on_device(stream), *given)
        want = stream.astype(np.float64) + exact(x, w)
        off = np.abs(total.get().astype(np.float64) - want).max()
        assert total.dtype == dtype and np.array_equal(stream, before)
        rounding = {F32: 0.0, BF16: 2**-8, F16: 2**-11}[dtype] * np.abs(want).max()
        assert off <= 2e-6 + rounding
        assert cache[0] is given[0] and cache[1] is given[1]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("lies", ["as w", "turned", "with gaps"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_is_added_where_it_is_made(gpu, monkeypatch, dtype, lies, tied):
    """In place, but where the array has gaps: there the text adds."""
    x, dy = numbers(2, 5, 6, dtype=dtype), numbers(2, 5, 8, dtype=dtype, seed=5)
    w = numbers(8, 6, dtype=dtype).T if tied else numbers(6, 8, dtype=dtype)
    table, wide = numbers(8, 6, seed=7), numbers(6, 9, seed=7)
    g = {"as w": wide[:, :8].copy(), "turned": table.T, "with gaps": wide[:, :8]}[lies]
    before = g.astype(np.float64)
    given = on_device(dy), tuple(map(on_device, (x, w)))
    added, real = [], linear.multiply

    def noting(out, a, b, add=None):
        added.append(add is not None)
        real(out, a, b, add)

    monkeypatch.setattr(linear, "multiply", noting)
    dx = linear_backward_into(*given, on_device(g))
    assert added == [False, lies != "with gaps"]
    alone, dw = linear_backward(*given)
    assert np.array_equal(dx.get(), alone.get())
    assert np.abs(g - (before + dw.get())).max() < 2e-6
    assert np.array_equal(wide[:, 8:], numbers(6, 9, seed=7)[:, 8:])


def test_faulty_shapes_are_refused_by_the_text(gpu):
    x, w = on_device(numbers(2, 6)), on_device(numbers(5, 8))
    with pytest.raises(ValueError, match="linear: w has shape"):
        linear_forward(x, w)
    w = on_device(numbers(6, 8))
    with pytest.raises(ValueError):
        linear_forward_onto(on_device(numbers(2, 9)), x, w)
    _, cache = linear_forward(x, w)
    with pytest.raises(ValueError):
        linear_backward(on_device(numbers(3, 8)), cache)
    g = on_device(np.zeros((8, 6), F32))
    with pytest.raises(ValueError):
        linear_backward_into(on_device(numbers(2, 8)), cache, g)
    assert not g.get().any()


def test_structures_are_as_large_as_in_the_header():
    assert ctypes.sizeof(cublaslt.Algorithm) == 64
    assert ctypes.sizeof(cublaslt.Guess) == 64 + 8 + 4 + 4 + 16


@pytest.fixture(scope="module")
def header():
    """NVIDIA's own declarations, all in one text."""
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-pathfinder is not installed")
    folder = pathfinder.find_nvidia_header_directory("cublas")
    if folder is None:
        pytest.skip("cublasLt.h is not installed: pip install nvidia-cublas")
    names = "cublasLt.h", "cublas_api.h", "library_types.h"
    text = "\n".join((Path(folder) / name).read_text("utf-8") for name in names)
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)


def test_numbers_are_those_of_the_header(header):
    found = {name: int(n, 0) for name, n in re.findall(r"(\w+)\s*=\s*(0x[\dA-F]+|\d+)", header)}
    exact, tf32, half = (cublaslt.COMPUTE[kind] for kind in ("exact", "tf32", "half"))
    preference = "CUBLASLT_MATMUL_PREF_"
    used = {
        "CUDA_R_32F": cublaslt.DATA_TYPES["float32"],
        "CUDA_R_16F": cublaslt.DATA_TYPES["float16"],
        "CUDA_R_16BF": cublaslt.DATA_TYPES["bfloat16"],
        "CUBLAS_COMPUTE_32F_PEDANTIC": exact[0],
        "CUBLAS_COMPUTE_32F": exact[1],
        "CUBLAS_COMPUTE_32F_FAST_TF32": tf32[0],
        "CUBLASLT_MATMUL_DESC_TRANSA": cublaslt.TURNED_A,
        "CUBLASLT_MATMUL_DESC_TRANSB": cublaslt.TURNED_B,
        "CUBLAS_OP_T": cublaslt.TURN,
        f"{preference}MAX_WORKSPACE_BYTES": cublaslt.MAX_WORKSPACE,
        f"{preference}REDUCTION_SCHEME_MASK": cublaslt.REDUCTION_SCHEMES,
        **{f"{preference}MIN_ALIGNMENT_{x}_BYTES": n for x, n in zip("ABCD", cublaslt.ALIGNMENTS)},
        "CUBLAS_STATUS_NOT_SUPPORTED": cublaslt.UNSUPPORTED,
        "CUBLASLT_REDUCTION_SCHEME_NONE": cublaslt.IN_ONE,
        "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE": cublaslt.IN_ORDER,
    }
    assert used == {name: found.get(name) for name in used}
    assert half == (exact[1],) and found["CUDA_R_32F"] == cublaslt.FLOAT32


def test_structures_are_those_of_the_header(header):
    def fields(name):
        body = re.search(r"struct \{([^}]*)\} " + name, header).group(1)
        return [" ".join(field.split()) for field in body.split(";") if field.strip()]

    assert fields("cublasLtMatmulAlgo_t") == ["uint64_t data[8]"]
    assert fields("cublasLtMatmulHeuristicResult_t") == [
        "cublasLtMatmulAlgo_t algo", "size_t workspaceSize", "cublasStatus_t state",
        "float wavesCount", "int reserved[4]",
    ]  # fmt: skip


def test_functions_take_what_the_header_says(header):
    pointers = r"\*|\[\]|cudaStream_t|cublasLt(Handle|MatmulDesc|MatrixLayout|MatmulPreference)_t"
    for name, given in cublaslt.SIGNATURES.items():
        parameters = re.search(rf"\b{name}\(([^)]*)\)", header).group(1).split(",")
        sizes = [
            8 if re.search(rf"{pointers}|size_t|int64_t", parameter) else 4
            for parameter in parameters
            if parameter.strip() != "void"
        ]
        assert [ctypes.sizeof(kind) for kind in given] == sizes, name


def test_the_library_takes_these_descriptions():
    """Its descriptions are made without a GPU: wrong attributes or sizes would be refused."""
    try:
        dll = cublaslt.load_dll()
    except OSError as error:
        pytest.skip(f"cublasLt is not installed: {error}")
    library = CublasLt.__new__(CublasLt)
    library.dll, library.handle = dll, None
    for name, arguments in cublaslt.SIGNATURES.items():
        getattr(dll, name).argtypes = arguments
    dll.cublasLtGetStatusString.restype = ctypes.c_char_p
    for dtype, out_dtype in ((F32, F32), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32)):
        a, b = numbers(7, 4, dtype=dtype).T, numbers(7, 8, dtype=dtype)
        shape = describe(*map(on_device, (np.empty((4, 8), out_dtype), a, b)))
        for compute in cublaslt.COMPUTE[shape.compute]:
            operation, layouts = library._describe(shape, compute)
            with pytest.raises(CublasLtError, match="AlgoGetHeuristic failed"):  # for want of a GPU
                library._guesses(shape, operation, layouts)
            read = ctypes.c_int(-1)
            dll.cublasLtMatmulDescGetAttribute(
                operation, 4, ctypes.byref(read), ctypes.c_size_t(4), None
            )
            assert read.value == 1
            values = []
            for attribute, kind in ((0, ctypes.c_int), (2, ctypes.c_uint64), (3, ctypes.c_uint64),
                                    (4, ctypes.c_int64)):  # fmt: skip
                value, written = kind(), ctypes.c_size_t()
                status = dll.cublasLtMatrixLayoutGetAttribute(
                    layouts[1], attribute, ctypes.byref(value),
                    ctypes.c_size_t(ctypes.sizeof(value)), ctypes.byref(written),
                )  # fmt: skip
                assert status == 0
                values.append(value.value)
            assert values == [cublaslt.DATA_TYPES[dtype.name], 4, 7, 4]
