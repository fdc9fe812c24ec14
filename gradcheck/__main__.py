"""python -m gradcheck: every derivative, and what two independent witnesses measured.

The first table has a line for each argument of each layer, with the worst error over all of the
layer's rows in cases.py. The errors are relative to the largest entry of the gradient:

    central     against central differences, which see ten digits or so: at most 1e-6 passes
    complex     against the complex step, which sees fifteen: at most 1e-12 passes
    together    all arguments moved at once along one random direction: at most 1e-12 passes

The second table has the checks of what no derivative can see: that the future stays hidden,
that inputs aren't written to, that float32 stays float32, what the optimizer promises.

With --mutants, the program is made faulty on purpose, in more than a hundred and eighty ways, one
at a time, and for each fault it's told which of those same checks saw it. --verbose shows each
fault as a diff. Read them: they are the bugs that you will write one day.

With --exercise LAYER, you get the layer's file without its derivation and backward, as
my_LAYER.py in this folder. Derive it, write it there, and --mine my_LAYER.py marks it: your
functions take the lecture's places before the same witnesses, and a row that fails tells what
it is for.

The exit status is 0 if all is well, 1 if a check fails or a mutant survives, and 2 if the
command can't be understood.
"""

import argparse
import contextlib
import sys
import time
from collections import Counter

from gradcheck.cases import LAYERS, cases_of
from gradcheck.exercise import load, mark, write_exercise
from gradcheck.faults import MUTANTS
from gradcheck.mutants import WITNESSES, trial
from gradcheck.numerical import CENTRAL_BAR, COMPLEX_BAR, DIRECTION_BAR, check
from gradcheck.properties import OF_EVERY_ROW, PROPERTIES
from gradcheck.terminal import BOLD, DIM, GREEN, RED, number, pad, paint, verdict
from npgpt.cli import main_with_errors
from npgpt.errors import UserError


def main(argv=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gradcheck",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    layers = (*LAYERS, *dict.fromkeys(p.layer for p in PROPERTIES if p.layer not in LAYERS))
    parser.add_argument("--layer", metavar="NAME", help=f"only this one: {', '.join(layers)}")
    parser.add_argument("--all", action="store_true", help="a line for every row of the table")
    parser.add_argument("--mutants", action="store_true", help="check the checks with faults")
    parser.add_argument("--verbose", action="store_true", help="with --mutants: faults as diffs")
    parser.add_argument("--exercise", metavar="LAYER", help="write my_LAYER.py, to be filled in")
    parser.add_argument("--mine", metavar="FILE", help="mark the functions of a file of yours")
    options = parser.parse_args(argv)
    with contextlib.suppress(AttributeError, ValueError):
        # A console without Greek prints ? and goes on; a file or a pipe sees each line at once.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        if options.exercise:
            path = write_exercise(options.exercise)
            print(f"{path} is yours to fill in; then run python -m gradcheck --mine {path}")
            return 0
        if options.mine:
            return 0 if mark(load(options.mine)) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.layer is not None and options.layer not in layers:
        print(
            f"error: there is no layer {options.layer!r}: choose one of {', '.join(layers)}",
            file=sys.stderr,
        )
        return 2
    chosen = (options.layer,) if options.layer else layers
    ok = (
        run_mutants(chosen, options.verbose) if options.mutants else run_checks(chosen, options.all)
    )
    return 0 if ok else 1


def run_checks(layers, every_row):
    """Print both tables; return whether all is well."""
    began = time.perf_counter()
    derivable = [layer for layer in layers if layer in LAYERS]
    results, errors = derivative_table(derivable, every_row) if derivable else ([], "")
    results += property_table(layers)
    failed = results.count(False)
    verdicts = f"{len(results)} checks, {paint(f'{failed} failed', RED if failed else GREEN)}"
    print(f"\n{verdicts}; {errors}{time.perf_counter() - began:.1f} s")
    return failed == 0


def derivative_table(layers, every_row):
    """Print the witnesses' errors; return the list of verdicts, and the worst errors in words."""
    print("Each derivative against two witnesses, which know only the forward; relative errors\n")
    print(paint(f"{'layer':18}{'argument':24}{'shape':14}{'rows':>4}"
                f"{'central':>10}{'complex':>10}  verdict", BOLD))  # fmt: skip
    verdicts, worst_central, worst_complex = [], 0.0, 0.0
    for layer in layers:
        label, reports = layer, [check(case) for case in cases_of(layer)]
        groups = [[report] for report in reports] if every_row else [reports]
        for group in groups:
            if every_row:
                print(f"{label:18}{paint(group[0].case.name, DIM)}")
                label = ""
            for argument, lines in by_argument(group).items():
                top = max(lines, key=lambda line: line.complex)
                central = max(line.central for line in lines)
                worst_central = max(worst_central, central)
                worst_complex = max(worst_complex, top.complex)
                verdicts.append(all(line.ok for line in lines))
                print(f"{label:18}{argument:24}{top.shape!s:14}{len(lines):>4}{number(central)}"
                      f"{number(top.complex)}  {verdict(verdicts[-1])}")  # fmt: skip
                label = ""
            together = max(report.direction for report in group)
            worst_complex = max(worst_complex, together)
            verdicts.append(together <= DIRECTION_BAR)
            print(f"{label:18}{paint('together'.ljust(38), DIM)}{len(group):>4}{'':10}"
                  f"{number(together)}  {verdict(verdicts[-1])}")  # fmt: skip
    print()
    return verdicts, (
        f"worst errors: central {worst_central:.1e} (bar {CENTRAL_BAR:.0e}), "
        f"complex {worst_complex:.1e} (bar {COMPLEX_BAR:.0e}); "
    )


def property_table(layers):
    """Print the checks of what no derivative can see; return the list of verdicts."""
    print(paint(f"{'layer':18}{'what no derivative can see':78}  verdict", BOLD))
    verdicts = []
    for layer, name, why, reason in properties_of(layers):
        verdicts.append(reason is None)
        print(f"{layer:18}{name:14}{pad(why, 64)}  {verdict(verdicts[-1])}")
        if reason is not None:
            print(f"{'':18}{paint(reason, RED)}")
    return verdicts


def by_argument(reports):
    """The lines of several reports, as a dict from argument to its lines."""
    lines = {}
    for report in reports:
        for line in report.lines:
            lines.setdefault(line.argument, []).append(line)
    return lines


def properties_of(layers):
    """Run what the layers must hold to: yields (layer, name, why, None or what is wrong)."""
    for name, run in OF_EVERY_ROW.items():
        rows = [case for layer in layers if layer in LAYERS for case in cases_of(layer)]
        reasons = [f"{case.layer}, {reason}" for case in rows if (reason := run(case))]
        if rows:
            yield "every row", name, first_line(run), "; ".join(reasons) or None
    for prop in PROPERTIES:
        if prop.layer in layers:
            yield prop.layer, prop.name, first_line(prop.run), prop.run()


def first_line(function):
    """The first line of a function's docstring: what a check promises."""
    return function.__doc__.strip().split("\n")[0].rstrip(".")


def run_mutants(layers, verbose):
    """Print what became of every mutant; return whether all were killed."""
    began, testimonies, seen, survivors = time.perf_counter(), {}, Counter(), []
    chosen = [mutant for mutant in MUTANTS if mutant.layer in layers]
    print("Faults put into the program on purpose, one at a time, and the checks that saw them\n")
    layer = None
    for mutant in chosen:
        if mutant.layer != layer:
            layer = mutant.layer
            print(paint(layer, BOLD))
        result = trial(mutant, testimonies)
        seen.update(result.killers.keys())
        if result.killed:
            print(f"  {pad(mutant.what, 72)}{paint(names(result.killers), GREEN)}")
        else:
            survivors.append(mutant)
            print(f"  {pad(mutant.what, 72)}{paint('SURVIVED', RED)}")
        if verbose:
            module, _, function = mutant.where.partition(":")
            print(paint(f"      npgpt/{module.replace('.', '/')}.py: {function}", DIM))
            for line in mutant.diff():
                print(paint(f"      {line}", RED if line.startswith("-") else GREEN))
            for where in dict.fromkeys(result.killers.values()):
                by = [name for name, first in result.killers.items() if first == where]
                print(f"      seen by {names(by)}: {where}")
            for error in result.raised[:1]:
                print(f"      raised, which doesn't count: {error}")
            print()
    counts = ", ".join(f"{name} {count}" for name, count in seen.most_common())
    left = f"{len(survivors)} survived"
    print(f"\n{len(chosen)} mutants, {paint(left, RED if survivors else GREEN)}; "
          f"{time.perf_counter() - began:.1f} s\nseen by: {counts}")  # fmt: skip
    return not survivors


def names(killers):
    """The checks that saw a mutant, in few words."""
    others = [name for name in killers if name not in WITNESSES]
    witnesses = [name for name in killers if name in WITNESSES]
    return ", ".join((["all witnesses"] if len(witnesses) == 3 else witnesses) + others)


if __name__ == "__main__":
    sys.exit(main_with_errors(main))
