"""The matrix product of the linear layers, at the edges of its blocks, and where it is added."""

import importlib.util
import itertools

import numpy as np
import pytest

from npgpt.block import (
    NORMS,
    affine_backward_into,
    linear_backward_into,
    linear_forward_onto,
    norm_backward_onto,
)
from npgpt.layers import affine_backward, embedding_backward, linear_backward
from npgpt.model import embedding_backward_into

if importlib.util.find_spec("numba"):
    from npgpt.backend.cpu.linear import forward_onto
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


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(40, 24, 70), (97, 1027, 64), (64, 5, 1)])
def test_a_branch_is_added_where_it_ends(shape, turned):
    """past + x @ w in one pass; what went past stays as it was, for others read it."""
    M, K, N = shape
    past, x, w = numbers(2, M, N), numbers(2, M, K), numbers(N, K).T if turned else numbers(K, N)
    before = past.copy()
    assert forward_onto(past, x, w) is not NotImplemented
    y, cache = linear_forward_onto(past, x, w)
    truth = past.astype(np.float64) + x.astype(np.float64) @ w.astype(np.float64)
    sizes = np.abs(past) + np.abs(x).astype(np.float64) @ np.abs(w)
    assert np.all(np.abs(y - truth) <= (K + 2) * 2.0**-24 * sizes)
    assert cache == (x, w) and np.array_equal(past, before)
    with_gaps = np.repeat(past, 2, axis=2)[..., ::2]
    assert np.array_equal(linear_forward_onto(with_gaps, x, w)[0], y)


def test_a_branch_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        linear_forward_onto(numbers(2, 40, 8), numbers(2, 40, 5), numbers(4, 8))
    assert forward_onto(numbers(2, 40, 7), numbers(2, 40, 5), numbers(5, 8)) is NotImplemented


@pytest.mark.parametrize("norm, learned", [("rmsnorm", 1), ("layernorm", 2)])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 37, 48)])
def test_a_norm_adds_what_went_past_its_branch(norm, learned, shape):
    past, x, dy, *gains = (numbers(*s) for s in [shape] * 3 + [shape[-1:]] * learned)
    before = past.copy()
    _, cache = NORMS[norm][0](x, *gains)
    _, exact = NORMS[norm][0](*(z.astype(np.float64) for z in (x, *gains)))
    fast = norm_backward_onto(past, dy, cache, norm)
    plain = norm_backward_onto.text(past, dy, cache, norm)
    truth = norm_backward_onto(past.astype(np.float64), dy.astype(np.float64), exact, norm)
    for z, of_text, right in zip(fast, plain, truth):
        scale = np.abs(right).max()
        assert np.abs(z - right).max() <= 2.0 * np.abs(of_text - right).max() + 1e-6 * scale
    assert np.array_equal(past, before)
