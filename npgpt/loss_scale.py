"""Loss scaling: how gradients fit into half precision.

Why
    A float16 number spends 5 of its 16 bits on the exponent. The smallest above 0 is 2⁻²⁴, or
    6 · 10⁻⁸; below 2⁻¹⁴ digits are lost one after the other; and above 65,504 all is infinity.
    Weights and activations live well within these bounds. Gradients do not: each of N tokens
    has only 1/N of the loss, so the logit of a word that did not come, and to which the model
    gave the probability p, has the gradient p/N (see layers/loss.py). With N = 8,192 and
    p = 1/50,000 that is 2 · 10⁻⁹. It is rounded to 0, and this word is never told to be less
    likely.
    A bfloat16 number spends 8 bits, as float32 does. It has fewer digits, and no such trouble.

Scaling
    Let backward begin with S in the place of 1, as if the loss were S · L. Every step of it
    is linear in the gradient that it is given, so every gradient is S times as large:
        ∂(S · L)/∂w = S · ∂L/∂w
    and is divided by S when it has arrived, before it is clipped. There it is a float32
    number. S is a power of two: it moves exponents only, and not a digit is changed by
    multiplying with it, nor by dividing. The layers never hear of it.

Which S?
    The larger the better, until something overflows; and what that takes changes as the
    model learns. So try. If a gradient is infinite, or no number, then S was too large: skip
    the step, which leaves the weights, AdamW's memory and its count as they are, and halve S.
    After 2,000 good steps in a row, double S. If that was too much, one step in 2,000 is lost.
    Where S is down to 1 already, a gradient that is not finite has another cause: the
    training itself has gone wrong, and ends.

Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2: the scaling, and
    skipping what overflows; Kuchaiev et al. 2018, "Mixed-Precision Training for NLP and Speech
    Recognition with OpenSeq2Seq": the halving and doubling, there called backoff.
"""

from typing import NamedTuple

from npgpt.optim import pieces

LEAST = 1.0  # of S: from here on overflow is not its fault
GROW_AFTER = 2000  # good steps


class LossScale(NamedTuple):
    """S, and how long it has done well.

    Attributes: scale, S, a power of two; good_steps, in a row, since S was last changed.
    """

    scale: float = 2.0**16
    good_steps: int = 0

    def after(self, finite):
        """The LossScale of the next step; finite, whether the gradient of this one was."""
        if not finite:
            return LossScale(max(LEAST, self.scale / 2))
        if self.good_steps + 1 == GROW_AFTER:
            return LossScale(2 * self.scale)
        return LossScale(self.scale, self.good_steps + 1)


def unscale(g, scale, map=map):
    """Make the gradient of the loss out of that of scale · loss.

    Args:    g (P,), the flat gradient, divided in place; scale, a power of two; map, how to go
             through its pieces.
    """

    def divide(s):
        g[s] *= 1.0 / scale  # (PIECE,)

    list(map(divide, pieces(0, g.size)))
