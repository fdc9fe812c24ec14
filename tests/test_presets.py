"""What the presets promise: the systems that they rebuild, number for number."""

from dataclasses import replace

import numpy as np
import pytest
from interchange_helpers import IDS, TOK, model_of
from training_helpers import SMALL, call, quick, weights

from npgpt import export, load
from npgpt.errors import UserError
from npgpt.interchange import read_model
from npgpt.model import (
    Chance,
    GPTConfig,
    count_parameters,
    forward,
    init_parameters,
    parameter_shapes,
)
from npgpt.presets import PRESETS
from npgpt.runs import find_run, load_run
from npgpt.sampling import choose_token, generate, sample_rngs
from npgpt.settings import Settings, with_preset
from npgpt.training import model_config

TOKENS = {"shakespeare-char": 65, "small-gpt": 50_257}
PADDED = GPTConfig(
    vocab_size=320, padding=30, block_size=16, n_layer=2, n_head=3, n_embd=24, n_hidden=20
)
LECTURE = GPTConfig(
    vocab_size=290, block_size=16, n_layer=2, n_head=3, n_embd=24, n_hidden=20, tie=False,
    norm="layernorm", position="learned", mlp="relu", bias=True, qkv_bias=False, head_bias=True,
)  # fmt: skip


def config_of(name):
    s = with_preset(Settings(preset=name), {"preset"})
    return model_config(s, TOKENS.get(name, s.vocab_size))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model(name):
    assert count_parameters(config_of(name)) > 0


# Counted by hand: V·C + T·C, and L blocks of 4 C² + 2 C·F (3 C·F with gates), biases and gains.
@pytest.mark.parametrize("name, parameters, dropped", [
    ("shakespeare-char", 10_788_929, 0.2),  # as Karpathy's
    ("small-gpt", 16_070_144, 0.1),
    ("nanogpt", 17_849_856, 0.0),
    ("gpt2-124m", 124_439_808, 0.0),  # as published
    ("tinystories-40m", 38_683_136, 0.0),
    ("gpt-1b", 1_060_434_432, 0.0),
])  # fmt: skip
def test_parameters_and_dropout_are_those_of_the_originals(name, parameters, dropped):
    config = config_of(name)
    assert count_parameters(config) == parameters
    assert config.dropout == config.attention_dropout == dropped


def test_small_gpt_has_50304_tokens_of_which_gpt2_writes_50257():
    config = config_of("small-gpt")
    assert (config.vocab_size, config.num_tokens) == (50_304, 50_257)


# Biases.


def test_the_lectures_biases():
    _, free = parameter_shapes(LECTURE)
    assert "lm_head_bias" in free and free["lm_head_bias"] == (290,)
    assert not [name for name in free if name.endswith("bqkv")]
    assert {"blocks.0.bo", "blocks.1.b_up", "norm_bias", "blocks.0.attn_norm_bias"} <= set(free)


def test_a_bias_of_the_output_is_added_to_every_row():
    params = model_of(LECTURE)
    logits, _ = forward(params, IDS, LECTURE)
    bias = params["lm_head_bias"].copy()
    params["lm_head_bias"][...] = 0.0
    without, _ = forward(params, IDS, LECTURE)
    np.testing.assert_allclose(logits, without + bias, rtol=0, atol=1e-5)


def test_a_head_with_a_bias_has_no_name_elsewhere(tmp_path):
    from npgpt.interchange.hugging_face import save_folder
    from npgpt.interchange.llama2c import save_llama2c

    with pytest.raises(UserError, match="the output of this model has a bias"):
        save_folder(tmp_path, LECTURE, model_of(LECTURE), TOK)
    llama = GPTConfig(vocab_size=290, n_embd=24, n_head=3, head_bias=True)
    with pytest.raises(UserError):
        save_llama2c(tmp_path / "m.bin", llama, None)


@pytest.mark.parametrize("norm, mlp", [("layernorm", "gelu"), ("rmsnorm", "swiglu")])
def test_missing_biases_of_queries_are_zeros_elsewhere(tmp_path, norm, mlp):
    from npgpt.interchange.hugging_face import save_folder

    position = "learned" if norm == "layernorm" else "rope"
    config = replace(LECTURE, head_bias=False, norm=norm, mlp=mlp, position=position)
    params = model_of(config)
    save_folder(tmp_path, config, params, TOK)
    read, again, _ = read_model(tmp_path)
    assert read == replace(config, qkv_bias=True)
    assert not again["blocks.1.bqkv"].any()
    for name, w in params.items():
        np.testing.assert_array_equal(again[name], w)


# First weights.


@pytest.mark.parametrize("tie", [True, False])
def test_gpt2s_first_weights(tie):
    config = GPTConfig(
        vocab_size=500, block_size=64, n_layer=8, n_head=2, n_embd=64, n_hidden=256, tie=tie,
        norm="layernorm", position="learned", mlp="gelu", bias=True,
    )  # fmt: skip
    for name, w in init_parameters(config, 1, init="gpt2").items():
        if w.ndim == 1:
            assert np.all(w == (1.0 if name.endswith("norm") else 0.0))
        else:
            std = 0.005 if name.endswith((".wo", ".w_down")) else 0.02
            assert np.std(w) == pytest.approx(std, rel=0.05), name


# Vocabularies with padding.


def test_padding_is_never_drawn():
    """Whatever its scores are: here they are the largest by far."""
    params = model_of(PADDED)
    params["wte"][290:] *= 50.0
    logits, _ = forward(params, IDS, PADDED)
    assert logits.shape == (2, 16, 320) and np.mean(np.argmax(logits, -1) >= 290) > 0.9
    for given in (dict(temperature=0.0), dict(), dict(temperature=5.0, top_k=300)):
        rngs = sample_rngs(0, range(2))
        written = np.array(list(generate(params, PADDED, IDS, 40, rngs, **given)))
        assert written.max() < 290
    expected = choose_token(logits[0, -1, :290], sample_rngs(0, [0])[0])
    first = next(generate(params, PADDED, IDS[:1], 1, sample_rngs(0, [0])))
    assert first[0] == expected


def test_without_its_padding_a_model_scores_the_tokens_alike():
    for config in (PADDED, replace(PADDED, tie=False, head_bias=True)):
        params = model_of(config)
        smaller, cut = export.without_padding(config, params)
        assert (smaller.vocab_size, smaller.padding) == (290, 0)
        logits, _ = forward(params, IDS, config)
        fewer, _ = forward(cut, IDS, smaller)
        np.testing.assert_allclose(fewer, logits[..., :290], rtol=0, atol=1e-6)
        assert export.without_padding(smaller, cut) == (smaller, cut)


def test_more_padding_than_vocabulary_is_none():
    with pytest.raises(UserError, match="padding is 320, but it must be"):
        replace(PADDED, padding=320)


def test_a_padded_model_is_trained_resumed_exported_and_read_again(tmp_path, monkeypatch, capsys):
    import generate as program

    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    status, out, err = call(capsys, *SMALL, "--run", "a", "--pad-vocab-to", "64", "--steps", "8")
    assert status == 0, err
    assert "vocabulary 320" in out
    assert call(capsys, "--resume", "--run", "a", "--steps", "12")[0] == 0
    config = GPTConfig(**load_run(find_run("a")).state["config"])
    assert (config.vocab_size, config.num_tokens) == (320, 280)
    wte = weights("runs/a")["model", "wte"]
    export.main(export.Settings("a", "hf", out=tmp_path / "hf"))
    read, params, tok = read_model(tmp_path / "hf")
    assert read.vocab_size == tok.vocab_size == 280
    np.testing.assert_array_equal(params["wte"], wte[:280])
    load.main(load.Settings("hf", run="b"))
    said = []
    for run in "ab":
        capsys.readouterr()
        settings = program.Settings(run=run, prompt="the", max_new_tokens=12, temperature=0.0)
        program.main(settings)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_an_old_checkpoint_has_none_of_this():
    """What a configuration of before says: no padding, no dropped weights, biases as they were."""
    old = dict(vocab_size=9, block_size=4, n_layer=1, n_head=1, n_embd=4, n_hidden=4, bias=True,
               dropout=0.5, tie=False)  # fmt: skip
    config = GPTConfig(**old)
    assert config.num_tokens == 9 and config.attention_dropout == 0.0 and config.drops
    assert "blocks.0.bqkv" in init_parameters(config, 0)
    assert "lm_head_bias" not in init_parameters(config, 0)
    ids = np.zeros((1, 4), int)
    _, cache = forward(init_parameters(config, 0), ids, config, chance=Chance(1, 2))
    assert "dropped_attention" not in cache[0] and cache[0]["wo_dropout"] is not None
