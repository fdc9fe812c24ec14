"""The matrix product of the linear layers, at the edges of its blocks, and where it is added."""

import importlib.util
import itertools

import numpy as np
import pytest

from npgpt.block import affine_backward_into, linear_backward_into
from npgpt.layers import affine_backward, embedding_backward, linear_backward
from npgpt.model import embedding_backward_into

if importlib.util.find_spec("numba"):
    from npgpt.backend.cpu.matmul import COLUMNS, HEIGHT, LINE, ROWS, STEPS, WIDTH, multiply_large

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("numba"), reason="Numba is not installed"
)


def shapes():
    """(M, N, K) on both sides of every block's edge, one at a time and some together."""
    M, N, K = (1, ROWS, HEIGHT + 5), (1, COLUMNS, 2 * WIDTH + 3), (1, LINE + 1, STEPS + 7)
    return list(itertools.product(M, N, K))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("a_turned, b_turned", list(itertools.product([False, True], repeat=2)))
def test_product_at_the_edges_of_blocks(a_turned, b_turned, add):
    rng = np.random.default_rng(1)
    for M, N, K in shapes():
        a = rng.standard_normal((K, M) if a_turned else (M, K), np.float32)
        b = rng.standard_normal((N, K) if b_turned else (K, N), np.float32)
        before = rng.standard_normal((M, N), np.float32) if add else np.full((M, N), np.nan)
        c = before.astype(np.float32)
        multiply_large(c, a, b, a_turned, b_turned, add)
        left, right = (
            z.astype(np.float64) for z in (a.T if a_turned else a, b.T if b_turned else b)
        )
        truth = left @ right + (before if add else 0.0)
        # A float32 sum of K products loses at most K roundings of the sum of their sizes.
        sizes = np.abs(left) @ np.abs(right) + (np.abs(before) if add else 0.0)
        assert np.all(np.abs(c - truth) <= (K + 1) * 2.0**-24 * sizes), (M, N, K)


def test_a_row_has_the_same_bits_in_any_company():
    """So a batch may be cut into pieces anywhere."""
    rng = np.random.default_rng(2)
    a = rng.standard_normal((HEIGHT + 5, STEPS + 7), np.float32)
    b = rng.standard_normal((STEPS + 7, COLUMNS + 3), np.float32)
    whole, some = (np.empty((rows, COLUMNS + 3), np.float32) for rows in (HEIGHT + 5, 7))
    multiply_large(whole, a, b, False, False, False)
    multiply_large(some, a[20:27], b, False, False, False)
    assert np.array_equal(whole[20:27], some)


@pytest.mark.parametrize("lies", ["as w", "turned"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_is_added_to_where_it_is_made(tied, lies):
    """With not a bit of difference; an order of memory that the kernel refuses goes to the text."""
    x, dy, g = numbers(50, 24), numbers(50, 70), numbers(24, 70)
    cache = x, numbers(70, 24).T if tied else numbers(24, 70)
    g = np.asfortranarray(g) if tied == (lies == "as w") else g
    dx, dw = linear_backward(dy, cache)
    want = g + dw
    assert np.array_equal(linear_backward_into(dy, cache, g), dx)
    assert np.array_equal(g, want)


def test_a_bias_s_gradient_is_added_to_too():
    """As exactly as one sum in float64 rounds: its rows are added up in groups."""
    x, dy, g, gb = numbers(3, 50, 24), numbers(3, 50, 70), numbers(24, 70), numbers(70)
    cache = x, numbers(24, 70)
    dx, dw, db = affine_backward.text(dy.astype(np.float64), cache)
    want, want_b = g + dw, gb + db
    assert np.array_equal(affine_backward_into(dy, cache, g, gb), linear_backward(dy, cache)[0])
    assert np.max(np.abs(g - want)) < 1e-4 and np.max(np.abs(gb - want_b)) < 1e-5


def test_rows_of_an_embedding_are_added_to_where_they_are():
    ids = np.array([[3, 0, 3], [7, 3, 1]])
    dx, g = numbers(2, 3, 20), numbers(9, 20)
    want = g.astype(np.float64) + embedding_backward.text(dx.astype(np.float64), (ids, g))
    embedding_backward_into(dx, (ids, g), g)
    assert np.max(np.abs(g - want)) < 1e-6


def numbers(*shape):
    return np.random.default_rng(shape).standard_normal(shape, np.float32)
