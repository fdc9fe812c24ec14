"""Which sources the kernels are compiled from, for the dtypes and sizes that the tests meet."""

import numpy as np

from npgpt.backend.cuda.compile import ELEMENTS, source

FLOAT32 = np.dtype(np.float32)
PLAIN = (
    "rmsnorm.cu", "layernorm.cu", "swiglu.cu", "rope.cu", "elementwise.cu", "block.cu",
    "dropout.cu", "shared_row.cu",
)  # fmt: skip
BENDS = "relu", "gelu", "gelu_tanh"  # of mlp.cu


def variants(dtype, width):
    """A source of each file but attention's, for one type of element.

    Args:    dtype, float32, bfloat16 or float16; width, the elements that a thread takes at once.
    Returns: a list of Sources; those that know only float32 come with it, and the optimizer's with
             the dtype of its shadow.
    """
    sources = [source(name, dtype, WIDTH=width) for name in PLAIN]
    sources += [source("embedding.cu", dtype, WIDTH=width, ID="long long")]
    sources += [source("loss.cu", dtype, WIDTH=width, ID="long long", THREADS=256)]
    for bend in BENDS:
        sources.append(source("mlp.cu", dtype, WIDTH=width, BEND=bend, SLOPE=f"{bend}_slope"))
    if dtype == FLOAT32:
        sources += [source("columns.cu", dtype), source("steps.cu", dtype)]
    else:
        shadow = ELEMENTS[dtype.name]
        sources += [source("optim.cu", FLOAT32, WIDTH=min(width, 4), SHADOW=shadow)]
    return sources


def attention(dtype, width, padded, drops=0):
    """The source of attention in float32 arithmetic, for heads of up to `padded` channels.

    Args:    dtype; width; padded; drops, 1 for the one that drops weights.
    """
    return source("attention.cu", dtype, WIDTH=width, PADDED=padded, DROPS=drops)


def attention_on_tensor_cores(dtype, D, turn=0, drops=0):
    """The source of attention on tensor cores, for heads of D.

    Args:    dtype; D; turn, 1 for the one that has RoPE in it; drops, 1 for the one that drops.
    """
    return source("attention_mma.cu", dtype, WIDTH=8, D=D, TURN=turn, DROPS=drops)
