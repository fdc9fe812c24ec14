"""The lecture text on another device: no operation mixes host and device, and bits are the same.

No GPU is needed: `fake_device.DeviceArray` refuses what a GPU would refuse.
"""

from dataclasses import replace

import numpy as np
import pytest
from fake_device import DeviceArray, FakeModule

from npgpt.evaluate import evaluate
from npgpt.model import GPTConfig, Parameters, init_parameters, loss_and_gradients
from npgpt.optim import AdamW, clip_gradient
from npgpt.sampling import generate, sample_rngs

CONFIG = GPTConfig(
    vocab_size=19, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=12
)
CONFIGS = [CONFIG] + [
    replace(CONFIG, norm="layernorm", position="learned", mlp=mlp, bias=True)
    for mlp in ("gelu", "gelu_tanh", "relu")
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.mlp)


@pytest.fixture(autouse=True)
def text_everywhere(text_only):
    """What runs on a device without kernels of its own; bits are compared, so on the host too."""
    with text_only():
        yield


def on(xp, config=CONFIG):
    """The same parameters on a device."""
    return Parameters(config, xp.asarray(init_parameters(config, seed=3).flat))


def host(x):
    return x.get() if isinstance(x, DeviceArray) else np.asarray(x)


def train_three_steps(xp, config):
    params = on(xp, config)
    grads, optimizer = params.zeros_like(), AdamW.for_parameters(params)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, 2, 9))
    losses = []
    for batch in ids:
        grads.flat[...] = 0.0
        x, y = xp.asarray(batch[:, :-1]), xp.asarray(batch[:, 1:])
        losses.append(host(loss_and_gradients(params, grads, x, y, config)))
        clip_gradient(grads.flat, 0.1)
        optimizer.update(params.flat, grads.flat, 1e-2)
    return losses, host(params.flat)


@every_config
def test_training_stays_on_the_device(config):
    losses, weights = train_three_steps(FakeModule, config)
    expected_losses, expected_weights = train_three_steps(np, config)
    assert np.array_equal(losses, expected_losses)
    assert np.array_equal(weights, expected_weights)


def test_evaluation_stays_on_the_device():
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 50)
    device = evaluate(on(FakeModule), CONFIG, tokens, 1.0, xp=FakeModule)
    assert device == evaluate(on(np), CONFIG, tokens, 1.0)


@every_config
def test_sampling_stays_on_the_device(config):
    prompt = np.array([[1, 2, 3]])
    texts = [
        np.concatenate(list(generate(on(xp, config), config, prompt, 20, sample_rngs(0, [0]))))
        for xp in (FakeModule, np)
    ]
    assert np.array_equal(*texts)


@pytest.mark.parametrize(
    "operation",
    [
        lambda d, h: d + h,
        lambda d, h: h * d,
        lambda d, h: d @ h,
        lambda d, h: d[h.astype(int)],
        lambda d, h: np.concatenate([d, h]),
        lambda d, h: np.add.at(h, DeviceArray(np.array([0])), d[:1]),
        lambda d, h: np.asarray(d),
        lambda d, h: float(d[0, 0]),
        lambda d, h: h.__setitem__(0, d[0]),
        lambda d, h: d.__setitem__(0, h[0]),
        lambda d, h: [row for row in d],
    ],
)
def test_the_fake_device_refuses_what_a_gpu_refuses(operation):
    with pytest.raises(TypeError):
        operation(DeviceArray(np.ones((2, 2))), np.ones((2, 2)))
