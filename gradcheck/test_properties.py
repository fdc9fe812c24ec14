"""Purity and dtype over the whole table, the other properties, and the errors for wrong shapes."""

import re

import numpy as np
import pytest

from gradcheck.cases import CASES
from gradcheck.properties import OF_EVERY_ROW, PROPERTIES
from npgpt.layers import (
    attention_forward,
    cross_entropy_forward,
    embedding_forward,
    linear_forward,
    rmsnorm_forward,
    rope_forward,
    rope_table,
    swiglu_forward,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layer}: {case.name}")
@pytest.mark.parametrize("name", OF_EVERY_ROW)
def test_every_row_is(name, case):
    assert OF_EVERY_ROW[name](case) is None


@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: f"{prop.layer}: {prop.name}")
def test_holds(prop):
    assert prop.run() is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layer}: {case.name}")
def test_float32_and_float64_agree(case):
    """The same text in half the digits gives the same gradients, to float32's rounding."""
    grads = []
    for dtype in (np.float32, np.float64):
        y, cache = case.forward(**case.inputs(dtype))
        grads.append(case.gradients_of(case.upstream(y), cache))
    # Where numbers near 800 are subtracted, float32 has four digits left.
    tolerance = 3e-2 if "beyond exp" in case.name else 1e-3 if case.name == "large scores" else 1e-4
    for name, dz in grads[1].items():
        if name not in case.zero:
            gap = np.max(np.abs(grads[0][name] - dz))
            assert gap <= tolerance * np.max(np.abs(dz)), name


def z(*shape):
    return np.zeros(shape)


def ids(*shape):
    return np.zeros(shape, dtype=np.int64)


# What goes in, the name of the argument to blame, and its shape and the other's.
WRONG = {
    "linear, other channels": (linear_forward, (z(2, 3), z(4, 5)), "w", (4, 5), (2, 3)),
    "linear, no matrix": (linear_forward, (z(2, 3), z(3)), "w", (3,), (2, 3)),
    "embedding, no matrix": (embedding_forward, (ids(2, 3), z(4)), "w", (4,), (2, 3)),
    "embedding, no ids": (embedding_forward, (z(2, 3), z(4, 5)), "ids", (2, 3), (4, 5)),
    "rmsnorm, other channels": (rmsnorm_forward, (z(2, 3), z(4)), "w", (4,), (2, 3)),
    "rmsnorm, gain per row": (rmsnorm_forward, (z(3, 3), z(3, 3)), "w", (3, 3), (3, 3)),
    "rope, short cos": (rope_forward, (z(1, 3, 2, 4), z(2, 2), z(3, 2)), "cos", (2, 2),
                        (1, 3, 2, 4)),
    "rope, wide sin": (rope_forward, (z(1, 3, 2, 4), z(3, 2), z(3, 4)), "sin", (3, 4),
                       (1, 3, 2, 4)),
    "rope, odd D": (rope_forward, (z(1, 3, 2, 5), z(3, 2), z(3, 2)), "cos", (3, 2), (1, 3, 2, 5)),
    "attention, other batch": (attention_forward, (z(1, 3, 2, 4), z(2, 3, 2, 4), z(2, 3, 2, 4)),
                               "k", (2, 3, 2, 4), (1, 3, 2, 4)),
    "attention, short past": (attention_forward, (z(1, 3, 2, 4), z(1, 2, 2, 4), z(1, 2, 2, 4)),
                              "k", (1, 2, 2, 4), (1, 3, 2, 4)),
    "attention, other D": (attention_forward, (z(1, 3, 2, 4), z(1, 3, 2, 5), z(1, 3, 2, 5)),
                           "k", (1, 3, 2, 5), (1, 3, 2, 4)),
    "attention, 2 heads in 3": (attention_forward, (z(1, 3, 3, 4), z(1, 3, 2, 4), z(1, 3, 2, 4)),
                                "k", (1, 3, 2, 4), (1, 3, 3, 4)),
    "attention, other v": (attention_forward, (z(1, 3, 2, 4), z(1, 3, 2, 4), z(1, 3, 1, 4)),
                           "v", (1, 3, 1, 4), (1, 3, 2, 4)),
    "loss, targets too few": (cross_entropy_forward, (z(2, 3, 5), ids(2)), "targets", (2,),
                              (2, 3, 5)),
    "loss, targets as logits": (cross_entropy_forward, (z(2, 3), ids(2, 3)), "targets", (2, 3),
                                (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_named(name):
    """The message blames the argument, and has its shape and the shape that it must fit."""
    function, args, argument, shape, other = WRONG[name]
    with pytest.raises(ValueError) as error:
        function(*args)
    text = str(error.value)
    assert re.search(rf"\b{argument}\b", text.split("but")[0])
    assert str(shape) in text and str(other) in text


def test_halves_need_an_even_number():
    with pytest.raises(ValueError, match=r"\(2, 3\).*2F"):
        swiglu_forward(z(2, 3))
    with pytest.raises(ValueError, match="head_dim is 5"):
        rope_table(0, 3, 5, 100.0, like=z(1))
