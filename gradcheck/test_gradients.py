"""Every row of the table against both witnesses; and the witnesses themselves."""

import numpy as np
import pytest

import npgpt.layers
from gradcheck.cases import CASES, LAYERS, cases_of
from gradcheck.numerical import (
    CENTRAL_BAR,
    COMPLEX_BAR,
    DIRECTION_BAR,
    Line,
    central_difference,
    check,
    complex_step,
    directional_derivative,
    measure,
    random_direction,
    relative_error,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layer}: {case.name}")
def test_backward_agrees_with_the_witnesses(case):
    report = check(case)
    assert report.ok, str(report)
    assert report.seen_by() == []
    assert len(report.lines) == (len(case.gradients) if case.entrywise else 0)


def test_bars_are_what_we_say():
    assert (CENTRAL_BAR, COMPLEX_BAR, DIRECTION_BAR) == (1e-6, 1e-12, 1e-12)


# The table


def test_every_layer_of_the_lecture_has_rows():
    """A layer that is exported has a row, or nobody would notice that it's not checked."""
    checked = {function for case in CASES for function in (case.forward, case.backward)}
    for name in npgpt.layers.__all__:
        if name.endswith(("_forward", "_backward")):
            assert getattr(npgpt.layers, name) in checked, f"{name} has no row in cases.py"


def test_rows_have_names_of_their_own():
    names = [(case.layer, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.note for case in CASES)


def test_inputs_are_the_same_at_every_call_but_not_the_same_arrays():
    for case in CASES:
        first, second = case.inputs(), case.inputs()
        assert list(first) == list(second)
        for name, z in first.items():
            if isinstance(z, np.ndarray):
                assert np.array_equal(z, second[name])
                assert not np.shares_memory(z, second[name])


def test_inputs_come_in_the_wanted_dtype():
    for case in CASES:
        for dtype in (np.float32, np.float64, np.complex128):
            inputs = case.inputs(dtype)
            for name in case.gradients:
                assert inputs[name].dtype == dtype
            for name, z in inputs.items():  # ids and targets stay whole numbers
                if isinstance(z, np.ndarray):
                    assert z.dtype == dtype or z.dtype.kind == "i", name


def test_upstream_is_random_and_never_ones():
    for case in CASES:
        y, _ = case.forward(**case.inputs())
        for dy in case.upstream(y) if isinstance(y, tuple) else (case.upstream(y),):
            assert not np.any(np.equal(dy, 1.0))
            assert np.size(dy) == 1 or np.std(dy) > 0.1


def test_every_zero_is_really_declared():
    """No gradient but a declared one is small enough to be nothing but rounding."""
    for case in CASES:
        testimony, inputs = measure(case), case.inputs()
        for name, dz in testimony.complex.items():
            size = testimony.size / np.max(np.abs(inputs[name]))
            is_zero = np.max(np.abs(dz)) <= 1e-13 * size
            assert is_zero == (name in case.zero), f"{case.layer}, {case.name}: d{name}"


def test_an_unknown_layer_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no layer 'rmsnrom'.*rmsnorm"):
        cases_of("rmsnrom")
    assert sum(len(cases_of(layer)) for layer in LAYERS) == len(CASES)


# The witnesses


def test_both_witnesses_know_the_sine():
    z = np.array([[0.3, -1.2, 2.0]])
    dy = np.array([1.5, -0.5, 2.0])
    true = dy * np.cos(z)

    def sine(z):
        return np.sin(z).ravel()

    assert relative_error(central_difference(sine, z, dy), true) < 1e-9
    assert relative_error(complex_step(sine, z, dy), true) < 1e-15


def test_the_complex_step_sees_what_central_differences_cannot():
    """A backward that is wrong in the ninth digit: one witness passes it, the other doesn't."""
    z, dy = np.array([0.7]), np.array([1.0])
    wrong = np.exp(z) * (1.0 + 1e-9)
    assert relative_error(wrong, central_difference(np.exp, z, dy)) < CENTRAL_BAR
    assert relative_error(wrong, complex_step(np.exp, z, dy)) > COMPLEX_BAR


def test_the_central_step_follows_the_inputs_size():
    """sin(z/s) on inputs of size s is equally well measured, whatever s is."""
    for s in (1e-6, 1e-2, 1.0, 1e4):
        z = s * np.array([0.5, -1.0])
        slope = central_difference(lambda z, s=s: np.sin(z / s), z, np.ones(2))
        assert relative_error(slope, np.cos(z / s) / s) < 1e-9


def test_the_step_chosen_is_near_the_best():
    """The derivation's h beats steps a hundred times longer and shorter."""
    from gradcheck.numerical import CENTRAL_STEP

    z = np.linspace(0.5, 2.0, 50)

    def error(h):
        return np.max(np.abs((np.exp(z + h) - np.exp(z - h)) / (2 * h) - np.exp(z)))

    assert error(CENTRAL_STEP) < error(100 * CENTRAL_STEP) / 10
    assert error(CENTRAL_STEP) < error(CENTRAL_STEP / 100) / 10


def test_the_direction_knows_a_product():
    arrays = {"a": np.array([2.0, 3.0]), "b": np.array([5.0, 7.0])}
    d = random_direction(np.random.default_rng(0), arrays)
    assert np.isclose(sum(np.sum(part**2) for part in d.values()), 1.0)
    slope = directional_derivative(lambda z: z["a"] * z["b"], arrays, d, np.array([1.0, -1.0]))
    true = (5 * d["a"][0] + 2 * d["b"][0]) - (7 * d["a"][1] + 3 * d["b"][1])
    assert np.isclose(slope, true, rtol=1e-14)


def test_an_upstream_of_ones_would_hide_everything():
    """Why dy is random: a softmax's outputs add up to 1, so under dy = 1 the gradient is 0."""

    def softmax(z):
        return np.exp(z) / np.sum(np.exp(z))

    z = np.array([0.1, -0.4, 1.0])
    assert np.max(np.abs(complex_step(softmax, z, np.ones(3)))) < 1e-15
    assert np.max(np.abs(complex_step(softmax, z, np.array([1.0, -1.0, 0.5])))) > 0.1


# The measure


def test_error_is_relative_however_small_the_gradient_is():
    small = 1e-9 * np.array([1.0, -2.0])
    assert relative_error(np.zeros(2), small) == 1.0
    assert relative_error(1.001 * small, small) == pytest.approx(1e-3)


def test_what_is_not_a_number_is_an_infinite_error():
    good = np.array([1.0, 2.0])
    assert relative_error(np.array([np.nan, 2.0]), good) == np.inf
    assert relative_error(good, np.array([np.nan, 2.0])) == np.inf
    assert relative_error(np.array([np.inf, 2.0]), good) == np.inf
    assert not Line("x", (2,), np.nan, 0.0).ok


def test_only_a_declared_zero_is_excused():
    noise, zero = np.array([1e-17, -2e-17]), np.zeros(2)
    assert relative_error(noise, -noise) > COMPLEX_BAR  # not declared: rounding is no agreement
    assert relative_error(noise, -noise, size_if_zero=1.0) < COMPLEX_BAR
    assert relative_error(zero, zero) == 0.0
    assert relative_error(noise, zero) == np.inf
    # Declared, but not zero: in the witness, in the backward, or in both.
    real = np.array([1e-3, 0.0])
    for dz, numerical in ((zero, real), (real, zero), (real, real)):
        assert relative_error(dz, numerical, size_if_zero=1.0) > CENTRAL_BAR


# Marking somebody's backward


def test_a_case_marks_another_backward():
    def mine(dy, cache):
        x, w, rstd = cache
        return rstd * dy * w, np.sum(dy * x * rstd, axis=tuple(range(dy.ndim - 1)))

    report = check(cases_of("rmsnorm")[0].replace(backward=mine))
    assert not report.ok
    assert set(report.seen_by()) == {"central", "complex", "directional"}
    dx, dw = report.lines
    assert not dx.ok and dw.ok
    assert "dx (2, 3, 5)" in str(report) and "FAIL" in str(report)


def test_a_testimony_serves_many_backwards():
    case = cases_of("swiglu")[0]
    testimony = measure(case)
    assert check(case, testimony).ok
    assert not check(case.replace(backward=lambda dy, cache: 0 * cache[0]), testimony).ok


def test_a_gradient_of_the_wrong_shape_is_named():
    case = cases_of("rmsnorm")[0]
    with pytest.raises(ValueError, match=r"dw has shape \(2, 3, 5\), but w has \(5,\)"):
        check(case.replace(backward=lambda dy, cache: (dy, dy)))


def test_a_missing_gradient_is_named():
    case = cases_of("attention")[0]
    with pytest.raises(ValueError, match="returned 2 gradients, but what is wanted is dq, dk, dv"):
        check(case.replace(backward=lambda dy, cache: (dy, dy)))
