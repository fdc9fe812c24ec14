"""Does this GPU compute what the lecture says? Every layer, the model, and some steps.

Each kernel is given the same inputs as the lecture text in float64, from gradcheck's table and at
larger shapes. In float32 its error may be twice that of the text in float32, plus some
roundings; in bf16 one rounding of the result more, and in attention, whose tensor cores are fed
with rounded weights, two. What a backward is given is the cache of its own forward, so that its
error is its own.
"""

import numpy as np

from benchmarks.gpu.part import preset, run
from gradcheck.cases import (
    CASES,
    cases_of,
    gates,
    guesses,
    heads,
    rows,
    tokens,
    turned,
    turned_heads,
)
from npgpt.backend import bfloat16, to_host
from npgpt.backend.fused import find_kernel

FLOOR, ROUNDING = 16 * 2.0**-24, 2.0**-8
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
    ("embedding", "preset", tokens((8, 128), V=10_000, C=512, used=700)),
)


def larger_cases():
    """Rows of gradcheck's table at the shapes of the preset."""
    for layer, name, make in LARGER:
        yield cases_of(layer)[0].replace(name=name, note="", make=make)


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
        once = 0.0 if dtype == np.float32 else ROUNDING * (2 if "attention" in case.layer else 1)
        allowed = once + 2.0 * relative(plain[name], truth[name]) + FLOOR
        worst = max(worst, relative(here, truth[name]) / allowed)
    return worst


def check_layers(report, xp, larger=True):
    """All rows of the table in float32, and in bf16 those whose layers have kernels.

    Args:    report; xp; larger, whether the shapes of the preset are tried too.
    """
    more = list(larger_cases()) if larger else []
    for name, dtype in (("float32", np.dtype(np.float32)), ("bf16", bfloat16())):
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
    from npgpt.model import init_parameters, loss_and_gradients
    from npgpt.optim import AdamW, clip_gradient

    params = init_parameters(config, seed, np.float64)
    grads, optimizer, losses = params.zeros_like(), AdamW.for_parameters(params), []
    for i in range(steps):
        grads.flat[...] = 0.0
        loss = loss_and_gradients(params, grads, *batch[i % len(batch)], config)
        losses.append((float(loss), clip_gradient(grads.flat, 1.0)))
        optimizer.update(params.flat, grads.flat, lr)
    return np.array(losses)


def small_model():
    """A model on which 200 steps in float64 take seconds, and its batches."""
    from npgpt.model import GPTConfig

    config = GPTConfig(vocab_size=96, block_size=32, n_layer=2, n_head=2, n_embd=64, n_hidden=96)
    ids = np.random.default_rng(7).integers(0, 96, (8, 8, 33))
    return config, [(b[:, :-1].copy(), b[:, 1:].copy()) for b in ids]


def check_model(report, xp):
    config = preset()
    for name, dtype, bar in (("float32", np.float32, 1e-4), ("bf16", bfloat16(), 3e-2)):
        loss, gradient = model_gradients(config, dtype, xp)
        report.add(f"40M model, {name}: loss, apart from float64", abs(loss), at_most=bar)
        report.add(f"40M model, {name}: gradient, apart from float64", gradient, at_most=bar)


def check_steps(report, xp):
    config, batch = small_model()
    expected = text_steps(config, batch, steps=200)
    for dtype, bar in (("float32", 2e-3), ("tf32", 3e-2), ("bf16", 6e-2)):
        for graph in (False, True):
            way = "graph" if graph else "no graph"
            try:
                results, weights = device_steps(config, dtype, batch, graph, steps=200)
                apart = np.max(np.abs(results[:, 0] / expected[:, 0] - 1.0))
                report.add(f"200 steps, {dtype}, {way}: loss, apart from float64", apart,
                           at_most=bar)  # fmt: skip
                again, same = device_steps(config, dtype, batch, graph, steps=200)
                equal = np.array_equal(weights, same) and np.array_equal(results, again)
                report.add(f"200 steps, {dtype}, {way}: the same bits again", float(equal),
                           at_least=1.0)  # fmt: skip
            except Exception as error:
                report.failed(f"200 steps, {dtype}, {way}", error)


def check_sampling(report, xp):
    from npgpt.model import Parameters, init_parameters
    from npgpt.sampling import generate, make_decoder, sample_rngs

    config, _ = small_model()
    weights = init_parameters(config, 5)
    here = Parameters(config, xp.asarray(weights.flat))
    prompt, texts = np.array([[1, 2, 3]]), []
    for params in (weights, here):
        decoder = make_decoder(params, config)
        texts.append(np.array(list(generate(params, config, prompt, 40, sample_rngs(0, [0]),
                                            temperature=0.0, decoder=decoder))))  # fmt: skip
    report.add("40 greedy tokens as on the CPU", float(np.mean(texts[0] == texts[1])), at_least=1.0)


def measure(report, wishes):
    import cupy

    for check in (check_layers, check_model, check_steps, check_sampling):
        try:
            with np.errstate(all="ignore"):
                check(report, cupy)
        except Exception as error:
            report.failed(check.__name__, error)


if __name__ == "__main__":
    run("Parity with the lecture text", measure)
