"""Which sources the kernels are compiled from, for the dtypes and sizes that the tests meet."""

import numpy as np

from npgpt.backend.cuda.compile import source

FLOAT32 = np.dtype(np.float32)
IDS = "loss.cu", "embedding.cu"


def variants(dtype, width):
    """A source of each file but attention's, for one type of element.

    Args:    dtype, float32 or bfloat16; width, how many elements a thread works on at once.
    Returns: a list of Sources; those that know only float32 come with it.
    """
    plain = "rmsnorm.cu", "swiglu.cu", "rope.cu", "elementwise.cu", "model.cu"
    sources = [source(name, dtype, WIDTH=width) for name in plain]
    sources += [source(name, dtype, WIDTH=width, ID="long long") for name in IDS]
    if dtype == FLOAT32:
        sources += [source("optim.cu", dtype, WIDTH=width), source("columns.cu", dtype)]
        sources += [source("steps.cu", dtype)]
    return sources


def attention(dtype, width, padded):
    """The source of attention in float32 arithmetic, for heads of up to `padded` channels."""
    return source("attention.cu", dtype, WIDTH=width, PADDED=padded)


def attention_on_tensor_cores(dtype, D, turn=0):
    """The source of attention on tensor cores, for heads of D; with turn = 1, RoPE is in it."""
    return source("attention_mma.cu", dtype, WIDTH=8, D=D, TURN=turn)
