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
    program, log = _compile(text, f"-arch=sm_{architecture}", "--ptxas-options=-v")
    nvrtc.nvrtcDestroyProgram(program)
    return log


def instructions(text, architecture):
    """The instructions of a text, in PTX: what is left to do is to give them registers.

    Args:    as of compiled.
    """
    program, _ = _compile(text, f"-arch=compute_{architecture}")
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = _room(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode()


def _compile(text, *options):
    """A program, and the compiler's log."""
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], [])
    options = [o.encode() for o in (*options, *OPTIONS, *OF_CUPY)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = _room(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    if int(status):
        nvrtc.nvrtcDestroyProgram(program)
        raise RuntimeError(log.decode())
    return program, log.decode()


def _room(size):
    """Bytes to be written into, and one more: of a single byte Python has one object for all."""
    return bytes(size + 1)


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
