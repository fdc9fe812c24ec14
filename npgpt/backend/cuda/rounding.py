"""Which rounding a GPU and its kernels can do: 16 bits are not for all that the text knows."""

from npgpt import layers
from npgpt.backend.cuda import attention
from npgpt.backend.cuda.compile import say
from npgpt.backend.fused import find_kernel
from npgpt.block import MLPS, NORMS

LEAST_CAPABILITY = {"tf32": 80, "bf16": 80, "fp16": 75}  # of a GPU that multiplies such numbers


def supported(dtype, capability, config, smoothing=0.0):
    """The rounding that a GPU and its kernels can do, of the one that is wanted.

    Args:    dtype, "float32", "tf32", "bf16", "fp16", or None for the fastest that needs no
             scale; capability of the GPU; config and smoothing, of what is trained.
    Returns: one of the four. A sentence tells if it is not the wanted one.
    """
    wanted = dtype or "bf16"
    if wanted == "float32":
        return wanted
    if capability < LEAST_CAPABILITY[wanted]:
        hint = "; it can do --dtype fp16" if capability >= LEAST_CAPABILITY["fp16"] else ""
        say(
            f"{wanted} needs a GPU of compute capability {LEAST_CAPABILITY[wanted] / 10}, and "
            f"this one has {capability / 10}: training in float32{hint}"
        )
        return "float32"
    lacking = [] if wanted == "tf32" else without_kernels(config, smoothing)
    if lacking:
        instead = "tf32" if capability >= LEAST_CAPABILITY["tf32"] else "float32"
        say(f"there are no {wanted} kernels for {', '.join(lacking)}: training in {instead}")
        return instead
    return wanted


def without_kernels(config, smoothing=0.0):
    """What only the text can compute, which needs float32 at least: a list of names."""
    large = []
    if config.head_dim > attention.MOST_CHANNELS:
        large.append(f"heads of {config.head_dim} channels")
    functions = [*NORMS[config.norm], *(MLPS[config.mlp] or ())]
    if config.position == "rope":
        functions += [layers.rope_forward, layers.rope_backward]
    if config.position == "learned":
        functions += [layers.position_forward, layers.position_backward]
    if config.bias or config.head_bias:
        functions += [layers.affine_forward, layers.affine_backward]
    if config.dropout:
        functions += [layers.dropout_forward, layers.dropout_backward]
    if config.attention_dropout:
        functions += [layers.dropped_attention_forward, layers.dropped_attention_backward]
    if smoothing:
        functions += [layers.smooth_cross_entropy_forward, layers.smooth_cross_entropy_backward]
    return large + [f.__name__ for f in functions if find_kernel("npgpt.backend.cuda", f) is None]
