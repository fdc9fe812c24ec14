"""npgpt against torch: every layer, the whole model, the optimizer, and a training run.

gradcheck shows that each backward is the derivative of its forward. It can't show that the
forward is what the rest of the world means by the name: an attention scaled by 1/D, or a norm
whose eps stands outside the root, has a perfectly right gradient. So here the same numbers go
through npgpt and through torch's own functions, in float64, where the two can only differ by
rounding: some 1e-15, and what a long sum or 100 optimizer steps make of it.

How errors are measured: the largest difference, relative to the largest entry of torch's tensor.
Seen at worst: 2e-14 in the whole model, 9e-14 in RoPE at position 1000 (an angle of 1000 radians
carries the rounding of ω a thousand times), and 5e-12 where a guess is so certain that its loss,
1e-4, is the difference of two numbers near 9. A formula that is wrong is off by far more than
TOLERANCE: eps off by a thousandth fails every test of the model. An absolute bound stands only
where the gradient is truly zero.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="torch is not installed: pip install -e '.[test]'", exc_type=ImportError
)

import torch.nn.functional as F  # noqa: E402
from torch_reference import (  # noqa: E402
    load_parameters,
    parameter_groups,
    read_parameters,
    rotate,
)

from npgpt.layers import (  # noqa: E402
    affine_backward,
    affine_forward,
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_forward,
    dropout_key,
    dropped_attention_backward,
    dropped_attention_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_backward,
    relu_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_backward,
    rope_forward,
    rope_table,
    smooth_cross_entropy_backward,
    smooth_cross_entropy_forward,
    swiglu_backward,
    swiglu_forward,
)
from npgpt.model import (  # noqa: E402
    Chance,
    GPTConfig,
    Parameters,
    backward,
    forward,
    init_parameters,
    loss_and_gradients,
)
from npgpt.optim import AdamW, clip_gradient, cosine_schedule  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-10


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors here are small: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(**pairs):
    """Compare name=(ours, theirs) for each name; -rP shows the errors seen."""
    for name, (ours, theirs) in pairs.items():
        theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
        assert ours.dtype == theirs.dtype == np.float64, f"{name}: {ours.dtype}, {theirs.dtype}"
        assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, torch {theirs.shape}"
        largest = np.max(np.abs(theirs))
        assert largest > 0, f"{name}: torch's is all zeros, and any multiple of it would pass"
        error = float(np.max(np.abs(ours - theirs)) / largest)
        print(f"{name}: {error:.1e}")
        assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


def tensor(x):
    """A copy of x that torch finds a gradient for."""
    return torch.tensor(x, requires_grad=True)


# ---------------------------------------------------------------------------- the layers


@pytest.mark.parametrize(
    "B, T, V, C", [(2, 5, 11, 8), (1, 1, 1, 1), (3, 40, 7, 5), (4, 1, 300, 33)]
)
def test_embedding(B, T, V, C):
    """Where B·T > V tokens repeat, and their gradients must add."""
    rng = np.random.default_rng(0)
    ids, w = rng.integers(V, size=(B, T)), rng.standard_normal((V, C))
    dx = rng.standard_normal((B, T, C))
    x, cache = embedding_forward(ids, w)
    tw = tensor(w)
    tx = F.embedding(torch.tensor(ids), tw)
    tx.backward(torch.tensor(dx))
    check(x=(x, tx), dw=(embedding_backward(dx, cache), tw.grad))


@pytest.mark.parametrize(
    "rows, C, N",
    [((2, 5), 8, 12), ((1,), 1, 1), ((7,), 13, 3), ((3, 4, 5), 31, 65), ((1, 1), 9, 1)],
)
def test_linear(rows, C, N):
    """torch's weights are (out, in), ours (in, out)."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((*rows, C)), rng.standard_normal((C, N))
    dy = rng.standard_normal((*rows, N))
    y, cache = linear_forward(x, w)
    dx, dw = linear_backward(dy, cache)
    tx, tw = tensor(x), tensor(np.ascontiguousarray(w.T))
    ty = F.linear(tx, tw)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(dx, tx.grad), dw=(dw, tw.grad.T))


@pytest.mark.parametrize("rows, C, N", [((2, 5), 8, 12), ((1,), 1, 1), ((3, 4, 5), 31, 65)])
def test_affine(rows, C, N):
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((*rows, C)), rng.standard_normal((C, N)), rng.standard_normal(N)
    dy = rng.standard_normal((*rows, N))
    y, cache = affine_forward(x, w, b)
    dx, dw, db = affine_backward(dy, cache)
    tx, tw, tb = tensor(x), tensor(np.ascontiguousarray(w.T)), tensor(b)
    ty = F.linear(tx, tw, tb)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(dx, tx.grad), dw=(dw, tw.grad.T), db=(db, tb.grad))


@pytest.mark.parametrize("B, T, P, C, first", [(2, 5, 8, 6, 0), (3, 1, 4, 5, 3), (1, 9, 9, 33, 0)])
def test_position(B, T, P, C, first):
    """torch looks the places up, as it does tokens."""
    rng = np.random.default_rng(0)
    x, wpe = rng.standard_normal((B, T, C)), rng.standard_normal((P, C))
    dy = rng.standard_normal((B, T, C))
    y, cache = position_forward(x, wpe, first)
    dx, dwpe = position_backward(dy, cache)
    tx, tw = tensor(x), tensor(wpe)
    ty = tx + F.embedding(torch.arange(first, first + T), tw)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(dx, tx.grad), dwpe=(dwpe, tw.grad))


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])  # at 1e-2 eps decides half of rstd, then all
@pytest.mark.parametrize("rows, C", [((2, 5), 8), ((1,), 1), ((3, 7), 33), ((4, 2, 3), 129)])
def test_rmsnorm(rows, C, scale):
    rng = np.random.default_rng(2)
    x, w = scale * rng.standard_normal((*rows, C)), 1.0 + 0.3 * rng.standard_normal(C)
    dy = rng.standard_normal((*rows, C))
    y, cache = rmsnorm_forward(x, w, 1e-4)
    dx, dw = rmsnorm_backward(dy, cache)
    tx, tw = tensor(x), tensor(w)
    ty = F.rms_norm(tx, (C,), tw, 1e-4)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(dx, tx.grad), dw=(dw, tw.grad))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("rows, C", [((2, 5), 8), ((3, 7), 33), ((4, 2, 3), 129)])
def test_layernorm(rows, C, scale, bias):
    rng = np.random.default_rng(2)
    x, w = scale * rng.standard_normal((*rows, C)) + 0.5, 1.0 + 0.3 * rng.standard_normal(C)
    b = rng.standard_normal(C) if bias else None
    dy = rng.standard_normal((*rows, C))
    y, cache = layernorm_forward(x, w, b, 1e-4)
    dx, dw, db = layernorm_backward(dy, cache)
    tx, tw, tb = tensor(x), tensor(w), tensor(b) if bias else None
    ty = F.layer_norm(tx, (C,), tw, tb, 1e-4)
    ty.backward(torch.tensor(dy))
    pairs = {"y": (y, ty), "dx": (dx, tx.grad), "dw": (dw, tw.grad)}
    check(**pairs, **({"db": (db, tb.grad)} if bias else {}))


@pytest.mark.parametrize("theta", [10_000.0, 100.0])
@pytest.mark.parametrize(
    "B, T, H, D, first",
    [(2, 5, 3, 8, 0), (1, 1, 1, 2, 0), (2, 7, 1, 6, 3), (1, 3, 5, 64, 1021), (3, 33, 2, 10, 1)],
)
def test_rope(B, T, H, D, first, theta):
    """torch has no RoPE: the witness multiplies by complex numbers."""
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((B, T, H, D)), rng.standard_normal((B, T, H, D))
    y, cache = rope_forward(x, *rope_table(first, first + T, D, theta, like=x))
    tx = tensor(x)
    ty = rotate(tx.transpose(1, 2), first, theta).transpose(1, 2)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(rope_backward(dy, cache), tx.grad))


@pytest.mark.parametrize(
    "B, T, S, H, G, D",
    [
        (2, 7, 7, 4, 4, 6),  # T = S is training
        (1, 2, 2, 1, 1, 1),
        (2, 5, 5, 6, 2, 8),  # G < H: grouped heads
        (3, 9, 9, 4, 1, 5),
        (1, 65, 65, 3, 3, 16),
        (2, 3, 11, 4, 2, 6),  # S > T: the keys and values of S − T earlier tokens are kept
        (1, 1, 8, 3, 3, 4),
        (2, 4, 5, 6, 3, 7),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 4.0])  # softmax: broad, and nearly one-hot
def test_attention(B, T, S, H, G, D, scale):
    """T queries with S keys are the last T rows of S queries with S keys: that is torch's side.

    So the mask, the grouping, and which place the first query stands at are all torch's own.
    """
    rng = np.random.default_rng(4)
    whole_q = scale * rng.standard_normal((B, S, H, D))
    k, v = rng.standard_normal((B, S, G, D)), rng.standard_normal((B, S, G, D))
    dy = rng.standard_normal((B, T, H, D))
    y, cache = attention_forward(np.ascontiguousarray(whole_q[:, S - T :]), k, v)
    dq, dk, dv = attention_backward(dy, cache)
    tq, tk, tv = tensor(whole_q), tensor(k), tensor(v)
    heads_first = [t.transpose(1, 2) for t in (tq, tk, tv)]
    ty = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    ty = ty.transpose(1, 2)[:, S - T :]
    ty.backward(torch.tensor(dy))
    tdq = tq.grad[:, S - T :]
    check(y=(y, ty), dq=(dq, tdq), dk=(dk, tk.grad), dv=(dv, tv.grad))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("B, T, S, H, G, D", [(2, 7, 7, 4, 4, 6), (2, 5, 9, 6, 2, 8)])
def test_attention_with_weights_that_are_dropped(B, T, S, H, G, D, rate):
    """Torch is handed the mask that dropout makes of ones, and does all else by itself."""
    rng = np.random.default_rng(7)
    q, dy = rng.standard_normal((2, B, T, H, D))
    k, v = rng.standard_normal((2, B, S, G, D))
    mask = (rate, dropout_key(1, 2), 5)
    y, cache = dropped_attention_forward(q, k, v, *mask)
    dq, dk, dv = dropped_attention_backward(dy, cache)
    tq, tk, tv = tensor(q), tensor(k), tensor(v)
    keys, values = (z.repeat_interleave(H // G, dim=2) for z in (tk, tv))
    scores = torch.einsum("bthd,bshd->bhts", tq, keys) / math.sqrt(D)
    future = torch.ones(T, S, dtype=torch.bool).triu(1 + S - T)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    m, _ = dropout_forward(np.ones((B, H, T, S)), *mask)
    ty = torch.einsum("bhts,bshd->bthd", weights * torch.tensor(m), values)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dq=(dq, tq.grad), dk=(dk, tk.grad), dv=(dv, tv.grad))


def test_attention_of_one_token():
    """With one key its weight is 1 whatever the score: dq and dk are truly zero, y is v."""
    rng = np.random.default_rng(5)
    q, k, v, dy = rng.standard_normal((4, 2, 1, 3, 6))[:, :, :, :, :]
    y, cache = attention_forward(q, k, v)
    dq, dk, dv = attention_backward(dy, cache)
    check(y=(y, v), dv=(dv, dy))
    assert np.max(np.abs(dq)) < 1e-14 and np.max(np.abs(dk)) < 1e-14


@pytest.mark.parametrize("scale", [1.0, 30.0])  # σ: in its bend, and saturated
@pytest.mark.parametrize("rows, F2", [((2, 5), 16), ((1,), 2), ((3, 7), 66), ((4, 2, 3), 130)])
def test_swiglu(rows, F2, scale):
    rng = np.random.default_rng(6)
    x, dy = scale * rng.standard_normal((*rows, F2)), rng.standard_normal((*rows, F2 // 2))
    y, cache = swiglu_forward(x)
    tx = tensor(x)
    gate, up = tx.chunk(2, dim=-1)
    ty = F.silu(gate) * up
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(swiglu_backward(dy, cache), tx.grad))


BENDS = {
    "relu": (relu_forward, relu_backward, F.relu),
    "gelu": (gelu_forward, gelu_backward, F.gelu),
    "gelu_tanh": (
        gelu_tanh_forward,
        gelu_tanh_backward,
        lambda x: F.gelu(x, approximate="tanh"),
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 8.0])  # in the bend, near 0, and both straight ends
@pytest.mark.parametrize("shape", [(2, 5, 16), (1, 2), (4, 2, 3, 65)])
@pytest.mark.parametrize("name", BENDS)
def test_mlp(name, shape, scale):
    ours_forward, ours_backward, theirs = BENDS[name]
    rng = np.random.default_rng(6)
    x, dy = scale * rng.standard_normal(shape), rng.standard_normal(shape)
    y, cache = ours_forward(x)
    tx = tensor(x)
    ty = theirs(tx)
    ty.backward(torch.tensor(dy))
    check(y=(y, ty), dx=(ours_backward(dy, cache), tx.grad))


@pytest.mark.parametrize("name", BENDS)
def test_mlp_at_0_and_where_there_is_no_number(name):
    """At its corner ReLU's slope is 0, as torch has it; and what is not a number stays one."""
    ours_forward, ours_backward, theirs = BENDS[name]
    x = np.array([0.0, np.nan, 1.0])
    y, cache = ours_forward(x)
    dx = ours_backward(np.ones(3), cache)
    tx = tensor(x)
    ty = theirs(tx)
    ty.backward(torch.ones(3, dtype=torch.float64))
    assert np.allclose(y, ty.detach().numpy(), equal_nan=True) and np.isnan(y[1])
    assert np.allclose(dx, tx.grad.numpy(), equal_nan=True)


@pytest.mark.parametrize("scale, dloss", [(1.0, 1.0), (30.0, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("rows, V", [((2, 5), 11), ((1,), 2), ((3, 7), 301), ((9,), 33)])
def test_cross_entropy(rows, V, scale, dloss):
    rng = np.random.default_rng(7)
    logits, targets = scale * rng.standard_normal((*rows, V)), rng.integers(V, size=rows)
    loss, cache = cross_entropy_forward(logits, targets)
    tlogits = tensor(logits)
    tloss = F.cross_entropy(tlogits.reshape(-1, V), torch.tensor(targets).reshape(-1))
    tloss.backward(torch.tensor(dloss, dtype=torch.float64))
    dlogits = cross_entropy_backward(dloss, cache)
    check(loss=(loss, tloss), dlogits=(dlogits, tlogits.grad))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("rows, V, scale", [((2, 5), 11, 1.0), ((1,), 2, 30.0), ((3, 7), 301, 4.0)])
def test_label_smoothing(rows, V, scale, smoothing):
    rng = np.random.default_rng(7)
    logits, targets = scale * rng.standard_normal((*rows, V)), rng.integers(V, size=rows)
    loss, cache = smooth_cross_entropy_forward(logits, targets, smoothing)
    tlogits = tensor(logits)
    tloss = F.cross_entropy(
        tlogits.reshape(-1, V), torch.tensor(targets).reshape(-1), label_smoothing=smoothing
    )
    tloss.backward(torch.tensor(0.5, dtype=torch.float64))
    dlogits = smooth_cross_entropy_backward(0.5, cache)
    check(loss=(loss, tloss), dlogits=(dlogits, tlogits.grad))


# ---------------------------------------------------------------------------- the whole model

SMALL = {"vocab_size": 37, "block_size": 16, "n_layer": 2, "n_embd": 24, "n_hidden": 20}
MODELS = {
    "tied": GPTConfig(**SMALL, n_head=4),
    "untied": GPTConfig(**SMALL, n_head=4, tie=False),
    "grouped": GPTConfig(**SMALL, n_head=4, n_kv_head=2, rope_theta=100.0),
    "grouped, untied": GPTConfig(**SMALL, n_head=6, n_kv_head=1, norm_eps=0.1, tie=False),
    "GPT-2": GPTConfig(
        **SMALL, n_head=4, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True
    ),
    "GPT-2, no bias, untied": GPTConfig(
        **SMALL, n_head=4, norm="layernorm", position="learned", mlp="gelu", tie=False
    ),
    "relu, odd heads, bias": GPTConfig(
        **SMALL, n_head=8, norm="layernorm", position="learned", mlp="relu", bias=True, tie=False
    ),
    "the lecture's": GPTConfig(
        **SMALL, n_head=8, norm="layernorm", position="learned", mlp="relu", bias=True,
        qkv_bias=False, head_bias=True, tie=False,
    ),
    "tied, a head with a bias": GPTConfig(**SMALL, n_head=4, head_bias=True),
    "Llama with biases": GPTConfig(**SMALL, n_head=4, n_kv_head=2, bias=True),
    "no positions, no MLP": GPTConfig(**SMALL, n_head=4, position="none", mlp="none"),
    "three blocks of one head": GPTConfig(
        vocab_size=5, block_size=9, n_layer=3, n_head=1, n_embd=6, n_hidden=7
    ),
}  # fmt: skip


def wild_parameters(config, seed):
    """Weights far from their start, where attention is not uniform and no gain is 1."""
    params = init_parameters(config, seed, np.float64)
    rng = np.random.default_rng(seed)
    for w in params.values():
        w[...] = 0.4 * rng.standard_normal(w.shape) + (w.ndim == 1)
    return params


@pytest.mark.parametrize("B, T", [(3, 9), (2, 1), (1, 8)])
@pytest.mark.parametrize("name", MODELS)
def test_model(name, B, T):
    """Logits, loss, and the gradient of every parameter."""
    config = MODELS[name]
    params = wild_parameters(config, seed=8)
    ids, targets = np.random.default_rng(9).integers(config.vocab_size, size=(2, B, T))
    logits, cache = forward(params, ids, config)
    loss, loss_cache = cross_entropy_forward(logits, targets)
    grads = params.zeros_like()
    backward(cross_entropy_backward(1.0, loss_cache), cache, grads, config)
    model = load_parameters(params, config)
    tids, ttargets = torch.tensor(ids), torch.tensor(targets)
    tloss = model.loss(tids, ttargets)
    tloss.backward()
    tgrads = read_parameters(model, config, what=lambda p: p.grad)
    pairs = {"logits": (logits, model(tids)), "loss": (loss, tloss)}
    if T == 1:  # the queries and keys of a lone token have no gradient: see above
        q_and_k = (config.n_head + config.n_kv_head) * config.head_dim
        for i in range(config.n_layer):
            wqkv = f"blocks.{i}.wqkv"
            assert np.max(np.abs(grads[wqkv][:, :q_and_k])) < 1e-14
            pairs[f"{wqkv} of v"] = (grads[wqkv][:, q_and_k:], tgrads[wqkv][:, q_and_k:])
    check(**pairs, **{n: (grads[n], tgrads[n]) for n in params})


def masks(config, chance):
    """Dropout for torch, with npgpt's masks: torch multiplies by them, and finds the gradient."""

    def drop(x, layer, place):
        key = dropout_key(chance.seed, chance.step, layer, place)
        rate = config.attention_dropout if place == 2 else config.dropout
        mask, _ = dropout_forward(np.ones(x.shape), rate, key)
        return x * torch.tensor(mask).to(x.dtype)

    return drop


RATES = dict(dropout=0.3), dict(dropout=0.3, attention_dropout=0.4), dict(attention_dropout=0.4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rates", RATES, ids=" and ".join)
@pytest.mark.parametrize("name", ["tied", "GPT-2", "no positions, no MLP"])
def test_model_with_dropout_and_smoothing(name, rates, smoothing):
    config, chance = replace(MODELS[name], **rates), Chance(seed=5, step=6)
    params = wild_parameters(config, seed=8)
    ids, targets = np.random.default_rng(9).integers(config.vocab_size, size=(2, 3, 9))
    grads = params.zeros_like()
    given = {"chance": chance, "smoothing": smoothing}
    loss = loss_and_gradients(params, grads, ids, targets, config, **given)
    model = load_parameters(params, config)
    tids, ttargets = torch.tensor(ids), torch.tensor(targets)
    tloss = model.loss(tids, ttargets, smoothing, masks(config, chance))
    tloss.backward()
    tgrads = read_parameters(model, config, what=lambda p: p.grad)
    check(loss=(loss, tloss), **{n: (grads[n], tgrads[n]) for n in params})


def test_the_reference_carries_weights_there_and_back():
    """Or a weight that both sides leave at its start would agree with itself."""
    for config in MODELS.values():
        params = wild_parameters(config, seed=10)
        there_and_back = read_parameters(load_parameters(params, config), config)
        assert np.array_equal(params.flat, there_and_back.flat)


# ---------------------------------------------------------------------------- training


def markov_text(vocab_size, length, seed):
    """A text with something to learn: after each token come three others, at 70, 20 and 10 %."""
    rng = np.random.default_rng(seed)
    followers = np.stack([rng.permutation(vocab_size)[:3] for _ in range(vocab_size)])
    choices = rng.choice(3, size=length, p=[0.7, 0.2, 0.1])
    text = np.zeros(length, np.int64)
    for i in range(1, length):
        text[i] = followers[text[i - 1], choices[i]]
    return text


def batches(text, steps, B, T, seed):
    """The batches of a run: (steps, B, T) ids and targets."""
    starts = np.random.default_rng(seed).integers(len(text) - T, size=(steps, B))
    windows = text[starts[..., None] + np.arange(T + 1)]  # (steps, B, T + 1)
    return windows[..., :-1], windows[..., 1:]


ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def torch_optimizer(model, max_lr):
    return torch.optim.AdamW(
        parameter_groups(model, ADAMW["weight_decay"]),
        lr=max_lr,
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["eps"],
    )


def torch_schedule(optimizer, warmup, total, min_lr):
    """Linear warm-up from max_lr/warmup, then the cosine, made of torch's own schedules."""
    schedules = torch.optim.lr_scheduler
    grow = schedules.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    fall = schedules.CosineAnnealingLR(optimizer, total - warmup, eta_min=min_lr)
    return schedules.SequentialLR(optimizer, [grow, fall], milestones=[warmup])


@pytest.mark.parametrize("tie", [True, False])
def test_one_hundred_optimizer_steps(tie):
    """Every parameter after each of 100 steps of clipping, schedule and AdamW."""
    config = GPTConfig(**SMALL, n_head=4, n_kv_head=2, tie=tie)
    steps, warmup, max_lr, min_lr = 100, 10, 3e-3, 3e-4
    max_norm = 2.0 if tie else 1.2  # about the middle of the norms on the way
    ids, targets = batches(markov_text(37, 2000, seed=11), steps, B=4, T=12, seed=12)

    params = init_parameters(config, 13, np.float64)
    grads, adamw = params.zeros_like(), AdamW.for_parameters(params, **ADAMW)
    model = load_parameters(params, config)
    optimizer = torch_optimizer(model, max_lr)
    schedule = torch_schedule(optimizer, warmup, steps, min_lr)

    worst, clipped = 0.0, 0
    for step in range(steps):
        grads.flat[...] = 0.0
        loss_and_gradients(params, grads, ids[step], targets[step], config)
        norm = clip_gradient(grads.flat, max_norm)
        adamw.update(params.flat, grads.flat, cosine_schedule(step, warmup, steps, max_lr, min_lr))

        optimizer.zero_grad()
        model.loss(torch.tensor(ids[step]), torch.tensor(targets[step])).backward()
        tnorm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
        optimizer.step()
        schedule.step()

        clipped += norm > max_norm
        assert abs(norm - tnorm) <= TOLERANCE * tnorm, f"step {step}: {norm} and {tnorm}"
        theirs = read_parameters(model, config)
        for name, w in params.items():
            error = np.max(np.abs(w - theirs[name])) / np.max(np.abs(theirs[name]))
            worst = max(worst, float(error))
            assert error <= TOLERANCE, f"step {step}, {name}: relative error {error:.1e}"
    print(f"worst: {worst:.1e}")
    assert 10 <= clipped <= 90, f"{clipped} of 100 steps clipped: both ways must be taken"

    def moment(key):
        return read_parameters(model, config, what=lambda p: optimizer.state[p][key]).flat

    check(m=(adamw.m, moment("exp_avg")), v=(adamw.v, moment("exp_avg_sq")))


@pytest.mark.parametrize("cycle, growth", [(10, 1), (7, 2), (60, 3)])
def test_warm_restarts(cycle, growth):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, cycle, growth, eta_min=1e-5
    )
    ours, theirs = [], []
    for step in range(100):
        ours.append(cosine_schedule(step, 0, 100, 1e-3, 1e-5, cycle, growth))
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    check(lr=(np.array(ours), np.array(theirs)))


RUN = GPTConfig(vocab_size=48, block_size=32, n_layer=2, n_head=4, n_embd=64, n_hidden=128)
WARMUP, MAX_LR, MIN_LR, MAX_NORM = 20, 3e-3, 3e-4, 1.0


def our_losses(params, ids, targets):
    grads, adamw = params.zeros_like(), AdamW.for_parameters(params, **ADAMW)
    losses = []
    for step in range(len(ids)):
        grads.flat[...] = 0.0
        losses.append(loss_and_gradients(params, grads, ids[step], targets[step], RUN))
        clip_gradient(grads.flat, MAX_NORM)
        lr = cosine_schedule(step, WARMUP, len(ids), MAX_LR, MIN_LR)
        adamw.update(params.flat, grads.flat, lr)
    assert params.flat.dtype == adamw.m.dtype == adamw.v.dtype == losses[-1].dtype
    return np.array(losses, np.float64)


def torch_losses(params, ids, targets):
    model = load_parameters(params, RUN)
    optimizer = torch_optimizer(model, MAX_LR)
    schedule = torch_schedule(optimizer, WARMUP, len(ids), MIN_LR)
    losses = []
    for step in range(len(ids)):
        optimizer.zero_grad()
        loss = model.loss(torch.tensor(ids[step]), torch.tensor(targets[step]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses, np.float64)


def test_two_hundred_steps_in_float32():
    """The loss curves of npgpt and of torch lie on one another.

    In float32 every operation rounds, npgpt and torch round in another order, and each step
    starts from what the rounding of the last one left. So neither curve is the true one, and how
    far the two may part depends on the model and the data: it has to be measured. The measure is
    the same run in float64, where npgpt and torch part by 1e-15. torch's own float32 curve
    leaves it by 3.3e-7 to 5.6e-7 at the worst step, npgpt's by 2.4e-7 to 4.5e-7 (six
    runs, from smaller first weights than today's), and
    a loss of 3.5 can only be written to 2.4e-7. The bound is three times torch's own
    distance and one unit in the last place. It is tight: a weight decay of 0.101 in place of
    0.1 leaves the curve by 100 times as much.
    """
    ids, targets = batches(markov_text(48, 20_000, seed=14), 200, B=8, T=32, seed=15)
    single = init_parameters(RUN, seed=16)

    def start(dtype):
        return Parameters(RUN, single.flat.astype(dtype))

    truth = torch_losses(start(np.float64), ids, targets)
    assert np.max(np.abs(our_losses(start(np.float64), ids, targets) - truth)) < TOLERANCE
    ours = np.max(np.abs(our_losses(start(np.float32), ids, targets) - truth))
    theirs = np.max(np.abs(torch_losses(start(np.float32), ids, targets) - truth))
    last = np.mean(truth[-20:])
    print(f"npgpt: {ours:.1e}\ntorch: {theirs:.1e}\nloss: {truth[0]:.3f} to {last:.3f}")
    assert ours <= 3.0 * theirs + np.spacing(np.float32(truth[0]))
    # The run is a run that learns: from log 48 = 3.87 to near the text's entropy, 0.80 nats
    assert truth[0] > 3.4 and last < 1.0
