"""Each kernel at the shapes of a preset: how long it takes, and how near to its ceiling.

The parts of a Llama are tried at those of tinystories-40m, the parts of a GPT-2 at those of
gpt2-124m; both for 32,768 tokens.

A kernel that reads and writes is held against the copy bandwidth, a matrix product against the
largest one of `ceilings`. Bytes are those of all arrays that go in and come out, once each.
"""

import numpy as np

from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.part import Clock, preset, run
from npgpt import layers, optim
from npgpt.backend import bfloat16
from npgpt.block import linear_backward_into, linear_forward_onto, norm_backward_onto
from npgpt.layers import rope_table
from npgpt.model import loss_and_dlogits

SETS = 3  # of arrays, which take turns, so that nothing is found in the cache
TOKENS = 32_768


def arrays_in(value):
    """All arrays in a value, each once, by identity."""
    if isinstance(value, tuple | list):
        found = {}
        for part in value:
            found |= arrays_in(part)
        return found
    return {id(value): value} if hasattr(value, "nbytes") and value.ndim else {}


def bytes_moved(inputs, outputs):
    """The bytes of all arrays in and out; what was only passed on is counted once."""
    return sum(z.nbytes for z in (arrays_in(inputs) | arrays_in(outputs)).values())


def contenders(config, xp, dtype):
    """For each pair of functions: a name, forward, backward, its arguments and a shape for dy.

    Returns: a list of (name, forward, backward, make), where make() gives the forward's arguments.
    """
    B, T, C, F = TOKENS // config.block_size, config.block_size, config.n_embd, config.n_hidden
    H, G, D, V = config.n_head, config.n_kv_head, config.head_dim, config.vocab_size
    rng, some = np.random.default_rng(1), source_of_noise(xp, dtype)
    noise = some(1)

    def ids(*shape):
        return xp.asarray(rng.integers(0, V, shape))

    def turned():
        return some(B, T, H, D), *rope_table(0, T, D, config.rope_theta, like=noise)

    products = {
        "wqkv": (C, (H + 2 * G) * D), "wo": (H * D, C), "w_gate_up": (C, 2 * F), "w_down": (F, C),
    }  # fmt: skip
    pair = layers.linear_forward, layers.linear_backward
    found = [
        (f"linear {name}", *pair, lambda k=k, n=n: (some(B, T, k), some(k, n)))
        for name, (k, n) in products.items()
    ]
    found.append(("linear lm_head", *pair, lambda: (some(B, T, C), some(V, C).T)))
    found += [
        ("embedding", layers.embedding_forward, layers.embedding_backward,
         lambda: (ids(B, T), some(V, C))),
        ("rmsnorm", layers.rmsnorm_forward, layers.rmsnorm_backward,
         lambda: (some(B, T, C), some(C))),
        ("rope", layers.rope_forward, layers.rope_backward, turned),
        ("attention", layers.attention_forward, layers.attention_backward,
         lambda: (some(B, T, H, D), some(B, T, G, D), some(B, T, G, D))),
        ("rope_attention", layers.rope_attention_forward, layers.rope_attention_backward,
         lambda: (some(B, T, (H + 2 * G) * D), *rope_table(0, T, D, config.rope_theta, noise), H)),
        ("swiglu", layers.swiglu_forward, layers.swiglu_backward, lambda: (some(B, T, 2 * F),)),
        ("cross_entropy", layers.cross_entropy_forward, layers.cross_entropy_backward,
         lambda: (some(B, T, V), ids(B, T))),
        ("smooth_cross_entropy", layers.smooth_cross_entropy_forward,
         layers.smooth_cross_entropy_backward, lambda: (some(B, T, V), ids(B, T), 0.1)),
    ]  # fmt: skip
    return found


def contenders_of_gpt2(config, xp, dtype):
    """The same of what a GPT-2 has, and a Llama has not."""
    B, T, C, F = TOKENS // config.block_size, config.block_size, config.n_embd, config.n_hidden
    H, D, some = config.n_head, config.head_dim, source_of_noise(xp, dtype)
    key = xp.asarray(np.array([12345], np.uint64))  # as a recorded step has it
    affine = layers.affine_forward, layers.affine_backward
    return [
        ("affine wqkv", *affine, lambda: (some(B, T, C), some(C, 3 * C), some(3 * C))),
        ("affine w_down", *affine, lambda: (some(B, T, F), some(F, C), some(C))),
        ("layernorm", layers.layernorm_forward, layers.layernorm_backward,
         lambda: (some(B, T, C), some(C), some(C))),
        ("position", layers.position_forward, layers.position_backward,
         lambda: (some(B, T, C), some(T, C))),
        ("relu", layers.relu_forward, layers.relu_backward, lambda: (some(B, T, F),)),
        ("gelu", layers.gelu_forward, layers.gelu_backward, lambda: (some(B, T, F),)),
        ("gelu_tanh", layers.gelu_tanh_forward, layers.gelu_tanh_backward,
         lambda: (some(B, T, F),)),
        ("dropout", layers.dropout_forward, layers.dropout_backward,
         lambda: (some(B, T, C), 0.1, key)),
        ("attention, T = 1024", layers.attention_forward, layers.attention_backward,
         lambda: [some(B, T, H, D) for _ in "qkv"]),
        ("dropped_attention", layers.dropped_attention_forward, layers.dropped_attention_backward,
         lambda: (*(some(B, T, H, D) for _ in "qkv"), 0.1, key)),
    ]  # fmt: skip


def source_of_noise(xp, dtype):
    """A function from a shape to random numbers, in memory of their own."""
    from npgpt.backend.cuda.elementwise import cast

    rng = np.random.default_rng(1)
    noise = cast(xp.asarray(rng.standard_normal(1 << 24, dtype=np.float32)), dtype)

    def some(*shape):
        size = int(np.prod(shape))
        return xp.tile(noise, -(-size // noise.size))[:size].reshape(shape)

    return some


def flops(name, args):
    """The operations of a forward's matrix products, 0 for all else; a backward has twice as many.

    Attention's are those under the mask.
    """
    if name.startswith(("linear", "affine")):
        x, w, *_ = args
        return 2 * x.size * w.shape[1]
    if name.startswith(("attention", "dropped_attention")):
        B, T, H, D = args[0].shape
        return 2 * B * H * T * (T + 1) * D
    if name == "rope_attention":
        B, T, _ = args[0].shape
        return 2 * B * T * (T + 1) * args[3] * 2 * args[1].shape[1]
    return 0


def time_pair(report, clock, best, contender, some, kind):
    name, forward, backward, make = contender
    sets = [make() for _ in range(SETS)]
    results = [forward(*args) for args in sets]
    work = flops(name, sets[0])
    seconds = clock.seconds(*[lambda a=a: forward(*a) for a in sets])
    tell(report, f"{name} forward", seconds, bytes_moved(sets[0], results[0]), work, best, kind)
    caches = [cache for _, cache in results]
    dys = [some(*y.shape) if y.ndim else 1.0 for y, _ in results]
    del results
    seconds = clock.seconds(*[lambda d=d, c=c: backward(d, c) for d, c in zip(dys, caches)])
    moved = bytes_moved((dys[0], caches[0]), backward(dys[0], caches[0]))
    tell(report, f"{name} backward", seconds, moved, 2 * work, best, kind)


def tell(report, name, seconds, moved, work, best, kind):
    """Three rows: the time; the rate; the share of the ceiling that is nearer."""
    report.add(f"{name}, {kind}", 1e6 * seconds, "µs")
    by_memory, by_work = moved / best["copy"], work / best[kind]
    if by_work > by_memory:
        report.add(f"{name}, {kind}: rate", work / seconds / 1e12, "TFLOP/s")
    else:
        report.add(f"{name}, {kind}: rate", moved / seconds / 1e9, "GB/s")
    report.add(f"{name}, {kind}: of its ceiling", max(by_memory, by_work) / seconds)


def time_loss_in_place(report, clock, best, V, some, xp):
    """The loss, and the logits' gradient in their place, for rows of V.

    From the second round on the logits are what the first has left: no more and no less work.
    """
    rng = np.random.default_rng(1)
    sets = [(some(TOKENS, V), xp.asarray(rng.integers(0, V, TOKENS)), 1.0) for _ in range(SETS)]
    seconds = clock.seconds(*[lambda a=a: loss_and_dlogits(*a) for a in sets])
    logits, targets, _ = sets[0]
    moved = 2 * logits.nbytes + targets.nbytes
    tell(report, f"cross_entropy in place, V = {V}", seconds, moved, 0, best, "bf16")


def time_sums(report, clock, best, config, some, xp):
    """What is added where it is made: a branch to the stream, gradients to gradients."""
    B, T, C, F = TOKENS // config.block_size, config.block_size, config.n_embd, config.n_hidden
    branches, products, norms = [], [], []
    for _ in range(SETS):
        dy, past, g = some(B, T, C), some(B, T, C), xp.zeros((F, C), np.float32)
        branches.append((past, some(B, T, F), some(F, C)))
        _, of_matrix = layers.linear_forward(*branches[-1][1:])
        _, of_norm = layers.rmsnorm_forward(some(B, T, C), some(C))
        products.append((dy, of_matrix, g))
        norms.append((past, dy, of_norm, "rmsnorm"))
    product = 2 * TOKENS * F * C
    for name, function, sets, work in (
        ("linear w_down forward, added", linear_forward_onto, branches, product),
        ("linear w_down backward, added", linear_backward_into, products, 2 * product),
        ("rmsnorm backward, added", norm_backward_onto, norms, 0),
    ):
        seconds = clock.seconds(*[lambda a=a, f=function: f(*a) for a in sets])
        moved = bytes_moved(sets[0], function(*sets[0]))
        tell(report, name, seconds, moved, work, best, "bf16")


def time_optimizer(report, clock, best, config, xp):
    """AdamW with the shadow, and the gradient's norm, over all parameters."""
    from npgpt.backend.cuda.optim import adamw, step_knobs
    from npgpt.model import count_parameters

    P = count_parameters(config)
    p, g, m, v = (xp.full(P, 0.01 * (i + 1), np.float32) for i in range(4))
    shadow, knobs = xp.empty(P, bfloat16()), xp.asarray(step_knobs(3, 1e-3, 0.9, 0.95, 0.1))
    seconds = clock.seconds(lambda: adamw(p, g, m, v, shadow, P, knobs, 0.9, 0.95, 1e-8))
    tell(report, "AdamW", seconds, 30 * P, 0, best, "bf16")
    seconds = clock.seconds(lambda: optim.sum_of_squares(g))
    tell(report, "gradient norm", seconds, 4 * P, 0, best, "bf16")


def measure(report, wishes):
    import cupy

    from npgpt.backend.cuda.runtime import Runtime

    clock, config = Clock(Runtime()), preset()
    best = ceilings(clock)
    clock.runtime.pool.free_all_blocks()
    some, gpt2 = source_of_noise(cupy, bfloat16()), preset("gpt2-124m")
    for contender in [
        *contenders(config, cupy, bfloat16()),
        *contenders_of_gpt2(gpt2, cupy, bfloat16()),
    ]:
        try:
            time_pair(report, clock, best, contender, some, "bf16")
        except Exception as error:
            report.failed(contender[0], error)
        clock.runtime.pool.free_all_blocks()
    for V in (config.vocab_size, gpt2.vocab_size):
        try:
            time_loss_in_place(report, clock, best, V, some, cupy)
        except Exception as error:
            report.failed(f"cross_entropy in place, V = {V}", error)
        clock.runtime.pool.free_all_blocks()
    try:
        time_sums(report, clock, best, config, some, cupy)
    except Exception as error:
        report.failed("sums", error)
    clock.runtime.pool.free_all_blocks()
    try:
        time_optimizer(report, clock, best, config, cupy)
    except Exception as error:
        report.failed("AdamW", error)


if __name__ == "__main__":
    run("Kernels at the shapes of the presets", measure)
