"""The first tensor that went bad is found, whatever was drawn into it afterwards."""

from dataclasses import replace

import numpy as np
import pytest

from npgpt import block, diagnose
from npgpt.diagnose import _as_backward_goes, first_bad_tensor
from npgpt.model import Chance, GPTConfig, init_parameters

LLAMA = GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=8, n_hidden=12)
GPT2 = replace(LLAMA, norm="layernorm", position="learned", mlp="gelu", bias=True, dropout=0.2)


def step(config, seed=0):
    ids, targets = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 2, 6))
    return init_parameters(config, seed), ids, targets


@pytest.mark.parametrize("config", [LLAMA, GPT2, replace(GPT2, recompute=True)])
def test_a_good_step_has_none(config):
    params, ids, targets = step(config)
    assert first_bad_tensor(params, ids, targets, config, Chance(1, 2), 0.1) is None


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_weights_are_named(config):
    params, ids, targets = step(config)
    params["blocks.1.wo"][[2, 5], [3, 0]] = np.nan
    told = first_bad_tensor(params, ids, targets, config)
    assert told == "the weights blocks.1.wo, of 64 numbers 2, the first at (2, 3)"


@pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, recompute=True)])
def test_an_overflow_on_the_way_is_named_by_the_layer_that_saw_it_first(config):
    """Gate and value of 1e20 each are finite, and their product is not."""
    params, ids, targets = step(config)
    params["blocks.1.w_gate_up"][...] = 1e20 * np.sign(params["blocks.1.w_gate_up"])
    told = first_bad_tensor(params, ids, targets, config)
    assert told.startswith("what blocks.1.w_down is given")


def test_the_logits_come_before_the_loss():
    params, ids, targets = step(replace(LLAMA, tie=False))
    params["lm_head"][...] = 3e38
    told = first_bad_tensor(params, ids, targets, params.config)
    assert told.startswith("the logits, of 132 numbers ")


def test_the_step_that_is_taken_again_has_its_masks():
    """What would overflow does not in a step that drops all channels."""
    params, ids, targets = step(replace(LLAMA, dropout=0.999))
    params["blocks.1.w_gate_up"][...] = 1e20 * np.sign(params["blocks.1.w_gate_up"])
    assert first_bad_tensor(params, ids, targets, params.config, Chance(1, 2)) is None
    told = first_bad_tensor(params, ids, targets, params.config)
    assert told.startswith("what blocks.1.w_down is given")


def test_the_step_that_is_taken_again_has_its_smoothing(monkeypatch):
    params, ids, targets = step(LLAMA)
    true = diagnose.smooth_cross_entropy_forward

    def faulty(logits, targets, smoothing):
        loss, cache = true(logits, targets, smoothing)
        return loss + (np.float32(np.nan) if smoothing == 0.1 else 0), cache

    monkeypatch.setattr(diagnose, "smooth_cross_entropy_forward", faulty)
    assert first_bad_tensor(params, ids, targets, LLAMA) is None
    told = first_bad_tensor(params, ids, targets, LLAMA, smoothing=0.1)
    assert told == "the loss, of 1 numbers 1, the first at ()"


def test_a_gradient_is_named_if_all_before_it_is_well(monkeypatch):
    params, ids, targets = step(GPT2)
    true = block.attention_backward

    def faulty(dy, cache):
        dq, dk, dv = true(dy, cache)
        return dq * np.float32(np.inf), dk, dv

    monkeypatch.setattr(block, "attention_backward", faulty)
    told = first_bad_tensor(params, ids, targets, GPT2)
    assert told.startswith("the gradient of blocks.2.wqkv")


def test_every_gradient_is_looked_at():
    for config in (LLAMA, GPT2, replace(LLAMA, bias=True, tie=False), replace(GPT2, mlp="none")):
        params = init_parameters(config, 0)
        assert set(_as_backward_goes(config, params)) == set(params)
