"""Who checks the checkers? Faults, written by hand, each of which must be seen.

A check that never fails proves nothing. So each mutant changes one function of the program
as a tired person might: a term is dropped, a sign turned, an axis mistaken, `=` written for
`+=`. Every check runs again on the faulty program, the very same checks that the true program
passes, and at least one must fail. A mutant that survives is a hole in the checks. Here is how
they are planted and tried; faults.py is the table of them.

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
