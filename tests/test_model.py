"""The model as a whole: its size, its layout in memory, its start, and that it can't see ahead.

That its numbers are right is the business of gradcheck and test_torch_parity.py.
"""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from npgpt.block import join_qkv, split_qkv
from npgpt.errors import UserError
from npgpt.layers import cross_entropy_forward
from npgpt.model import (
    MLPS,
    NORMS,
    GPTConfig,
    Parameters,
    backward,
    count_parameters,
    forward,
    init_parameters,
    loss_and_gradients,
    parameter_shapes,
)
from npgpt.optim import AdamW
from npgpt.parameters import MLP_NAMES, NORM_NAMES

SMALL = {"vocab_size": 29, "block_size": 12, "n_layer": 2, "n_embd": 24, "n_hidden": 20}
MODELS = {
    "tied": GPTConfig(**SMALL, n_head=4),
    "untied": GPTConfig(**SMALL, n_head=3, tie=False),
    "grouped": GPTConfig(**SMALL, n_head=4, n_kv_head=2),
    "GPT-2": GPTConfig(
        **SMALL, n_head=4, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True
    ),
    "relu": GPTConfig(
        **SMALL, n_head=8, norm="layernorm", position="learned", mlp="relu", tie=False
    ),
    "attention only": GPTConfig(**SMALL, n_head=4, mlp="none", bias=True),
}
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def random_batch(config, B, T, seed=0):
    """ids and targets (B, T)."""
    return np.random.default_rng(seed).integers(config.vocab_size, size=(2, B, T))


# ---------------------------------------------------------------------------- parameters


def test_the_default_model_has_38_683_136_parameters():
    """Counted by hand: the table, and in each block 4 C² for attention and 3 C·F for the MLP."""
    V, C, F, L = 10_000, 512, 2048, 8
    assert V * C + L * (4 * C * C + 3 * C * F + 2 * C) + C == 38_683_136
    assert count_parameters(GPTConfig()) == 38_683_136
    assert count_parameters(GPTConfig(tie=False)) == 38_683_136 + V * C
    # Two key/value heads in place of eight: wk and wv shrink to a quarter
    assert count_parameters(GPTConfig(n_kv_head=2)) == 38_683_136 - L * 2 * C * C * 3 // 4


def test_parameters_of_other_compositions_by_hand():
    V, T, C, F, L = 50_257, 1024, 768, 3072, 12
    gpt2 = GPTConfig(
        vocab_size=V, block_size=T, n_layer=L, n_head=12, n_embd=C, n_hidden=F,
        norm="layernorm", position="learned", mlp="gelu_tanh", bias=True,
    )  # fmt: skip
    matrices, biases, norms = 4 * C * C + 2 * C * F, 5 * C + F, 4 * C
    assert V * C + T * C + L * (matrices + biases + norms) + 2 * C == 124_439_808  # as published
    assert count_parameters(gpt2) == 124_439_808
    assert count_parameters(replace(gpt2, bias=False)) == 124_439_808 - L * (biases + 2 * C) - C
    assert count_parameters(replace(gpt2, position="none")) == 124_439_808 - T * C
    attention_only = 124_439_808 - L * (2 * C * F + F + C + 2 * C)
    assert count_parameters(replace(gpt2, mlp="none")) == attention_only


def test_every_matrix_has_its_bias_and_no_other():
    decayed, free = parameter_shapes(MODELS["GPT-2"])
    assert [n for n in free if n.startswith("blocks.1.")] == [
        f"blocks.1.{name}"
        for name in ("attn_norm", "mlp_norm", "bqkv", "bo", "b_up", "b_down",
                     "attn_norm_bias", "mlp_norm_bias")
    ]  # fmt: skip
    for name, bias in (("wqkv", "bqkv"), ("wo", "bo"), ("w_up", "b_up"), ("w_down", "b_down")):
        assert free[f"blocks.0.{bias}"] == decayed[f"blocks.0.{name}"][1:]
    assert list(decayed)[:2] == ["wte", "wpe"] and list(free)[-2:] == ["norm", "norm_bias"]
    _, free = parameter_shapes(MODELS["attention only"])  # its rmsnorm has no bias
    assert {n.removeprefix("blocks.0.") for n in free} >= {"bqkv", "bo", "attn_norm"}
    assert not [n for n in free if n.endswith("norm_bias") or "mlp" in n]


@every_model
def test_parameters_are_views_into_one_buffer(config):
    """They fill it without gap or overlap, those that are decayed first."""
    P = count_parameters(config)
    params = Parameters(config, np.arange(P, dtype=np.float64))
    assert all(np.shares_memory(w, params.flat) for w in params.values())
    assert np.array_equal(np.concatenate([w.ravel() for w in params.values()]), params.flat)
    for name, w in params.items():
        assert (np.max(w) < params.num_decayed) == (w.ndim == 2), name
    assert params.num_decayed == sum(w.size for w in params.values() if w.ndim == 2)
    params["norm"][...] = -1.0
    assert np.count_nonzero(params.flat == -1.0) == config.n_embd
    params.flat[...] = 7.0
    assert all(np.all(w == 7.0) for w in params.values())


def test_a_block_is_views_too():
    """block_backward adds to what block(i) hands it; of a copy the sum would be lost."""
    config = MODELS["tied"]
    params = init_parameters(config, 0)
    block = params.block(1)
    assert set(block) == {"wqkv", "wo", "w_gate_up", "w_down", "attn_norm", "mlp_norm"}
    for name, w in block.items():
        assert w.shape == params[f"blocks.1.{name}"].shape
        w += 1.0
        assert np.shares_memory(w, params[f"blocks.1.{name}"])
    assert np.all(params["blocks.1.mlp_norm"] == 2.0) and np.all(params["blocks.0.mlp_norm"] == 1.0)


def test_block_1_is_not_block_10():
    config = GPTConfig(vocab_size=3, block_size=2, n_layer=12, n_head=1, n_embd=2, n_hidden=1)
    params = Parameters(config, np.arange(count_parameters(config), dtype=np.float64))
    assert np.array_equal(params.block(1)["wo"], params["blocks.1.wo"])
    assert np.array_equal(params.block(10)["wo"], params["blocks.10.wo"])
    assert len(params.block(1)) == 6


def test_zeros_like_shares_nothing():
    params = init_parameters(MODELS["tied"], 0)
    grads = params.zeros_like()
    assert grads.keys() == params.keys() and grads.num_decayed == params.num_decayed
    assert grads.flat.dtype == params.flat.dtype and not grads.flat.any()
    assert not np.shares_memory(grads.flat, params.flat)


def test_a_buffer_of_another_size_is_refused():
    for shape in ((5,), (count_parameters(MODELS["tied"]), 1)):
        with pytest.raises(ValueError, match="flat has shape"):
            Parameters(MODELS["tied"], np.zeros(shape))


# ---------------------------------------------------------------------------- the start


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("n_layer", [1, 6])
def test_initial_weights(n_layer, tie):
    """Each matrix has its mean and standard deviation, within five standard errors."""
    config = GPTConfig(
        vocab_size=500, block_size=64, n_layer=n_layer, n_head=4, n_embd=64, n_hidden=96, tie=tie,
        position="learned",
    )  # fmt: skip
    tables = {} if tie else {"wte": 0.5, "wpe": 0.5, "lm_head": 0.02}
    for name, w in init_parameters(config, 1).items():
        if w.ndim == 1:
            assert np.all(w == 1.0), name
            continue
        branches = 2 * n_layer if name.endswith(("wo", "w_down")) else 1
        std = tables.get(name, (1 if tie else 0.5) / math.sqrt(config.n_embd * branches))
        assert abs(np.mean(w, dtype=np.float64)) < 5 * std / math.sqrt(w.size), name
        assert abs(np.std(w, dtype=np.float64) / std - 1) < 5 / math.sqrt(2 * w.size), name


def test_gains_begin_at_1_and_biases_at_0():
    for name, w in init_parameters(MODELS["GPT-2"], 1).items():
        if w.ndim == 1:
            assert np.all(w == float(name.endswith("norm"))), name


def test_the_seed_decides_the_weights():
    config = MODELS["tied"]
    first, again, other = (init_parameters(config, seed).flat for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # float64 starts from the same weights, so runs of both can be compared
    assert np.allclose(init_parameters(config, 3, np.float64).flat, first, rtol=1e-6, atol=0)
    # and no two matrices start alike
    params = init_parameters(config, 3)
    assert not np.array_equal(params["blocks.0.wo"], params["blocks.1.wo"])


@pytest.mark.parametrize("tie", [True, False])
def test_the_first_loss_is_that_of_a_guess(tie):
    """An untied head says nothing yet, so log V. A tied one says noise of variance 1, for which
    E[log Σ exp z] − E[z] = log V + ½. 1% is for chance."""
    config = GPTConfig(
        vocab_size=1000, block_size=32, n_layer=4, n_head=4, n_embd=64, n_hidden=128, tie=tie
    )
    ids, targets = random_batch(config, 4, 32)
    logits, _ = forward(init_parameters(config, 5), ids, config)
    assert float(cross_entropy_forward(logits, targets)[0]) == pytest.approx(
        math.log(1000) + 0.5 * tie, rel=0.01
    )


# ---------------------------------------------------------------------------- forward


@every_model
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_logit_sees_a_later_token(config, dtype):
    """Change one token: before its place every logit stays, bit for bit; from it on they move."""
    B, T = 2, 11
    params = init_parameters(config, 6, dtype)
    params.flat[: params.num_decayed] *= 0.5  # attention that is neither uniform nor one-hot
    ids, _ = random_batch(config, B, T)
    logits, _ = forward(params, ids, config)
    for place in range(T):
        changed = ids.copy()
        changed[0, place] = (changed[0, place] + 1) % config.vocab_size
        after, _ = forward(params, changed, config)
        assert np.array_equal(after[0, :place], logits[0, :place]), place
        assert np.all(np.any(after[0, place:] != logits[0, place:], axis=-1)), place
        assert np.array_equal(after[1], logits[1]), "the other sequence is none of its business"


@every_model
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(config, dtype):
    """One careless np.sqrt, and float32 becomes float64 and half as fast."""
    params = init_parameters(config, 7, dtype)
    grads = params.zeros_like()
    ids, targets = random_batch(config, 2, 5)
    logits, cache = forward(params, ids, config)
    loss = loss_and_gradients(params, grads, ids, targets, config, scale=0.5)
    assert params.flat.dtype == logits.dtype == loss.dtype == grads.flat.dtype == dtype
    assert all(a.dtype == dtype for a in float_arrays(cache))


def float_arrays(cache):
    """All arrays of real numbers in a nest of dicts and tuples."""
    if isinstance(cache, np.ndarray):
        return [cache] if cache.dtype.kind == "f" else []
    if not isinstance(cache, dict | tuple):  # a place, say
        return []
    parts = cache.values() if isinstance(cache, dict) else cache
    return [array for part in parts for array in float_arrays(part)]


class Memory:
    """The least that forward's `past` needs: a length, and layer(i) that appends and returns."""

    def __init__(self):
        self.length, self.kept = 0, {}

    def layer(self, i):
        def extend(k, v):
            if i in self.kept:
                k, v = (np.concatenate(pair, axis=1) for pair in zip(self.kept[i], (k, v)))
            self.kept[i] = k, v
            return k, v

        return extend


@every_model
def test_of_the_last_places_alone_the_scores_are_the_same(config):
    params = init_parameters(config, 8, np.float64)
    ids, _ = random_batch(config, 2, 9)
    whole, _ = forward(params, ids, config)
    some, cache = forward(params, ids, config, last=4)
    assert np.max(np.abs(some - whole[:, -4:])) < 1e-12 * np.max(np.abs(whole))
    assert cache["lm_head"][0].shape[:2] == (2, 4)  # and no others were computed


@every_model
@pytest.mark.parametrize("cuts", [[1] * 9, [4, 1, 4], [9]])
def test_piece_by_piece_with_a_memory_is_all_at_once(config, cuts):
    """To rounding: a product of fewer rows may add its terms in another order."""
    params = init_parameters(config, 8, np.float64)
    params.flat[: params.num_decayed] *= 5.0
    ids, _ = random_batch(config, 2, 9)
    whole, _ = forward(params, ids, config)
    past, pieces = Memory(), []
    for piece in np.split(ids, np.cumsum(cuts)[:-1], axis=1):
        pieces.append(forward(params, piece, config, past)[0])
        past.length += piece.shape[1]
    error = np.max(np.abs(np.concatenate(pieces, axis=1) - whole)) / np.max(np.abs(whole))
    assert error < 1e-12


def test_forward_says_what_is_wrong_with_ids():
    config = MODELS["tied"]
    params = init_parameters(config, 9)
    with pytest.raises(ValueError, match="block_size 12"):
        forward(params, np.zeros((1, 13), int), config)
    with pytest.raises(ValueError, match=r"ids have shape \(5,\)"):
        forward(params, np.zeros(5, int), config)
    with pytest.raises(ValueError, match="float64"):
        forward(params, np.zeros((1, 5)), config)
    with pytest.raises(IndexError):
        forward(params, np.full((1, 5), config.vocab_size), config)
    past = Memory()
    past.length = 10
    with pytest.raises(ValueError, match="after 10 earlier tokens"):
        forward(params, np.zeros((1, 3), int), config, past)
    with pytest.raises(ValueError, match="targets have shape"):
        loss_and_gradients(
            params, params.zeros_like(), np.zeros((1, 5), int), np.zeros((1, 4), int), config
        )


@every_model
def test_split_and_join_undo_each_other(config):
    """And the cut is: all queries, all keys, all values."""
    width = (config.n_head + 2 * config.n_kv_head) * config.head_dim
    qkv = np.random.default_rng(10).standard_normal((2, 3, width))
    q, k, v = split_qkv(qkv, config)
    assert q.shape == (2, 3, config.n_head, config.head_dim)
    assert k.shape == v.shape == (2, 3, config.n_kv_head, config.head_dim)
    assert np.array_equal(join_qkv(q, k, v), qkv)
    assert np.array_equal(q[0, 0].ravel(), qkv[0, 0, : config.n_embd])
    assert np.array_equal(v[0, 0].ravel(), qkv[0, 0, -v[0, 0].size :])


# ---------------------------------------------------------------------------- backward


@every_model
def test_backward_adds(config):
    """A second backward adds to what is there, in every parameter; `=` would forget the first."""
    params = init_parameters(config, 11, np.float64)
    ids, targets = random_batch(config, 2, 7)
    grads = params.zeros_like()
    loss_and_gradients(params, grads, ids, targets, config)
    start = np.random.default_rng(12).standard_normal(grads.flat.shape)
    more = Parameters(config, start.copy())
    loss_and_gradients(params, more, ids, targets, config)
    for name, added in Parameters(config, more.flat - start).items():
        assert np.max(np.abs(added - grads[name])) < 1e-14, name
        assert np.any(grads[name]), name


@every_model
def test_backward_changes_neither_weights_nor_cache(config):
    """So that it can be called twice, and each time gives the same."""
    params = init_parameters(config, 13)
    ids, _ = random_batch(config, 2, 7)
    logits, cache = forward(params, ids, config)
    dlogits = np.random.default_rng(14).standard_normal(logits.shape).astype(np.float32)
    kept = [params.flat.copy(), dlogits.copy(), *(a.copy() for a in float_arrays(cache))]
    first, second = params.zeros_like(), params.zeros_like()
    backward(dlogits, cache, first, config)
    backward(dlogits, cache, second, config)
    assert np.array_equal(first.flat, second.flat)
    for before, after in zip(kept, [params.flat, dlogits, *float_arrays(cache)], strict=True):
        assert np.array_equal(before, after)


def test_what_is_made_again_need_not_be_kept():
    """Of each block only its input: the stream. All else is a view of the weights."""

    def kept(config):
        ids, _ = random_batch(config, 4, 12)
        params = init_parameters(config, 15)
        _, cache = forward(params, ids, config)
        arrays = [a for i in range(config.n_layer) for a in float_arrays(cache[i])]
        return sum(a.nbytes for a in arrays if not np.shares_memory(a, params.flat))

    plain = replace(MODELS["tied"], position="none", n_layer=6)
    stream = 4 * 12 * plain.n_embd * 4
    assert kept(replace(plain, recompute=True)) == 6 * stream
    assert kept(plain) > 6 * 6 * stream


def test_the_loss_is_not_scaled_but_its_gradient_is():
    config = MODELS["tied"]
    params = init_parameters(config, 15, np.float64)
    ids, targets = random_batch(config, 2, 7)
    whole, quarter = params.zeros_like(), params.zeros_like()
    assert loss_and_gradients(params, whole, ids, targets, config) == loss_and_gradients(
        params, quarter, ids, targets, config, scale=0.25
    )
    assert np.allclose(quarter.flat, 0.25 * whole.flat, rtol=1e-12, atol=1e-16)


@every_model
def test_it_learns_one_batch_by_heart(config):
    """The oldest test of all: twelve tokens of noise, forty steps, and no doubt left."""
    params = init_parameters(config, 16)
    grads, adamw = params.zeros_like(), AdamW.for_parameters(params)
    ids, targets = random_batch(config, 2, 6)
    losses = []
    for _ in range(40):
        grads.flat[...] = 0.0
        losses.append(float(loss_and_gradients(params, grads, ids, targets, config)))
        adamw.update(params.flat, grads.flat, 0.01)
    assert losses[0] > 3.0 and losses[-1] < 0.05, (losses[0], losses[-1])


# ---------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_kv_head": 0}, "n_kv_head is 0"),
        ({"n_embd": 0}, "n_embd is 0"),
        ({"n_hidden": 0}, "n_hidden is 0"),
        ({"n_embd": 500}, "n_embd 500"),
        ({"n_embd": 24, "n_head": 8}, "multiple of 16"),  # three channels a head: no RoPE
        ({"n_kv_head": 3}, "n_kv_head 3 must divide n_head 8"),
        ({"n_kv_head": 16}, "n_kv_head 16 must divide n_head 8"),
        ({"n_embd": 20, "n_head": 8, "position": "none"}, "multiple of 8"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm', but it must be one of rmsnorm, layernorm"),
        ({"position": "sinus"}, "position is 'sinus'"),
        ({"mlp": "tanh"}, "mlp is 'tanh'"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"norm_eps": -1e-5}, "norm_eps is -1e-05"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"rope_factor": 0.5}, "rope_factor 0.5"),
        ({"rope_kept": 64.0, "rope_stretched": 16.0}, "stretch no wave"),
        ({"rope_kept": 64.0, "rope_stretched": 64.0}, "stretch no wave"),
    ],
    ids=str,
)
def test_a_wrong_config_is_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says) as error:
        GPTConfig(**wrong)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_three_channels_a_head_will_do_where_none_are_turned():
    assert GPTConfig(n_embd=24, n_head=8, position="learned").head_dim == 3


def test_every_name_stands_for_a_layer():
    assert tuple(NORMS) == NORM_NAMES and tuple(MLPS) == MLP_NAMES


def test_a_config_of_old_has_the_composition_of_old():
    """Checkpoints written before there was a choice name none."""
    old = asdict(GPTConfig())
    for name in ("norm", "position", "mlp", "bias"):
        del old[name]
    assert GPTConfig(**old) == GPTConfig(norm="rmsnorm", position="rope", mlp="swiglu", bias=False)


def test_as_many_key_value_heads_as_heads_unless_said():
    assert GPTConfig().n_kv_head == 8 and GPTConfig(n_kv_head=4).n_kv_head == 4
    assert GPTConfig() == GPTConfig(n_kv_head=8)


@pytest.mark.parametrize("parts", [2, 3, 5, 8, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_head_may_take_some_places_after_the_others(parts, smoothing):
    """The loss too: gradcheck compares gradients only."""
    config = GPTConfig(23, 8, n_layer=1, n_embd=16, n_head=2, n_hidden=12, head_bias=True)
    params = init_parameters(config, seed=2, dtype=np.float64)
    ids, targets = np.random.default_rng(0).integers(0, 23, (2, 3, 8))
    whole, cut = params.zeros_like(), params.zeros_like()
    loss = loss_and_gradients(params, whole, ids, targets, config, 0.5, None, smoothing)
    told = loss_and_gradients(params, cut, ids, targets, config, 0.5, None, smoothing, parts)
    assert told == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(cut.flat, whole.flat, rtol=0, atol=1e-15)
