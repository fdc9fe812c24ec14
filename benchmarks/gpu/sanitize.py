"""The kernels on small shapes, for NVIDIA's memory checker to watch: __main__ runs it under that.

`compute-sanitizer --tool racecheck python -m benchmarks.gpu.sanitize FILE {}` looks for races.
"""

import numpy as np

from benchmarks.gpu.parity import check_layers, check_loss_in_place, text_on_the_host
from benchmarks.gpu.part import run


def measure(report, wishes):
    import cupy

    # Memory of its own for each array: within a pool, what lies behind one is another's.
    cupy.cuda.set_allocator(None)
    with np.errstate(all="ignore"), text_on_the_host():
        check_layers(report, cupy, larger=False)
        check_loss_in_place(report, cupy)
    report.add("memory checker: no fault up to here", 1.0)


if __name__ == "__main__":
    run("Kernels under the memory checker", measure)
