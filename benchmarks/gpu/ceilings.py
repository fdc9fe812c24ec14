"""What this GPU can do at best: products of large matrices, and copying from memory to memory."""

import numpy as np

from benchmarks.gpu.part import Clock, run


def ceilings(clock, report=None):
    """Measure the ceilings.

    Args:    clock; report, to which they are added, or None.
    Returns: dict: FLOP/s of "bf16", "tf32" and "float32", and bytes a second as "copy".
    """
    from npgpt.backend import bfloat16
    from npgpt.backend.cuda.elementwise import cast
    from npgpt.backend.cuda.linear import Products, multiply

    cupy, found = clock.cupy, {}
    # Not of ones or zeros: a GPU that has less to switch runs faster.
    noise = np.random.default_rng(1).standard_normal((2, 8192, 8192), dtype=np.float32)
    for name, dtype, size in (("bf16", bfloat16(), 8192), ("tf32", np.float32, 8192),
                              ("float32", np.float32, 4096)):  # fmt: skip
        try:
            a, b = (cast(cupy.asarray(z[:size, :size]), dtype) for z in noise)
            out = cupy.empty((size, size), dtype)
            Products.tf32 = name == "tf32"
            seconds = clock.seconds(*[lambda a=a, b=b, out=out: multiply(out, a, b)] * 3)
            found[name] = 2 * size**3 / seconds
            if report:
                report.add(f"matrix product, {name}, {size}", found[name] / 1e12, "TFLOP/s")
        except Exception as error:
            if report:
                report.failed(f"matrix product, {name}", error)
    Products.tf32 = False
    source, target = (cupy.ones(1 << 28, np.float32) for _ in "st")
    seconds = clock.seconds(lambda: cupy.copyto(target, source))
    found["copy"] = 2 * source.nbytes / seconds
    if report:
        report.add("copy, read and written", found["copy"] / 1e9, "GB/s")
    return found


def measure(report, wishes):
    from npgpt.backend.cuda.runtime import Runtime

    ceilings(Clock(Runtime()), report)


if __name__ == "__main__":
    run("What the GPU can do at best", measure)
