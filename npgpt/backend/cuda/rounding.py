"""Which rounding a GPU and its kernels can do: bf16 is not for all that the text knows."""

from npgpt import layers
from npgpt.backend.cuda import attention, rmsnorm
from npgpt.backend.cuda.compile import say
from npgpt.backend.fused import find_kernel
from npgpt.model import MLPS, NORMS

LEAST_CAPABILITY = 80  # of a GPU that multiplies bfloat16 and TF32


def supported(dtype, capability, config, smoothing=0.0):
    """The rounding that a GPU and its kernels can do, of the one that is wanted.

    Args:    dtype, "float32", "tf32", "bf16", or None for the fastest; capability of the GPU;
             config and smoothing, of what is trained.
    Returns: one of the three. A sentence tells if it is not the wanted one.
    """
    if capability < LEAST_CAPABILITY:
        if dtype != "float32":
            say(
                f"this GPU, of compute capability {capability / 10}, does not multiply bfloat16 or "
                "TF32, which came with 8.0: training in float32"
            )
        return "float32"
    lacking = without_kernels(config, smoothing) if dtype in (None, "bf16") else []
    if lacking:
        say(f"there are no bf16 kernels for {', '.join(lacking)}: training in tf32")
        return "tf32"
    return dtype or "bf16"


def without_kernels(config, smoothing=0.0):
    """What only the text can compute, which needs float32 at least: a list of names."""
    large = []
    if config.head_dim > attention.MOST_CHANNELS:
        large.append(f"heads of {config.head_dim} channels")
    if config.n_embd > rmsnorm.MOST_CHANNELS:
        large.append(f"streams of {config.n_embd} channels")
    functions = [*NORMS[config.norm], *(MLPS[config.mlp] or ())]
    if config.position == "rope":
        functions += [layers.rope_forward, layers.rope_backward]
    if config.position == "learned":
        functions += [layers.position_forward, layers.position_backward]
    if config.bias:
        functions += [layers.affine_forward, layers.affine_backward]
    if config.dropout:
        functions += [layers.dropout_forward, layers.dropout_backward]
    if smoothing:
        functions += [layers.smooth_cross_entropy_forward, layers.smooth_cross_entropy_backward]
    return large + [f.__name__ for f in functions if find_kernel("npgpt.backend.cuda", f) is None]
