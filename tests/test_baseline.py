"""The benchmarks' PyTorch model must compute what npgpt computes, or they compare two things."""

import numpy as np
import pytest

from benchmarks.preset_model import preset_model
from npgpt.model import GPTConfig, Parameters, count_parameters, loss_and_gradients
from npgpt.plan import LETTERS
from npgpt.presets import PRESETS

pytestmark = pytest.mark.parity

SHAPE = dict(vocab_size=31, block_size=9, n_layer=2, n_head=2, n_embd=12, n_hidden=14)
CONFIGS = {
    "a Llama": GPTConfig(**SHAPE),
    "grouped heads, untied": GPTConfig(**SHAPE, n_kv_head=1, tie=False),
    "a GPT-2": GPTConfig(
        **SHAPE, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True
    ),
    "the lecture's": GPTConfig(
        **SHAPE, tie=False, norm="layernorm", position="learned", mlp="relu", bias=True,
        qkv_bias=False, head_bias=True,
    ),
    "gelu, no biases": GPTConfig(**SHAPE, norm="layernorm", position="none", mlp="gelu"),
    "attention alone": GPTConfig(**SHAPE, mlp="none"),
}  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_the_same(name, smoothing):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_baseline import BaselineGPT

    config, rng = CONFIGS[name], np.random.default_rng(0)
    flat = 0.4 * rng.standard_normal(count_parameters(config))
    params = Parameters(config, flat.astype(np.float32))
    ids, targets = rng.integers(config.vocab_size, size=(2, 3, 9))
    grads = params.zeros_like()
    loss = loss_and_gradients(params, grads, ids, targets, config, smoothing=smoothing)
    peer = BaselineGPT(config, params, smoothing)
    of_peer = peer(torch.from_numpy(ids), torch.from_numpy(targets))
    of_peer.backward()
    assert abs(of_peer.item() - loss) < 1e-5 * loss
    for key, grad in grads.items():
        other = peer.weights[key.replace(".", "_")].grad.numpy()
        other = other if key in ("wte", "wpe") else other.T  # nn.Linear's way round
        np.testing.assert_allclose(other, grad, rtol=0, atol=1e-4 * np.max(np.abs(grad)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_s_model_needs_no_text(name):
    config, smoothing = preset_model(name)
    wanted = LETTERS if name == "shakespeare-char" else PRESETS[name].get("vocab_size", 1280)
    assert config.vocab_size == wanted
    assert smoothing == PRESETS[name].get("label_smoothing", 0.0)
