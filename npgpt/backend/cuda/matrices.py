"""How matrices lie in memory: all that a product by cublasLt has to be told of them."""

from typing import NamedTuple

DTYPES = ("float32", "float16", "bfloat16")


class Shape(NamedTuple):
    """All that decides which algorithm is the best: equal shapes share a Plan.

    Attributes: m, n, k of out (m, n) = a (m, k) @ b (k, n); turned_a, turned_b, whether a and b
                are views that are turned; lead_a, lead_b, lead_out, the numbers from one row in
                memory to the next; dtype of a and b; out_dtype; compute, "exact", "tf32" or "half";
                adds, whether another array is added; alignments in bytes, of b, a, what is added,
                and out.
    """

    m: int
    n: int
    k: int
    turned_a: bool
    turned_b: bool
    lead_a: int
    lead_b: int
    lead_out: int
    dtype: str
    out_dtype: str
    compute: str
    adds: bool
    alignments: tuple


def describe(out, a, b, add=None, tf32=False):
    """The Shape of out = a @ b, or of add + a @ b.

    Args:    out, a, b, add and tf32 as for CublasLt.multiply.
    Returns: a Shape, or None if one of them is not a matrix that the library could read.
    """
    m, n, k = *out.shape, a.shape[1]
    places = [lie(x) for x in (a, b, out)]
    if None in places or places[2][0] or 0 in (m, n, k):
        return None
    if a.dtype != b.dtype or (add is not None and (add.dtype != out.dtype or lie(add) != lie(out))):
        return None
    dtype, out_dtype = a.dtype.name, out.dtype.name
    if dtype not in DTYPES or out_dtype not in {dtype, "float32"}:
        return None
    (turned_a, lead_a), (turned_b, lead_b), (_, lead_out) = places
    compute = "half" if dtype != "float32" else "tf32" if tf32 else "exact"
    alignments = tuple(alignment(x) for x in (b, a, out if add is None else add, out))
    return Shape(
        m, n, k, turned_a, turned_b, lead_a, lead_b, lead_out, dtype, out_dtype, compute,
        add is not None, alignments,
    )  # fmt: skip


def lie(x):
    """How a matrix lies in memory: whether it is turned, and from one row to the next.

    Args:    x (R, C).
    Returns: (turned, numbers between the beginnings of two rows), or None if it has gaps.
    """
    (R, C), size = x.shape, x.dtype.itemsize
    down, right = (stride // size for stride in x.strides)
    if right == 1 or C == 1:
        lead = down if R > 1 else max(C, 1)
        return (False, lead) if lead >= C else None
    if down == 1 or R == 1:
        lead = right if C > 1 else max(R, 1)
        return (True, lead) if lead >= R else None
    return None


def alignment(x):
    """The largest power of two, at most 256, at whose multiples all rows of x begin."""
    lead = lie(x)[1] * x.dtype.itemsize
    return min(256, (x.data.ptr | lead) & -(x.data.ptr | lead))
