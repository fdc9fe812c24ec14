"""Who checks the checkers? Faults, written by hand, each of which must be seen.

A check that never fails proves nothing. So each mutant below changes one function of the program
as a tired person might: a term is dropped, a sign turned, an axis mistaken, `=` written for
`+=`. Every check runs again on the faulty program, the very same checks that the true program
passes, and at least one must fail. A mutant that survives is a hole in the checks.

The faults are silent ones: the shapes fit, nothing is raised, and a loss would still fall.
Some of them have been in programs that people trained with: the finite mask, 1e-10 for −1e10, the
mean without its 1/N, the tied table's lost gradient, `+=` on repeated ids, the schedule that
runs past its end, the decay after the step.

A mutant is written as a change of the function's own text: what stands there, and what stands
there instead. Run with --verbose, it prints as a diff. The text to be replaced must occur exactly
once, so when a layer is rewritten its mutants can't go stale in silence.

Most faults are in the derivative, and the witnesses see them. Some are in the forward, and the
backward follows faithfully: then every derivative is right, and a property must tell. These
say derivative=False, and a test holds them to it.
"""

import contextlib
import difflib
import importlib
import inspect
import sys
import textwrap
from dataclasses import dataclass, field

import numpy as np

from gradcheck.cases import LAYERS, cases_of
from gradcheck.numerical import around, check, measure
from gradcheck.properties import OF_EVERY_ROW, PROPERTIES

WITNESSES = ("central", "complex", "directional")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        layer       whose checks it must not pass; "block" and "model" share theirs
        what        one sentence: what is wrong
        where       the function: "module:function", below npgpt
        edits       pairs (what stands there, what stands there instead)
        derivative  False if no witness can see it: the backward follows the faulty forward, or
                    the numbers are right and something else is wrong
    """

    layer: str
    what: str
    where: str
    edits: tuple
    derivative: bool = True

    @property
    def name(self):
        return self.where.split(":")[1]

    @property
    def _home(self):
        """What holds the function (its module or class), its name there, and its module."""
        module, path = self.where.split(":")
        home = module = importlib.import_module(f"npgpt.{module}")
        *outer, name = path.split(".")
        for part in outer:
            home = getattr(home, part)
        return home, name, module

    @property
    def original(self):
        home, name, _ = self._home
        return getattr(home, name)

    def _texts(self):
        """The function's text, before and after; decorators are left out."""
        before = textwrap.dedent(inspect.getsource(self.original))
        before = before[before.index("def ") :]
        after = before
        for old, new in self.edits:
            if after.count(old) != 1:
                raise ValueError(
                    f"mutant {self.what!r}: {old!r} occurs {after.count(old)} times in "
                    f"{self.where}, but must occur once"
                )
            after = after.replace(old, new)
        return before, after

    def faulty(self):
        """The faulty function, which lives in the true one's module and sees what it sees."""
        _, name, module = self._home
        made = {}
        exec(compile(self._texts()[1], f"<mutant of {self.where}>", "exec"), vars(module), made)
        return made[name]

    def diff(self):
        """The fault as lines with − and +."""
        before, after = (text.splitlines() for text in self._texts())
        lines = difflib.unified_diff(before, after, n=0, lineterm="")
        return [line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@"]


@contextlib.contextmanager
def planted(mutant):
    """Put a mutant in the place of the true function, everywhere in the program, for a while.

    Returns: a function that gives the faulty function for the true one, and any other for itself.
    """
    true, faulty = mutant.original, mutant.faulty()
    home, name, _ = mutant._home
    places, tables = [(home, name)], []
    for path, module in list(sys.modules.items()):
        if path.split(".")[0] == "npgpt":
            for n, value in vars(module).items():
                if value is true:
                    places.append((module, n))
                elif type(value) is dict:  # perhaps one from names to pairs, as block.NORMS
                    tables += [(value, key, pair) for key, pair in value.items()
                               if type(pair) is tuple and any(f is true for f in pair)]  # fmt: skip

    def swap(function):
        return faulty if function is true else function

    for place, n in places:
        setattr(place, n, faulty)
    for table, key, pair in tables:
        table[key] = tuple(map(swap, pair))
    try:
        yield swap
    finally:
        for place, n in places:
            setattr(place, n, true)
        for table, key, pair in tables:
            table[key] = pair


@dataclass
class Verdict:
    """What became of a mutant.

    Attributes: killers, a dict from each check that saw it to the first row (or reason) that
    showed it; raised, the exceptions on the way, which count for nothing.
    """

    mutant: Mutant
    killers: dict = field(default_factory=dict)
    raised: list = field(default_factory=list)

    @property
    def killed(self):
        return bool(self.killers)


def checks_of(layer):
    """The rows and the properties that a mutant of this layer must face."""
    layers = ("block", "model") if layer in ("block", "model") else (layer,)
    rows = [case for name in layers if name in LAYERS for case in cases_of(name)]
    return rows, [p for p in PROPERTIES if p.layer in layers]


def trial(mutant, testimonies=None):
    """Run all checks of the mutant's layer with the mutant in place.

    Args:    mutant; testimonies, a dict that keeps what the witnesses measured of the true
             forwards between one trial and the next: where a fault leaves a row's forward as it
             was, that is still true.
    Returns: a Verdict.
    """
    verdict, testimonies = Verdict(mutant), {} if testimonies is None else testimonies
    rows, properties = checks_of(mutant.layer)
    for case in rows:
        if case not in testimonies:
            testimonies[case] = measure(case)
    with planted(mutant) as swap, np.errstate(all="ignore"):
        for row in rows:
            case = row.replace(forward=swap(row.forward), backward=swap(row.backward))
            with _keeping(verdict.raised):
                true = testimonies[row]
                same = np.array_equal(around(case, true.direction), true.outputs)
                for name in check(case, true if same else None).seen_by():
                    verdict.killers.setdefault(name, row.name)
            for name, prop in OF_EVERY_ROW.items():
                with _keeping(verdict.raised):
                    if reason := prop(case):
                        verdict.killers.setdefault(name, reason)
        for prop in properties:
            with _keeping(verdict.raised):
                if reason := prop.run():
                    verdict.killers.setdefault(prop.name, reason)
    return verdict


@contextlib.contextmanager
def _keeping(raised):
    """Note an exception and go on."""
    try:
        yield
    except Exception as error:
        raised.append(f"{type(error).__name__}: {error}")


LINEAR = "layers.linear:linear_backward"
EMBEDDING = "layers.embedding:embedding_backward"
RMSNORM = "layers.rmsnorm:rmsnorm_backward"
ROPE = "layers.rope:rope_backward"
ROPE_ATTENTION = "layers.rope_attention:rope_attention_backward"
DROPPED = "layers.attention_dropout:dropped_attention_backward"
DROPPED_FORWARD = "layers.attention_dropout:dropped_attention_forward"
ATTENTION = "layers.attention:attention_backward"
SCORES = "layers.attention:_scores"
SWIGLU = "layers.swiglu:swiglu_backward"
AFFINE = "layers.linear:affine_backward"
LAYERNORM = "layers.layernorm:layernorm_backward"
POSITION = "layers.position:position_backward"
RELU = "layers.mlp:relu_backward"
GELU = "layers.mlp:gelu_backward"
DROPOUT = "layers.dropout:dropout_backward"
MASK = "layers.dropout:_mask"
DROP = "chance:drop_forward"
DRAW = "chance:draw"
ATTEND = "block:attend_forward"
ATTEND_BACKWARD = "block:attend_backward"
GELU_TANH = "layers.mlp:gelu_tanh_backward"
LOSS = "layers.loss:cross_entropy_backward"
SMOOTH = "layers.loss:smooth_cross_entropy_backward"
BLOCK = "block:block_backward"
BACKWARD = "model:backward"
MATRIX = "block:matrix_backward"
INTO = "block:linear_backward_into"
NORM = "block:norm_backward"
STEP = "model:loss_and_dlogits"
ADAMW = "optim:adamw_update"
SCHEDULE = "optim:cosine_schedule"
SCALE = "loss_scale:LossScale.after"


def _fault(layer, where, what, *edits, derivative=True):
    return Mutant(layer, what, where, edits, derivative)


def _follows(layer, where, what, *edits):
    """A fault in the forward that the backward follows faithfully."""
    return Mutant(layer, what, where, edits, derivative=False)


MUTANTS = (
    # linear
    _fault("linear", LINEAR, "The transpose of w is only a reshape: the shape fits.",
           ("drows @ w.T", "drows @ w.reshape(w.shape[::-1])")),
    _fault("linear", LINEAR, "dw is made the wrong way round, then reshaped until it fits.",
           ("rows.T @ drows", "(drows.T @ rows).reshape(w.shape)")),
    _fault("linear", LINEAR, "dw is the mean over the rows, but w's gradients add.",
           ("rows.T @ drows", "rows.T @ drows / rows.shape[0]")),
    _fault("linear", LINEAR, "dw takes the last row only, as if `=` stood for `+=` in a loop.",
           ("rows.T @ drows", "rows[-1:].T @ drows[-1:]")),
    _fault("linear", LINEAR, "dx has the wrong sign.",
           ("(drows @ w.T)", "(-drows @ w.T)")),
    _fault("linear", "layers.linear:linear_forward", "x is cached in float32, to save memory.",
           ("return y, (x, w)", "return y, (x.real.astype('float32'), w)")),
    _fault("linear", AFFINE, "The bias's gradient is the mean over the rows.",
           ("np.sum(dy", "np.mean(dy")),
    _fault("linear", AFFINE, "The bias is shared by all rows, but only the last one counts.",
           ("np.sum(dy, axis=tuple(range(dy.ndim - 1)))", "dy.reshape(-1, dy.shape[-1])[-1]")),
    _fault("linear", AFFINE, "dx is lost on the way.",
           ("dx, dw = linear_backward", "_, dw = linear_backward"),
           ("return dx", "return 0.0 * _")),
    _fault("linear", "layers.linear:affine_forward", "The bias is added twice.",
           ("y + b", "y + b + b")),
    # embedding
    _fault("embedding", EMBEDDING, "`+=` on an index: of a repeated token, only the last counts.",
           ("np.add.at(dw, ids, dx)", "dw[ids] += dx")),
    _fault("embedding", EMBEDDING, "`=` for `+=`.",
           ("np.add.at(dw, ids, dx)", "dw[ids] = dx")),
    _fault("embedding", EMBEDDING, "dw begins as the table itself, not as zeros.",
           ("np.zeros_like(w)", "w.copy()")),
    _fault("embedding", EMBEDDING, "Only the first sequence of the batch is added.",
           ("np.add.at(dw, ids, dx)", "np.add.at(dw, ids[:1], dx[:1])")),
    _fault("embedding", EMBEDDING, "Every token's gradient is divided by how often it occurs.",
           ("np.add.at(dw, ids, dx)",
            "np.add.at(dw, ids, dx / np.bincount(ids.ravel())[ids][..., None])")),
    _fault("embedding", EMBEDDING, "The first place of every sequence is forgotten.",
           ("np.add.at(dw, ids, dx)", "np.add.at(dw, ids[..., 1:], dx[..., 1:, :])")),
    # rmsnorm
    _fault("rmsnorm", RMSNORM, "The path through rstd is dropped: rstd taken as a constant.",
           ("rstd * (g - xhat * np.mean(g * xhat, axis=-1, keepdims=True))", "rstd * g")),
    _fault("rmsnorm", RMSNORM, "The path through rstd has the wrong sign.",
           ("g - xhat *", "g + xhat *")),
    _fault("rmsnorm", RMSNORM, "eps is forgotten when rstd is made again.",
           ("xhat = x * rstd  #",
            "rstd = np.mean(x * x, axis=-1, keepdims=True) ** -0.5\n    xhat = x * rstd  #")),
    _fault("rmsnorm", RMSNORM, "A sum for the mean: 1/C is missing.",
           ("np.mean(g * xhat", "np.sum(g * xhat")),
    _fault("rmsnorm", RMSNORM, "One mean over all rows, where each row has its own.",
           ("np.mean(g * xhat, axis=-1, keepdims=True)", "np.mean(g * xhat)")),
    _fault("rmsnorm", RMSNORM, "The gain is forgotten on the way to x.",
           ("g = dy * w", "g = dy")),
    _fault("rmsnorm", RMSNORM, "dw sees x where it should see x̂.",
           ("np.sum(dy * xhat", "np.sum(dy * x")),
    _fault("rmsnorm", RMSNORM, "dw is the mean over the rows, not the sum.",
           ("np.sum(dy * xhat", "np.mean(dy * xhat")),
    _fault("rmsnorm", RMSNORM, "The derivative of rstd has the power 2 for 3.",
           ("g - xhat * np", "g - x * np")),
    _fault("rmsnorm", "layers.rmsnorm:rmsnorm_forward", "eps is added outside the root.",
           ("(np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5",
            "1.0 / (np.mean(x * x, axis=-1, keepdims=True) ** 0.5 + eps)")),
    # layernorm
    _fault("layernorm", LAYERNORM, "The path through the mean is dropped.",
           ("g - np.mean(g, axis=-1, keepdims=True) - xhat", "g - xhat")),
    _fault("layernorm", LAYERNORM, "The path through rstd is dropped.",
           (" - xhat * along", "")),
    _fault("layernorm", LAYERNORM, "The part along x̂ is added, not taken away.",
           (" - xhat * along", " + xhat * along")),
    _fault("layernorm", LAYERNORM, "One mean of g over all rows, where each row has its own.",
           ("np.mean(g, axis=-1, keepdims=True)", "np.mean(g)")),
    _fault("layernorm", LAYERNORM, "x̂ is made again without taking the mean off.",
           ("(x - mean) * rstd", "x * rstd")),
    _fault("layernorm", LAYERNORM, "rstd is made again, without eps.",
           ("xhat = (x - mean) * rstd",
            "rstd = np.var(x, axis=-1, keepdims=True) ** -0.5\n    xhat = (x - mean) * rstd")),
    _fault("layernorm", LAYERNORM, "g = dy: the gain is forgotten on the way to x.",
           ("g = dy * w", "g = 1.0 * dy")),
    _fault("layernorm", LAYERNORM, "The bias gets the gain's gradient.",
           ("db = np.sum(dy,", "db = dw; np.sum(dy,")),
    _fault("layernorm", LAYERNORM, "The bias's gradient is scaled by the gain.",
           ("db = np.sum(dy,", "db = np.sum(dy * w,")),
    _fault("layernorm", "layers.layernorm:layernorm_forward",
           "mean(x²) − mean(x)², which loses its digits far from 0.",
           ("np.mean(centred * centred, axis=-1, keepdims=True)",
            "(np.mean(x * x, axis=-1, keepdims=True) - mean * mean)")),
    _fault("layernorm", "layers.layernorm:layernorm_forward",
           "eps is added to the root, not to the variance.",
           ("(np.mean(centred * centred, axis=-1, keepdims=True) + eps) ** -0.5",
            "1.0 / (np.mean(centred * centred, axis=-1, keepdims=True) ** 0.5 + eps)")),
    # position
    _fault("position", POSITION, "The mean over the texts for their sum.",
           ("np.sum(dy, axis=0)", "np.mean(dy, axis=0)")),
    _fault("position", POSITION, "Only the first text of the batch is counted.",
           ("np.sum(dy, axis=0)", "dy[0]")),
    _fault("position", POSITION, "The gradient goes to the table's first rows, wherever x began.",
           ("start : start + T", "0:T")),
    _fault("position", POSITION, "The table's gradient begins as the table.",
           ("np.zeros_like(wpe)", "wpe.copy()")),
    _fault("position", POSITION, "All places get the gradient of all.",
           ("np.sum(dy, axis=0)", "np.sum(dy, axis=(0, 1))")),
    # rope_attention
    _fault("rope_attention", ROPE_ATTENTION, "The keys' gradient isn't turned back.",
           ("dk = rope_backward(dk, (cos, sin))", "dk = 1.0 * dk")),
    _fault("rope_attention", ROPE_ATTENTION, "Backward forgets that queries were turned.",
           ("q, _ = rope_forward(q, cos, sin)", "q = 1.0 * q")),
    _fault("rope_attention", ROPE_ATTENTION, "The gradients of keys and values change places.",
           ("[dq, dk, dv]", "[dq, dv, dk]")),

    # rope
    _fault("rope", ROPE, "The gradient is turned forwards, not back.",
           ("-sin", "sin")),
    _fault("rope", ROPE, "Sine and cosine are exchanged.",
           ("(dy, cos, -sin)", "(dy, sin, -cos)")),
    _fault("rope", ROPE, "The gradient isn't turned at all.",
           ("dx, _ = rope_forward(dy, cos, -sin)", "dx = 1.0 * dy")),
    _fault("rope", ROPE, "Neighbours are paired in backward, halves in forward.",
           ("dx, _ = rope_forward(dy, cos, -sin)",
            "even, odd = dy[..., ::2], dy[..., 1::2]\n"
            "    c, s = cos[:, None, :], sin[:, None, :]\n"
            "    dx = np.stack([even * c + odd * s, odd * c - even * s], -1).reshape(dy.shape)")),
    _fault("rope", ROPE, "The positions are counted from the end.",
           ("(dy, cos, -sin)", "(dy, cos[::-1], -sin[::-1])")),
    _fault("rope", "layers.rope:rope_forward", "A sign: the rotation became a shear.",
           ("x2 * c + x1 * s", "x2 * c - x1 * s")),
    _follows("rope", "layers.rope:rope_table", "The table ignores where the text goes on.",
             ("np.arange(start, stop,", "np.arange(0, stop - start,")),
    _follows("rope", "layers.rope:rope_table", "The angle grows with the square of the position.",
             ("angle = position[:, None] * omega", "angle = position[:, None] ** 2 * omega")),
    # attention
    _fault("attention", ATTENTION, "The softmax's average is dropped: each weight for itself.",
           ("probs * (dprobs - average)", "probs * dprobs")),
    _fault("attention", ATTENTION, "The softmax's average has the wrong sign.",
           ("dprobs - average", "dprobs + average")),
    _fault("attention", ATTENTION, "One average for all queries, where each has its own.",
           ("(dprobs - average)", "(dprobs - np.mean(average))")),
    _fault("attention", ATTENTION, "1/√D is forgotten in dq.",
           ("dq = scale * (dscores @ kh)", "dq = dscores @ kh")),
    _fault("attention", ATTENTION, "1/√D is applied twice in dk.",
           ("dk = scale * np", "dk = scale * scale * np")),
    _fault("attention", ATTENTION, "Of the queries that share a key, only the first is counted.",
           ("np.sum(np.swapaxes(dscores, -1, -2) @ qh, axis=2, keepdims=True)",
            "(np.swapaxes(dscores, -1, -2) @ qh)[:, :, :1]")),
    _fault("attention", ATTENTION, "Of the queries that share a value, the mean is taken.",
           ("np.sum(np.swapaxes(probs, -1, -2) @ dyh", "np.mean(np.swapaxes(probs, -1, -2) @ dyh")),
    _fault("attention", ATTENTION, "The weights are made again without the mask.",
           ("np.exp(_scores(q, k) - lse)",
            "np.exp(scale * (qh @ np.swapaxes(kh, -1, -2)) - lse)")),
    _fault("attention", ATTENTION, "dk is weighted with dprobs: the softmax's step is left out.",
           ("np.swapaxes(dscores, -1, -2) @ qh", "np.swapaxes(dprobs, -1, -2) @ qh")),
    _fault("attention", "layers.attention:attention_forward", "No maximum taken off before exp.",
           ("scores - peak", "scores"), ("peak + np.log", "np.log")),
    _fault("attention", "layers.attention:attention_forward",
           "The cached lse forgets the maximum that was taken off.",
           ("peak + np.log", "np.log")),
    _fault("attention", SCORES, "The scores are divided by D, the gradients by √D.",
           ("D**-0.5", "D**-1.0")),
    _fault("attention", ATTENTION, "NumPy 2 promotes: 1/√D as a NumPy float64, not a Python float.",
           ("q.shape[3] ** -0.5", "1.0 / np.sqrt(q.shape[3])"), derivative=False),
    _follows("attention", SCORES, "The mask is off by one: each token sees the next.",
             ("place > place[S - T :, None]", "place > place[S - T :, None] + 1")),
    _follows("attention", SCORES, "No mask at all.",
             ("-np.inf", "0.0")),
    _follows("attention", SCORES, "A finite mask, −1e4: scores below it let the model cheat.",
             ("-np.inf", "-1e4")),
    _follows("attention", SCORES, "1e-10 for −1e10: the future has the score 0.",
             ("-np.inf", "1e-10")),
    _follows("attention", SCORES, "A finite mask, −1e10: rarer, and still not −∞.",
             ("-np.inf", "-1e10")),
    # The derivative of this one is right too, but a lone query then sees one key only, and its
    # gradient is zero with no reason given in the table: the witnesses take offence at that.
    _fault("attention", SCORES, "The queries are taken for the first T places, not the last.",
           ("place[S - T :, None]", "place[:T, None]")),
    _follows("attention", SCORES, "A short sight: what is three places back is forgotten.",
             ("future = place > place[S - T :, None]",
              "future = (place > place[S - T :, None]) | (place < place[S - T :, None] - 2)")),
    # swiglu
    _fault("swiglu", SWIGLU, "The slope of g·σ is σ alone: half of the product rule.",
           ("sigma * (1.0 + gate * (1.0 - sigma))", "sigma")),
    _fault("swiglu", SWIGLU, "The slope of g·σ is σ′ alone: the other half.",
           ("(1.0 + gate * (1.0 - sigma))", "gate * (1.0 - sigma)")),
    _fault("swiglu", SWIGLU, "σ for 1 − σ.",
           ("(1.0 - sigma)", "sigma")),
    _fault("swiglu", SWIGLU, "Gate and value are exchanged in backward.",
           ("gate, up = x[..., :F], x[..., F:]", "up, gate = x[..., :F], x[..., F:]")),
    _fault("swiglu", SWIGLU, "The two gradients are put together in the wrong order.",
           ("dx[..., :F] =", "dx[..., F:] ="),
           ("dx[..., F:] = dy * gate", "dx[..., :F] = dy * gate")),
    _fault("swiglu", SWIGLU, "The value's gradient sees σ, not g·σ.",
           ("dy * gate * sigma", "dy * sigma")),
    _fault("swiglu", SWIGLU, "The gate's gradient forgets the value.",
           ("dy * up * sigma", "dy * sigma")),
    _fault("swiglu", "layers.swiglu:_sigmoid", "A half is lost in the sigmoid by tanh.",
           ("np.tanh(0.5 * g)", "np.tanh(g)")),
    # mlp
    _fault("mlp", RELU, "The slope is 1 everywhere.",
           ("np.where(y.real <= 0, 0.0, dy)", "1.0 * dy")),
    _fault("mlp", RELU, "The slope is taken from the gradient's sign, not from the channel's.",
           ("y.real <= 0", "dy.real <= 0")),
    _fault("mlp", RELU, "The closed side lets through, and the open one does not.",
           ("y.real <= 0", "y.real > 0")),
    _fault("mlp", GELU, "Half of the product rule: the slope is Φ.",
           (" + x * _normal_pdf(x)", "")),
    _fault("mlp", GELU, "The other half: the slope is x · φ.",
           ("_normal_cdf(x) + x", "x")),
    _fault("mlp", GELU, "φ without its x.",
           ("x * _normal_pdf(x)", "_normal_pdf(x)")),
    _fault("mlp", GELU, "Another GELU's slope: that of tanh's, off by a thousandth.",
           ("return dy * (_normal_cdf(x) + x * _normal_pdf(x))",
            "return gelu_tanh_backward(dy, cache)")),
    _fault("mlp", "layers.mlp:_normal_cdf", "The sum for Φ ends three fractions too early.",
           ("zip(NODES, WEIGHTS)", "zip(NODES[:8], WEIGHTS)")),
    _fault("mlp", "layers.mlp:_normal_cdf", "The sum for Φ without what the fractions' pole adds.",
           ("0.5 * np.tanh((np.pi / STEP) * x)", "0.5 * (2.0 * (x.real > 0) - 1.0)")),
    _fault("mlp", GELU_TANH, "The chain rule's last factor is forgotten: ∂u/∂x.",
           ("(1.0 - t * t) * du", "(1.0 - t * t)")),
    _fault("mlp", GELU_TANH, "The 3 of x³ is lost on the way to its slope.",
           ("3.0 * CUBE", "CUBE")),
    _fault("mlp", GELU_TANH, "The slope of tanh is 1 − tanh.",
           ("(1.0 - t * t)", "(1.0 - t)")),
    # dropout
    _fault("dropout", DROPOUT, "The mask is forgotten: what was dropped gets a gradient too.",
           ("dy * _mask(dy, rate, key, start)", "1.0 * dy")),
    _fault("dropout", DROPOUT, "The mask is there, but what is left isn't scaled up.",
           ("_mask(dy, rate, key, start)", "_mask(dy, rate, key, start) * (1.0 - rate)")),
    _fault("dropout", DROPOUT, "A mask is drawn anew.",
           ("rate, key, start)  #", "rate, key + 1, start)  #")),
    _fault("dropout", DROPOUT, "The mask of the batch's beginning, wherever x stands.",
           ("rate, key, start)  #", "rate, key, 0)  #")),
    _follows("dropout", MASK, "What is left isn't scaled up: evaluation sees other channels.",
             ("(1.0 / (1.0 - rate))", "1.0")),
    _follows("dropout", MASK, "Scaled up by the rate, and not by what it leaves.",
             ("(1.0 / (1.0 - rate))", "(1.0 / max(rate, 0.1))")),
    _follows("dropout", MASK, "What should be kept is dropped.",
             ("bits >= np", "bits < np")),
    _follows("dropout", MASK, "The counter isn't mixed: neighbours are dropped by turns.",
             ("_mix(i * GAMMA + np.uint64(key))", "i * GAMMA + np.uint64(key)")),
    _follows("dropout", MASK, "Every piece of a batch draws as if it were the first.",
             ("np.uint64(start)", "np.uint64(0)")),
    _follows("dropout", "layers.dropout:dropout_key", "A key is a sum: (1, 2, 3) is (3, 2, 1).",
             ("_mix((key ^ np.uint64(number)) + GAMMA)", "key + np.uint64(number)")),
    # attention_dropout
    _fault("attention_dropout", DROPPED, "The mask is forgotten on the way to the values.",
           ("np.swapaxes(dropped,", "np.swapaxes(probs,")),
    _fault("attention_dropout", DROPPED, "The mask is forgotten on the way to the weights.",
           ("dprobs = dropout_backward(ddropped, drop_cache)", "dprobs = ddropped")),
    _fault("attention_dropout", DROPPED, "The softmax's backward is given the dropped weights.",
           ("dscores = probs *", "dscores = dropped *")),
    _fault("attention_dropout", DROPPED, "The average is taken without the mask.",
           ("average = _split_heads(np.sum(dy * y, axis=-1, keepdims=True), G)",
            "average = np.sum(probs * ddropped, axis=-1, keepdims=True)")),
    _fault("attention_dropout", DROPPED, "The average is taken with the mask twice.",
           ("average = _split_heads(np.sum(dy * y, axis=-1, keepdims=True), G)",
            "average = np.sum(dropped * dprobs, axis=-1, keepdims=True)")),
    _fault("attention_dropout", DROPPED, "What was dropped gets no gradient at all.",
           ("probs * (dprobs - average)", "probs * (dprobs - average) * (dropped != 0)")),
    _fault("attention_dropout", DROPPED, "The mask of the batch's beginning, wherever q stands.",
           ("(probs, *mask)", "(probs, *mask[:2])")),
    _fault("attention_dropout", DROPPED, "1/√D is forgotten in dk.",
           ("dk = scale * np", "dk = np")),
    _fault("attention_dropout", DROPPED_FORWARD, "The mask works on the denominator as well.",
           ("dropped, _ = dropout_forward(probs, rate, key, start)",
            "dropped, _ = dropout_forward(probs, rate, key, start)\n"
            "    dropped = dropped / (np.sum(dropped, axis=-1, keepdims=True) + 1e-30)")),
    # loss
    _fault("loss", LOSS, "The mean's 1/N is missing: Adam hides it, clipping doesn't.",
           ("dloss / N", "dloss")),
    _fault("loss", LOSS, "Divided by the number of sequences, not of tokens.",
           ("dloss / N", "dloss / logits.shape[0]")),
    _fault("loss", LOSS, "dloss is ignored: accumulated gradients are k times too large.",
           ("dz *= dloss / N", "dz /= N")),
    _fault("loss", LOSS, "The target's −1 is forgotten: every logit is pushed down.",
           ("-= 1.0", "-= 0.0")),
    _fault("loss", LOSS, "The target is off by one.",
           ("targets.reshape(-1)]", "targets.reshape(-1) - 1]")),
    _fault("loss", LOSS, "The target's −1 goes to the right column of the wrong row.",
           ("np.arange(N, like=targets)", "np.arange(N, like=targets)[::-1]")),
    _fault("loss", LOSS, "The sign: the model learns to be surprised.",
           ("dloss / N", "-dloss / N")),
    _fault("loss", "layers.loss:cross_entropy_forward", "The maximum isn't taken off.",
           ("z - peak", "z"), ("peak + log_total", "log_total")),
    _fault("loss", "layers.loss:cross_entropy_forward", "The loss is a sum, its gradient a mean's.",
           ("np.mean(", "np.sum(")),
    _fault("loss", LOSS, "The gradient is written over the logits, which others may still read.",
           ("dz = np.exp(z - lse)", "dz = np.exp(z - lse, out=z)"), derivative=False),
    _fault("loss", SMOOTH, "The vocabulary's share is forgotten: only the target gives.",
           ("dz -= smoothing * dloss / (N * V)", "pass")),
    _fault("loss", SMOOTH, "The target gives nothing of its share.",
           ("+= smoothing * dloss / N", "+= 0.0")),
    _fault("loss", SMOOTH, "Each token of the vocabulary gets all of ε.",
           ("dloss / (N * V)", "dloss / N")),
    _fault("loss", SMOOTH, "dloss is ignored by what smoothing adds.",
           ("smoothing * dloss / (N * V)", "smoothing / (N * V)")),
    # block
    _fault("block", BLOCK, "What went past the MLP is lost: only the branch's gradient goes on.",
           ("dx = meet(dx, dh)", "dx = dh")),
    _fault("block", BLOCK, "What went through the MLP is lost.",
           ("dx = meet(dx, dh)", "dx = dx")),
    _fault("block", BLOCK, "What went past the attention is lost.",
           ("return meet(dx, dh)", "return dh")),
    _fault("block", INTO, "A gradient is put in the place of the buffer, and is lost.",
           ("g += dw", "g = dw")),
    _fault("block", INTO, "A gradient is assigned: of two batches, the last one counts.",
           ("g += dw", "g[...] = dw")),
    _fault("block", MATRIX, "The biases get no gradient.",
           ("g[bias] += db", "pass")),
    _fault("block", NORM, "The norm's bias gets no gradient.",
           ("g[n] += d", "g[n] += d * (n == name)")),
    _fault("block", BLOCK, "The gradient of one norm's gain is added to the other's.",
           ('g, "mlp_norm", config', 'g, "attn_norm", config')),
    _fault("block", BLOCK, "The two norms' caches are confused.",
           ('cache["attn_norm"]', 'cache.get("mlp_norm", cache["attn_norm"])')),
    _fault("block", ATTEND_BACKWARD, "Attention passes nothing down to queries, keys and values.",
           ("return rope_attention_backward(", "return 0.0 * rope_attention_backward(")),
    _fault("block", ATTEND_BACKWARD, "The queries that were turned by themselves stay turned.",
           ('dq = rope_backward(dq, cache["rope"])', "dq = 1.0 * dq")),
    _fault("block", ATTEND_BACKWARD, "Keys and values are joined in the wrong order.",
           ("join_qkv(dq, dk, dv)", "join_qkv(dq, dv, dk)")),
    _fault("block", BLOCK, "The MLP's norm is left out on the way down.",
           ('dh = norm_backward(dh, cache["mlp_norm"]', '_ = norm_backward(dh, cache["mlp_norm"]')),
    _fault("block", "block:split_qkv", "Values are cut out where the keys are.",
           ("heads[:, :, H + G :]", "heads[:, :, H : H + G]")),
    # model
    _fault("model", BACKWARD, "The tied table loses the gradient of its use as a head.",
           ("head_of(grads, config)", 'head_of({**grads, "wte": 0.0 * grads["wte"]}, config)')),
    _fault("model", "model:embedding_backward_into",
           "The tied table loses the gradient of its use as a head: `=`.",
           ("g += embedding", "g[...] = embedding")),
    _fault("model", BACKWARD, "The tied table loses the gradient of its use as an embedding.",
           ('cache["wte"], grads["wte"])', 'cache["wte"], 0.0 * grads["wte"])')),
    _fault("model", MATRIX, "The head's bias gets no gradient.",
           ("g[bias] += db", 'g[bias] += db * (name != "lm_head")')),
    _fault("model", BACKWARD, "The table of places gets no gradient.",
           ('grads["wpe"] += dwpe', "pass")),
    _fault("model", BACKWARD, "The table of places is asked after the tokens' table.",
           ('grads["wpe"] += dwpe', 'grads["wpe"] += dwpe\n        dx = 0.0 * dx')),
    _fault("model", NORM, "Every norm's gain gets the last batch's gradient only.",
           ("g[n] += d", "g[n][...] = d")),
    _fault("model", BACKWARD, "The last norm is left out on the way down.",
           ("dx = norm_backward", "_ = norm_backward")),
    _fault("model", BACKWARD, "The blocks are undone in the order in which they ran.",
           ("reversed(range(config.n_layer))", "range(config.n_layer)")),
    _fault("model", BACKWARD, "Every block's gradients go to block 0.",
           ("grads.block(i)", "grads.block(0)")),
    _fault("model", BACKWARD, "No block passes its gradient on: each starts from the top again.",
           ("dx = block_backward", "_ = block_backward")),
    _fault("model", "model:loss_and_dlogits",
           "The scale is ignored: k accumulated batches weigh k times too much.",
           (" cross_entropy_backward(scale, ", " cross_entropy_backward(1.0, ")),
    _follows("model", "model:forward", "Each new token believes that it stands at the beginning.",
             ("rope_table(start, start + T,", "rope_table(0, T,")),
    _follows("model", "model:forward", "The same, where places are learned.",
             ('params["wpe"], start)', 'params["wpe"], 0)')),
    _fault("model", "model:recall", "A block that is run again drops nothing.",
           ("*kept)", "*kept[:5])")),
    _follows("model", DROP, "Dropout goes on in evaluation: the classic.",
             ("if chance is None or config", "chance = chance or Chance(0, 0)\n    if config")),
    _follows("model", ATTEND, "Attention forgets in evaluation too.",
             ("drops = chance is not None and config", "drops = config"),
             ("draw(chance, 2, config.n_head * T * T)", "(7, 0)")),
    _follows("model", ATTEND, "A thread's rows forget as if they were the batch's first.",
             ("config.n_head * T * T", "0")),
    _follows("model", ATTEND, "Attention's weights share the mask of a branch.",
             ("draw(chance, 2,", "draw(chance, 1,")),
    _follows("model", DRAW, "Every step draws the same masks.",
             ("chance.step, ", "")),
    _follows("model", DRAW, "Both branches of a block draw the same mask.",
             ("chance.layer, place)", "chance.layer)")),
    _follows("model", DRAW, "A thread's rows draw as if they were the batch's first.",
             ("chance.row * row_size", "0")),
    _follows("model", "model:forward", "All blocks draw the same masks.",
             ("chance._replace(layer=i + 1)", "chance")),
    _fault("model", STEP, "The scale is ignored where targets are smoothed.",
           ("smooth_cross_entropy_backward(scale, ", "smooth_cross_entropy_backward(1.0, ")),
    # optim: no derivative here, only promises
    _follows("optim", SCHEDULE, "Past its end the cosine turns, and the learning rate rises.",
             ("if step >= total_steps:", "if False:")),
    _follows("optim", SCHEDULE, "A straight line that runs past its end and goes negative.",
             ("if step >= total_steps:", "if False:"),
             ("max(min_lr, max_lr - (max_lr - min_lr) * fallen)", "max_lr * (1.0 - at / length)")),
    _follows("optim", SCHEDULE, "The cosine never begins again: all cycles but the first are lost.",
             ("while cycle and at >= length:", "while False:")),
    _follows("optim", SCHEDULE, "The cosine begins again, and its cycles do not grow.",
             ("at - length, length * growth", "at - length, length")),
    _follows("optim", SCHEDULE, "The first step has the length 0, and is lost.",
             ("(step + 1)", "step")),
    _follows("optim", ADAMW, "L2 in place of weight decay: √v̂ divides it too.",
             ("p *= 1.0 - lr * weight_decay", "g = g + weight_decay * p")),
    _follows("optim", ADAMW, "Decay is applied after the step, and takes from the step as well.",
             ("p *= 1.0 - lr * weight_decay", "pass"),
             ("math.sqrt(v_scale) + eps)",
              "math.sqrt(v_scale) + eps); p *= 1.0 - lr * weight_decay")),
    _follows("optim", ADAMW, "The decay forgets lr: it stays as strong when the steps get short.",
             ("1.0 - lr * weight_decay", "1.0 - weight_decay")),
    _follows("optim", "optim:AdamW.update", "The gains are decayed too.",
             ("s.start < self.num_decayed", "True")),
    _follows("optim", "optim:AdamW.update", "The tables that should be free are decayed too.",
             ("self.first_decayed <= s.start", "True")),
    _follows("optim", ADAMW, "No bias correction: the first steps are too long.",
             ("m_scale = 1.0 / (1.0 - beta1**step)", "m_scale = 1.0"),
             ("v_scale = 1.0 / (1.0 - beta2**step)", "v_scale = 1.0")),
    _follows("optim", "optim:AdamW.update", "The steps are not counted: the correction never ends.",
             ("self.step += 1", "self.step = 1")),
    _follows("optim", ADAMW, "The square is not squared.",
             ("(g * g)", "abs(g)")),
    _follows("optim", "optim:clip_gradient", "A short gradient is made longer.",
             ("0.0 < max_norm < norm", "0.0 < max_norm")),
    _follows("optim", "optim:clip_gradient", "Each entry is cut off by itself: a new direction.",
             ("g[s] *= scale", "np.clip(g[s], -max_norm, max_norm, out=g[s])")),
    _follows("optim", "loss_scale:unscale", "The gradient stays as large as the loss was made.",
             ("1.0 / scale", "1.0")),
    _follows("optim", SCALE, "A scale that is too large stays.",
             ("self.scale / 2", "self.scale")),
    _follows("optim", SCALE, "It falls without end, and a run that is lost goes on and on.",
             ("max(LEAST, self.scale / 2)", "self.scale / 2")),
    _follows("optim", SCALE, "Good steps from before an overflow are counted on.",
             ("self.scale / 2)", "self.scale / 2), self.good_steps")),
    _follows("optim", SCALE, "It grows with every good step after the first 2,000.",
             ("LossScale(2 * self.scale)", "LossScale(2 * self.scale, self.good_steps)")),
)  # fmt: skip
