"""Does this GPU compute what the lecture says? Every layer, the model, and some steps.

Each kernel is given the same inputs as the lecture text in float64, from gradcheck's table and at
larger shapes. In float32 its error may be twice that of the text in float32, plus some
roundings; in bf16 and fp16 one rounding of the result more. It is two where a product is rounded
before its bias is added, and in attention, whose tensor cores are fed with rounded weights. What a
backward is given is the cache of its own forward, so that its error is its own.

On the host only the text is run, and none of a processor's kernels: those compile for a minute.
"""

import contextlib

import numpy as np

from benchmarks.gpu.part import preset, run
from gradcheck.cases import CASES, cases_of
from gradcheck.inputs import (
    biased,
    channels,
    forgetful,
    gates,
    guesses,
    heads,
    masked,
    places,
    rows,
    tokens,
    turned,
    turned_heads,
)
from npgpt import layers
from npgpt.backend import bfloat16, fused, to_host
from npgpt.backend.fused import find_kernel
from npgpt.model import loss_and_dlogits

FLOOR = 16 * 2.0**-24
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # by the name of a dtype
# Whose results are rounded twice.
TWICE = (
    layers.affine_forward, layers.attention_forward, layers.dropped_attention_forward,
    layers.rope_attention_forward,
)  # fmt: skip
PACKAGE = "npgpt.backend.cuda"
LAYERS = sorted({c.layer for c in CASES if c.forward.__module__.startswith("npgpt.layers.")})
LARGER = (
    ("rmsnorm", "preset", rows((8, 128, 512))),
    ("rope", "preset", turned((4, 128, 8, 64))),
    ("attention", "preset", heads(4, 128, 8, 64)),
    ("attention", "T = 300, grouped", heads(2, 300, 8, 64, G=2)),
    ("attention", "one of many", heads(2, 1, 8, 64, S=100)),
    ("rope_attention", "preset", turned_heads(4, 128, 8, 8, 64)),
    ("swiglu", "preset", gates((4, 128, 4096))),
    ("loss", "preset", guesses((4, 128, 10_000))),
    ("loss", "GPT-2's", guesses((2, 30, 50_257))),
    ("embedding", "preset", tokens((8, 128), V=10_000, C=512, used=700)),
    ("linear", "with a bias, GPT-2's", biased((4, 128, 768), (768, 2304))),
    ("layernorm", "GPT-2's", rows((8, 128, 768), bias=True)),
    ("layernorm", "more than a slice", rows((2, 40, 4096), bias=True)),
    ("rmsnorm", "more than a slice", rows((2, 40, 4096))),
    ("position", "GPT-2's", places((4, 128, 768), 1024, start=3)),
    ("mlp", "relu, GPT-2's", channels((4, 128, 3072))),
    ("mlp", "gelu, GPT-2's", channels((4, 128, 3072), 2.0)),
    ("mlp", "gelu_tanh, GPT-2's", channels((4, 128, 3072), 2.0)),
    ("dropout", "GPT-2's", masked((4, 128, 768), 0.1, start=2**33)),
    ("attention_dropout", "GPT-2's", forgetful(heads(2, 128, 12, 64), 0.1, start=2**33)),
    ("loss", "smooth, preset", guesses((4, 128, 10_000), smoothing=0.1)),
)


def larger_cases():
    """Rows of gradcheck's table at the shapes of the preset."""
    for layer, name, make in LARGER:
        rows = cases_of(layer)
        kind = name.partition(",")[0]  # of a layer's functions, where it has several
        like = next((case for case in rows if case.name.partition(",")[0] == kind), rows[0])
        yield like.replace(name=name, note="", make=make)


@contextlib.contextmanager
def text_on_the_host():
    """A context in which arrays of the host have no kernels."""
    kernels = fused.KERNELS.pop(np.ndarray)
    try:
        yield
    finally:
        fused.KERNELS[np.ndarray] = kernels


def text(function):
    return getattr(function, "text", function)


def has_kernel(function):
    return find_kernel(PACKAGE, function) is not None


def across(value, move):
    """A value with every array in it changed: tuples as they are."""
    if isinstance(value, tuple):
        return tuple(across(z, move) for z in value)
    return move(value) if hasattr(value, "dtype") else value


def rounded(dtype):
    """Change arrays of floats, and only them, to a dtype."""
    return lambda z: z.astype(dtype) if z.dtype.kind in "fV" and z.ndim else z


def upload(array, xp):
    """An array on the device; a number stays one."""
    return xp.asarray(array) if isinstance(array, np.ndarray) else array


def host64(value):
    """On the host, and in float64: numbers too."""
    return across(value, lambda z: rounded(np.float64)(np.asarray(to_host(z))))


def relative(result, truth):
    """The largest difference, in units of the largest number that should be there."""
    result, truth = (np.asarray(z, np.float64) for z in (result, truth))
    if result.shape != truth.shape or not np.all(np.isfinite(result)):
        return float("inf")
    return float(np.max(np.abs(result - truth), initial=0.0)
                 / (np.max(np.abs(truth), initial=0.0) or 1.0))  # fmt: skip


def check_case(case, dtype, xp):
    """One row of the table on the GPU.

    Returns: the largest of its errors over what is allowed: 1 is the limit.
    """
    to = rounded(dtype)
    inputs = {n: across(z, to) for n, z in case.inputs().items()}
    device = {n: across(z, lambda a: upload(a, xp)) for n, z in inputs.items()}
    y, cache = case.forward(**device)
    y64 = host64(y)
    dy = across(case.upstream(y64 if np.ndim(y64) else float(y64)), to)
    grads = case.gradients_of(across(dy, lambda a: upload(a, xp)), cache)
    truths = []
    for precision in (np.float64, np.float32):
        of = {n: across(across(z, rounded(np.float64)), rounded(precision))
              for n, z in inputs.items()}  # fmt: skip
        own = across(host64(cache), rounded(precision))
        by_text = case.replace(backward=text(case.backward))
        up = across(across(dy, rounded(np.float64)), rounded(precision))
        truths.append({"y": text(case.forward)(**of)[0], **by_text.gradients_of(up, own)})
    truth, plain = truths
    worst = 0.0
    for name, z in {"y": y, **grads}.items():
        here = host64(z)
        roundings = ROUNDING[np.dtype(dtype).name] * (2 if case.forward in TWICE else 1)
        allowed = roundings + 2.0 * relative(plain[name], truth[name]) + FLOOR
        worst = max(worst, relative(here, truth[name]) / allowed)
    return worst


def dtypes():
    """Those of activations, each with its name."""
    float32, float16 = np.dtype(np.float32), np.dtype(np.float16)
    return ("float32", float32), ("bf16", bfloat16()), ("fp16", float16)


def check_layers(report, xp, larger=True):
    """All rows of the table in float32, and in 16 bits those whose layers have kernels.

    Args:    report; xp; larger, whether the shapes of the preset are tried too.
    """
    more = list(larger_cases()) if larger else []
    for name, dtype in dtypes():
        for layer in LAYERS:
            errors = {}  # by case
            for case in [*cases_of(layer), *(c for c in more if c.layer == layer)]:
                both = has_kernel(case.forward) and has_kernel(case.backward)
                if name == "float32" or both:
                    try:
                        errors[case.name] = check_case(case, dtype, xp)
                    except Exception as error:
                        report.failed(f"{layer}, {name}, {case.name!r}", error)
            if errors:
                worst = max(errors, key=errors.get)
                said = f"{len(errors)} cases, the worst {worst!r}"
                report.add(f"{layer}, {name}: error, of what is allowed ({said})",
                           errors[worst], at_most=1.0)  # fmt: skip


def check_loss_in_place(report, xp, lengths=(331, 10_000, 50_257)):
    """The loss and its gradient by one kernel, which keeps all of a row or its beginning.

    Args:    report; xp; lengths of the rows.
    """
    rng = np.random.default_rng(1)
    for name, dtype in dtypes():
        worst = 0.0
        for V in lengths:
            logits = (2.0 * rng.standard_normal((2, 30, V))).astype(dtype)
            rest = rng.integers(0, V, (2, 30)), 1.0, 0.1
            fast = loss_and_dlogits(xp.asarray(logits), *across(rest, lambda z: upload(z, xp)))
            truth, plain = (
                text(loss_and_dlogits)(logits.astype(precision), *rest)
                for precision in (np.float64, np.float32)
            )
            for z, right, of_text, rounding in zip(fast, truth, plain, (0.0, ROUNDING[dtype.name])):
                allowed = rounding + 2.0 * relative(of_text, right) + FLOOR
                worst = max(worst, relative(host64(z), right) / allowed)
        report.add(f"loss in place, {name}: error, of what is allowed", worst, at_most=1.0)


def check_conversions(report, xp):
    """Is float32 made of, and to, 16 bits as NumPy does it, to the last bit and to infinity?"""
    from npgpt.backend.cuda.elementwise import cast

    for name, dtype in (("bf16", bfloat16()), ("fp16", np.dtype(np.float16))):
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        every = every[np.isfinite(every.astype(np.float32))]
        wide = np.sort(every.astype(np.float32))
        middles = (wide[1:] + (wide[1:] - wide[:-1]) * -0.5).astype(np.float32)
        edges = np.array([65519.9, 65520.0, 1e9, 3.39e38, np.inf], np.float32)
        x = np.concatenate(
            [wide, middles, np.nextafter(middles, np.float32(np.inf)), edges, -edges]
        )
        narrow = to_host(cast(xp.asarray(x), dtype)).view(np.uint16)
        back = to_host(cast(xp.asarray(every), np.float32))
        same = np.array_equal(narrow, x.astype(dtype).view(np.uint16))
        same = same and np.array_equal(back, every.astype(np.float32))
        report.add(f"{name} and back, bit for bit as NumPy", float(same), at_least=1.0)


def model_gradients(config, dtype, xp, rows=2):
    """Loss and gradients of the whole model on the GPU and in float64, on the same weights."""
    from npgpt.model import Parameters, init_parameters, loss_and_gradients

    weights = init_parameters(config, seed=5)
    ids = np.random.default_rng(5).integers(0, config.vocab_size, (rows, config.block_size + 1))
    ids, targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    flat = weights.flat.astype(dtype)
    here = Parameters(config, xp.asarray(flat))
    grads = Parameters(config, xp.zeros(flat.shape, np.float32))
    loss = loss_and_gradients(here, grads, xp.asarray(ids), xp.asarray(targets), config)
    exact = Parameters(config, flat.astype(np.float64))
    true = exact.zeros_like()
    true_loss = loss_and_gradients(exact, true, ids, targets, config)
    apart = np.linalg.norm(to_host(grads.flat) - true.flat) / np.linalg.norm(true.flat)
    return float(to_host(loss)) / float(true_loss) - 1.0, float(apart)


def device_steps(config, dtype, batch, graph=True, seed=5, lr=1e-3, steps=6):
    """Take some steps, and return losses and weights."""
    import cupy

    from npgpt.backend.cuda.runtime import Runtime
    from npgpt.backend.cuda.steps import DeviceSteps, How
    from npgpt.model import Parameters, init_parameters
    from npgpt.optim import AdamW

    params = Parameters(config, cupy.asarray(init_parameters(config, seed).flat))
    how = How(len(batch[0][0]), dtype=dtype, graph=graph)
    optimizer = AdamW.for_parameters(params)
    taker = DeviceSteps(params, params.zeros_like(), optimizer, config, how, Runtime())
    for i in range(steps):
        taker.take(*batch[i % len(batch)], lr)
    return np.array(taker.results()), to_host(params.flat)


def text_steps(config, batch, seed=5, lr=1e-3, steps=6):
    """The same steps by the text, in float64 on the CPU."""
    from npgpt.model import Chance, init_parameters, loss_and_gradients
    from npgpt.optim import AdamW, clip_gradient

    params = init_parameters(config, seed, np.float64)
    grads, optimizer, losses = params.zeros_like(), AdamW.for_parameters(params), []
    for i in range(steps):
        grads.flat[...] = 0.0
        chance = Chance(0, i) if config.drops else None
        loss = loss_and_gradients(params, grads, *batch[i % len(batch)], config, chance=chance)
        losses.append((float(loss), clip_gradient(grads.flat, 1.0)))
        optimizer.update(params.flat, grads.flat, lr)
    return np.array(losses)


def small_model(**parts):
    """A model on which 200 steps in float64 take seconds, and its batches."""
    from npgpt.model import GPTConfig

    config = GPTConfig(
        vocab_size=96, block_size=32, n_layer=2, n_head=2, n_embd=64, n_hidden=96, **parts
    )
    ids = np.random.default_rng(7).integers(0, 96, (8, 8, 33))
    return config, [(b[:, :-1].copy(), b[:, 1:].copy()) for b in ids]


def check_model(report, xp):
    config = preset()
    for name, dtype, bar in (("float32", np.float32, 1e-4), ("bf16", bfloat16(), 3e-2)):
        loss, gradient = model_gradients(config, dtype, xp)
        report.add(f"40M model, {name}: loss, apart from float64", abs(loss), at_most=bar)
        report.add(f"40M model, {name}: gradient, apart from float64", gradient, at_most=bar)


def check_steps(report, xp):
    """200 steps of a Llama; and of what a GPT-2 has, where each step drops something else."""
    gpt2 = dict(norm="layernorm", position="learned", mlp="gelu", bias=True, dropout=0.1,
                attention_dropout=0.1)  # fmt: skip
    for name, parts in (("200 steps", {}), ("200 steps of GPT-2's parts", gpt2)):
        config, batch = small_model(**parts)
        expected = text_steps(config, batch, steps=200)
        for dtype, bar in (("float32", 2e-3), ("tf32", 3e-2), ("fp16", 3e-2), ("bf16", 6e-2)):
            for graph in (False, True):
                title = f"{name}, {dtype}, {'graph' if graph else 'no graph'}"
                try:
                    check_200_steps(report, title, config, dtype, batch, graph, expected, bar)
                except Exception as error:
                    report.failed(title, error)


def check_200_steps(report, title, config, dtype, batch, graph, expected, bar):
    """Two rows: how far the losses are from those expected; whether a second run has their bits."""
    results, weights = device_steps(config, dtype, batch, graph, steps=200)
    apart = np.max(np.abs(results[:, 0] / expected[:, 0] - 1.0))
    report.add(f"{title}: loss, apart from float64", apart, at_most=bar)
    again, same = device_steps(config, dtype, batch, graph, steps=200)
    equal = np.array_equal(weights, same) and np.array_equal(results, again)
    report.add(f"{title}: the same bits again", float(equal), at_least=1.0)


def check_sampling(report, xp):
    """Is a text the same, from a memory of keys and values, and from recorded graphs?"""
    from npgpt.model import Parameters, init_parameters
    from npgpt.sampling import Decoder, generate, make_decoder, sample_rngs

    config, _ = small_model()
    weights = init_parameters(config, 5)
    exact = Parameters(config, weights.flat.astype(np.float64))
    here = Parameters(config, xp.asarray(weights.flat))
    reader, prompt = make_decoder(here, config), np.array([[1, 2, 3]])

    def written(params, decoder):
        ids = generate(params, config, prompt, 40, sample_rngs(0, [0]), 0.0, decoder=decoder)
        return np.array(list(ids))

    expected = written(exact, Decoder(exact, config))
    for again in ("", ", again", ", and again"):  # places that are met twice are recorded
        same = float(np.mean(written(here, reader) == expected))
        report.add(f"40 greedy tokens as by the text{again}", same, at_least=1.0)


def measure(report, wishes):
    import cupy

    for check in (
        check_conversions, check_layers, check_loss_in_place, check_sampling, check_model,
        check_steps,
    ):  # fmt: skip
        try:
            with np.errstate(all="ignore"), text_on_the_host():
                check(report, cupy)
        except Exception as error:
            report.failed(check.__name__, error)


if __name__ == "__main__":
    run("Parity with the lecture text", measure)
