"""NVIDIA's compiler, which needs no GPU, and what it reports."""

import re

from cuda.bindings import nvrtc

from npgpt.backend.cuda.compile import OPTIONS

OF_CUPY = ("-ftz=true",)  # what CuPy 14 adds to our own options


def compiled(text, architecture):
    """Compile CUDA C for a GPU.

    Args:    text; architecture, 90 for an H100.
    Returns: the compiler's report.
    Raises:  RuntimeError if it refuses the text.
    """
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], [])
    options = [f"-arch=sm_{architecture}", *OPTIONS, *OF_CUPY, "--ptxas-options=-v"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    if int(status):
        raise RuntimeError(log.decode())
    return log.decode()


def report(log):
    """What a compiler's report says of each kernel: (registers, bytes spilled, bytes of stack)."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        registers = re.search(r"Used (\d+) registers", part).group(1)
        found[part.split("'")[0]] = int(registers), int(stores) + int(loads), int(stack)
    return found
