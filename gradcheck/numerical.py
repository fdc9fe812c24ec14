"""Two witnesses for a derivative, neither of which knows the derivation.

A backward claims: "if you move the input z a little, the loss L moves by ⟨dz, the move⟩."
That claim can be tested by doing it. Both witnesses below move one number of the input,
run only the forward, and watch. They fail in different ways, so when both agree with the
hand-written backward, it's hard to be wrong.

The loss
    A layer has many outputs and no loss. So we make one, L = Σ dy · y, with random
    weights dy. Then ∂L/∂y = dy, which is just what backward is given. Why random, and not
    all ones? Because a sum can hide things: the outputs of a softmax add up to 1 whatever its
    inputs are, so under dy = 1 its true gradient is 0, and a backward that returns zeros, or
    anything times (dy − Σ p · dy), looks right.

The first witness: central differences
    Walk a step h to either side and take the slope between. Taylor's series, twice:
        f(z + h) = f + h f′ + h²/2 f″ + h³/6 f‴ + …
        f(z − h) = f − h f′ + h²/2 f″ − h³/6 f‴ + …
    Subtract: the even terms go, and
        (f(z + h) − f(z − h)) / 2h  =  f′ + h²/6 · f‴ + …
    So a small h is good. But the two values of f agree in most of their digits, and each is
    rounded to eps = 2.2e-16 of its size: their difference is wrong by about eps · f, and the
    slope by eps · f / h. So a small h is bad. The sum of both errors,
        h²/6 · f‴  +  eps · f / h
    is least where its derivative is zero: h³ = 3 eps · f / f‴. If z has size s, and f changes
    its ways over distances of about s, then f‴ ≈ f / s³ and
        h = (3 eps)^⅓ · s = 8.7e-6 · s
    which leaves an error near eps^⅔ = 4e-11. That's the best this witness can do: of sixteen
    digits it sees ten or eleven. The step must be relative to s: with h = 1e-5 on inputs of
    size 1e-2, it would be a hundred times too long, and h² ten thousand. Where the layer
    changes its ways over a small part of s only (a softmax of logits around 800 does so
    over distances of 1), the case says so, and s is made smaller by that part.

The second witness: the complex step
    Walk sideways instead, out of the real line:
        f(z + ih) = f + ih f′ − h²/2 f″ − ih³/6 f‴ + …
    The real part is f. The imaginary part is h f′, but for h³: so
        f′ = Im f(z + ih) / h
    Nothing is subtracted. The slope doesn't have to be found in the last digits of two
    large numbers: it travels in a float of its own, from the start. So h may be as small as
    we like, and with h = 1e-30 the error h²/6 · f‴ is far below what a float can show.
    What remains is the forward's own rounding: fifteen digits. The price: the forward must
    be analytic (no |z|, and a maximum taken of the real part), and must run in complex128.

One number for all: a direction
    Both witnesses run the forward for every number of the input. A layer of real size has too
    many. So ask one question about all of them together: move every input along one random
    direction d. Then L changes at the rate Σ ⟨dz, d⟩, one number, from one forward call.
    It tells that something is wrong, not where; and a random direction misses a fault
    only if the fault is orthogonal to it, which chance does not bring about.

How far apart is too far?
    The error is relative to the largest entry of the numerical gradient, tensor by tensor.
    Not absolute: in a small random model most gradients are below 0.02, so a tolerance of 0.02
    would pass a backward that returns zeros. Not entry by entry: an entry may be
    tiny because large terms cancelled in it, and then it's all rounding.

    A gradient that is truly zero has no largest entry. With one token, attention's softmax
    has one weight, which is 1 whatever q and k are: dq = dk = 0, and what the witnesses
    measure is rounding. Such gradients are declared, one by one, in the table of cases; no other
    gets an excuse. For them, and only them, error is measured against the size that a
    gradient would have if the output followed the input in proportion: Σ |dy · y| / max |z|.
    Terms of that size must cancel to rounding, in the witness as well as in the backward.

Sources: Squire & Trapp 1998, "Using Complex Variables to Estimate Derivatives of Real
    Functions", SIAM Review 40(1); the idea: Lyness & Moler 1967. The direction: Chainer's
    gradient_check.
"""

from dataclasses import dataclass, field

import numpy as np

EPS = float(np.finfo(np.float64).eps)
CENTRAL_STEP = (3 * EPS) ** (1 / 3)  # 8.7e-6, in units of the input's largest entry
COMPLEX_STEP = 1e-30

# The largest error that passes. Measured: central differences reach 1e-8 where a layer bends
# sharply, the complex step 1e-13 where large numbers cancel, and 1e-15 elsewhere.
CENTRAL_BAR = 1e-6
COMPLEX_BAR = 1e-12
DIRECTION_BAR = 1e-12


def central_difference(f, z, dy, reach=1.0):
    """Measure ∂L/∂z, L = Σ dy · f(z), by a step to either side in each entry of z.

    Args:    f, a function from z to a vector; z, any real array; dy, as long as f(z); reach,
             over which part of z's size f changes its ways.
    Returns: dz, the shape of z, right to about ten digits.
    """
    h = CENTRAL_STEP * reach * (np.max(np.abs(z)) or 1.0)
    dz = np.empty_like(z)
    for i in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[i] += h
        down[i] -= h
        # Outputs that z[i] doesn't reach cancel exactly if we subtract before we sum. And
        # z + h was rounded: divide by the distance that was really walked.
        dz[i] = np.sum(dy * (f(up) - f(down))) / (up[i] - down[i])
    return dz


def complex_step(f, z, dy):
    """Measure ∂L/∂z, L = Σ dy · f(z), by an imaginary step in each entry of z.

    Args:    f, an analytic function from z to a vector, which runs in complex128; z, any real
             array; dy, as long as f(z).
    Returns: dz, the shape of z, right to about fifteen digits.
    """
    dz = np.empty_like(z)
    for i in np.ndindex(z.shape):
        aside = z.astype(np.complex128)
        aside[i] += 1j * COMPLEX_STEP
        dz[i] = np.sum(dy * f(aside).imag) / COMPLEX_STEP
    return dz


def random_direction(rng, arrays):
    """Draw one unit vector over several arrays together, as a dict of their names and shapes."""
    d = {name: rng.standard_normal(z.shape) for name, z in arrays.items()}
    length = np.sqrt(sum(np.sum(part * part) for part in d.values()))
    return {name: part / length for name, part in d.items()}


def directional_derivative(f, arrays, direction, dy):
    """Measure Σ ⟨∂L/∂z, d⟩ over all arrays, by one imaginary step of all of them.

    Args:    f, a function from a dict of arrays to a vector; arrays and direction, dicts
             with the same names and shapes; dy, as long as f's vector.
    Returns: a float.
    """
    aside = {name: z + 1j * COMPLEX_STEP * direction[name] for name, z in arrays.items()}
    return float(np.sum(dy * f(aside).imag) / COMPLEX_STEP)


def relative_error(dz, numerical, size_if_zero=None):
    """The largest difference, in units of the numerical gradient's largest entry.

    Args:    dz, the gradient to judge; numerical, the witness's, of the same shape;
             size_if_zero, only for a gradient that is declared to be zero: the unit to use,
             and then the witness, too, must be zero in it.
    Returns: a float; inf if anything is not a number, or if there is a difference from 0.
    """
    unit, gap = np.max(np.abs(numerical)), np.max(np.abs(dz - numerical))
    if size_if_zero is not None:
        gap, unit = max(gap, unit), size_if_zero
    if gap == 0.0:
        return 0.0
    error = float(gap / unit) if unit > 0.0 else np.inf
    return error if np.isfinite(error) else np.inf


@dataclass(frozen=True)
class Testimony:
    """What the witnesses measured of one case: the forward alone was run.

    Attributes: outputs, y at the case's inputs and a step beside them, as one vector; size,
    Σ |dy · y|; central, complex, dicts from argument to gradient (empty if the case is too
    large for it); direction, and slope along it.
    """

    outputs: np.ndarray
    size: float
    central: dict
    complex: dict
    direction: dict
    slope: float


@dataclass(frozen=True)
class Line:
    """The verdict on one gradient of one case."""

    argument: str
    shape: tuple
    central: float
    complex: float

    @property
    def ok(self):
        return self.central <= CENTRAL_BAR and self.complex <= COMPLEX_BAR


@dataclass(frozen=True)
class Report:
    """The verdicts on one case: a line for each gradient, and the error along a direction."""

    case: object
    direction: float
    lines: list = field(default_factory=list)

    @property
    def ok(self):
        return self.direction <= DIRECTION_BAR and all(line.ok for line in self.lines)

    def seen_by(self):
        """The names of the witnesses that disagree with the backward: none, if all is well."""
        seen = {
            "central": any(line.central > CENTRAL_BAR for line in self.lines),
            "complex": any(line.complex > COMPLEX_BAR for line in self.lines),
            "directional": self.direction > DIRECTION_BAR,
        }
        return [name for name, disagrees in seen.items() if disagrees]

    def __str__(self):
        head = f"{self.case.layer}, {self.case.name}: {'pass' if self.ok else 'FAIL'}"
        lines = [
            f"    d{line.argument} {line.shape}: central {line.central:.1e}, "
            f"complex {line.complex:.1e}, {'pass' if line.ok else 'FAIL'}"
            for line in self.lines
        ]
        return "\n".join([head, *lines, f"    along a random direction: {self.direction:.1e}"])


def flatten(y):
    """All outputs of a layer (one array, a scalar, or a tuple of arrays) as one vector."""
    parts = y if isinstance(y, tuple) else (y,)
    return np.concatenate([np.ravel(part) for part in parts])


def measure(case):
    """Let the witnesses measure a case; the backward is never called.

    Args:    case, a row of cases.py.
    Returns: a Testimony, which can be held against any number of backwards.
    """
    inputs = case.inputs(np.float64)
    arrays = {name: inputs[name] for name in case.gradients}

    def outputs(changed):
        y, _ = case.forward(**{**inputs, **changed})
        return flatten(y)

    y, _ = case.forward(**inputs)
    weights = flatten(case.upstream(y))
    central, complex_ = {}, {}
    for name, z in arrays.items() if case.entrywise else ():
        f = lambda z, name=name: outputs({name: z})  # noqa: E731
        central[name] = central_difference(f, z, weights, case.reach)
        complex_[name] = complex_step(f, z, weights)
    direction = random_direction(case.rng("direction"), arrays)
    slope = directional_derivative(outputs, arrays, direction, weights)
    size = float(np.sum(np.abs(weights * flatten(y))))
    return Testimony(around(case, direction), size, central, complex_, direction, slope)


def around(case, direction):
    """A case's outputs at its inputs and a step beside them, as one vector.

    Two forwards that agree to the bit in both places are one and the same as far as any witness
    can tell: what was measured of the one holds for the other.
    """
    inputs = case.inputs(np.float64)
    beside = {**inputs, **{name: inputs[name] + 1e-3 * d for name, d in direction.items()}}
    return np.concatenate([flatten(case.forward(**z)[0]) for z in (inputs, beside)])


def check(case, testimony=None):
    """Hold a case's backward against the witnesses.

    Args:    case, a row of cases.py, perhaps with another backward put in its place;
             testimony, of this case's forward, if it was taken before.
    Returns: a Report.
    Raises:  ValueError if the backward returns another number of gradients than the case
             names, or one of another shape.
    """
    t = testimony or measure(case)
    y, cache = case.forward(**case.inputs(np.float64))
    grads = case.gradients_of(case.upstream(y), cache)
    inputs = case.inputs(np.float64)  # drawn anew: a bad backward may have written into its own
    for name, dz in grads.items():
        if np.shape(dz) != inputs[name].shape:
            raise ValueError(
                f"{case.layer}: d{name} has shape {np.shape(dz)}, "
                f"but {name} has {inputs[name].shape}, and a gradient has the shape of its input"
            )
    lines = []
    for name in t.central:
        z = inputs[name]
        size = t.size / (np.max(np.abs(z)) or 1.0) if name in case.zero else None
        central = relative_error(grads[name], t.central[name], size)
        complex_ = relative_error(grads[name], t.complex[name], size)
        lines.append(Line(name, z.shape, central, complex_))
    # The terms ⟨dz, d⟩ can cancel to something small, and their rounding can't: so the unit is
    # the sum of their sizes.
    terms = np.concatenate([np.ravel(grads[name] * t.direction[name]) for name in grads])
    unit = max(abs(t.slope), float(np.sum(np.abs(terms))))
    gap = abs(t.slope - float(np.sum(terms)))
    direction = 0.0 if gap == 0.0 else gap / unit
    return Report(case, direction if np.isfinite(direction) else np.inf, lines)
