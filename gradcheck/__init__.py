"""gradcheck: why you may believe every derivative in this program.

A wrong gradient seldom crashes. The loss still falls, a little more slowly, to a place a
little worse, and nothing tells you. So no derivative here is believed because its derivation
reads well: each is compared with numbers that were found without any derivation.

    python -m gradcheck              every layer, every argument, two independent witnesses
    python -m gradcheck --mutants    the checks themselves, put to the test
    pytest gradcheck/                the same, as tests

Reading order
    numerical.py     the witnesses: two ways to measure a slope by running only the forward
    cases.py         what is checked: ONE table, a row a case. A new layer is one new row
                     (case.py says what a row is, inputs.py draws what goes in)
    properties.py    what no derivative can see: causality, purity, dtype, the optimizer's rules
    mutants.py       who checks the checkers: faults written by hand, each of which must be seen
                     (faults.py is the table of them)

To derive one yourself, and have it marked (exercise.py):

    python -m gradcheck --exercise rmsnorm         writes my_rmsnorm.py, without the derivation
    python -m gradcheck --mine my_rmsnorm.py       judges what you have written there

Or put a backward of yours in a case's place:

    from gradcheck import cases_of, check
    for case in cases_of("rmsnorm"):
        print(check(case.replace(backward=my_rmsnorm_backward)))
"""

from gradcheck.cases import CASES, Case, cases_of
from gradcheck.numerical import central_difference, check, complex_step, measure

__all__ = ["CASES", "Case", "cases_of", "central_difference", "check", "complex_step", "measure"]
