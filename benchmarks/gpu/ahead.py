"""PyTorch's forms, compiled ahead, while a part runs that looks at no clock.

torch.compile takes a minute for a form, and keeps what it made in a cache on the disk. `parity`
keeps one of the processor's cores busy: the others compile the forms that `steps` will race. So
they are ready there in time, and not only those that need no compiler.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.contestant import Contestant, ContestantError
from benchmarks.gpu.runner import ROOT, kill

AT_ONCE = 4  # each takes the memory of its step
LONGEST = 300.0  # seconds that one may take


@contextlib.contextmanager
def compiled_ahead(forms, log):
    """A context in which forms are compiled; who is not done at its end leaves it to the race.

    Args:    forms, a list of (name, rows), as of a Contestant; log, a file that gets all they say.
    """
    log.flush()
    command = [sys.executable, "-m", "benchmarks.gpu.ahead", json.dumps(forms)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        start_new_session=os.name == "posix",
    ) as process:  # fmt: skip
        try:
            yield
        finally:
            kill(process)  # and the forms


def compile_one(name, rows):
    """Let a contestant get ready, and go."""
    start, contestant = time.monotonic(), Contestant("steps", name, rows)
    try:
        contestant.hear(LONGEST)
        said = f"compiled in {time.monotonic() - start:.0f} s"
    except (ContestantError, TimeoutError) as error:  # the race will say so too
        said = error
    finally:
        contestant.stop()
    # With its end in one piece: others print at the same time, and lines would run together.
    print(f"{name}, {rows} rows: {said}\n", end="", flush=True)


def main():
    if os.name == "posix":
        os.nice(19)  # what runs beside this comes first
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda form: compile_one(*form), json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
