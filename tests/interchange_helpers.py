"""What the tests of interchange share: small models of every kind, and ways to write them."""

import json
from dataclasses import replace

import numpy as np

from npgpt.interchange.gguf import read_gguf, write_gguf
from npgpt.interchange.gguf_model import save_gguf
from npgpt.interchange.hugging_face import save_folder
from npgpt.model import GPTConfig, Parameters, init_parameters
from npgpt.tokenizer import BPETokenizer

TEXT = "she sells sea shells by the sea shore, 12 shells for 1999 pence; she's the best of them "
TOK = BPETokenizer.train([TEXT * 3], vocab_size=290)
SMALL = dict(vocab_size=290, block_size=16, n_layer=2, n_embd=24, n_hidden=20)
GPT2 = dict(norm="layernorm", position="learned")
CONFIGS = {
    "llama": GPTConfig(**SMALL, n_head=3),
    "rich llama": GPTConfig(
        **SMALL, n_head=6, n_kv_head=2, rope_theta=500.0, norm_eps=3e-6, tie=False, bias=True
    ),
    "llama 3": GPTConfig(
        **SMALL, n_head=2, rope_theta=500.0, rope_factor=8.0, rope_kept=16.0, rope_stretched=64.0
    ),
    "longer llama": GPTConfig(**SMALL, n_head=2, rope_factor=4.0),
    "gpt2": GPTConfig(**SMALL, **GPT2, n_head=3, mlp="gelu_tanh", norm_eps=3e-6, bias=True),
    "plain gpt2": GPTConfig(**SMALL, **GPT2, n_head=3, mlp="gelu", bias=False, tie=False),
}
IDS = np.random.default_rng(3).integers(290, size=(2, 16))


def model_of(config, seed=0):
    """Parameters of which none is a 0 or a 1, where a mistake could hide."""
    params = init_parameters(config, seed)
    params.flat[...] += 0.2 * np.random.default_rng(seed).standard_normal(params.flat.shape)
    return params


def precise(params, config):
    return Parameters(config, params.flat.astype(np.float64))


def folder_of(path, config, tok=TOK):
    path.mkdir()
    save_folder(path, config, model_of(config), tok)
    return path


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def same_config(a, b):
    """Equal, but for biases, which a GPT-2 from elsewhere always has."""
    return replace(a, bias=True) == replace(b, bias=True) if a.norm == "layernorm" else a == b


def edited(folder, file, **values):
    table = json.loads((folder / file).read_text())
    table |= values
    table = {key: value for key, value in table.items() if value != "gone"}
    (folder / file).write_text(json.dumps(table))


STRANGE = [None, True, -1, 0, 7, 2**70, 0.5, 1e300, "x", [1], {"a": 1}]

LLAMA3 = replace(CONFIGS["llama 3"], rope_kept=2048.0, rope_stretched=8192.0, rope_theta=500_000.0)
GGUF_CONFIGS = {
    "llama": CONFIGS["llama"], "rich llama": CONFIGS["rich llama"], "llama 3": LLAMA3,
    "longer llama": CONFIGS["longer llama"], "gpt2": CONFIGS["gpt2"],
}  # fmt: skip


def gguf_of(path, config, tok=TOK):
    save_gguf(path, config, model_of(config), tok, "a name")
    return path


def altered(path, change):
    """Write a GGUF anew, its entries and tensors changed."""
    entries, tensors = read_gguf(path)
    arrays = {name: tensor.floats() for name, tensor in tensors.items()}
    change(entries, arrays)
    entries = {k: v.item() if isinstance(v, np.generic) else v for k, v in entries.items()}
    write_gguf(path, entries, {n: (a.shape, lambda a=a: a) for n, a in arrays.items()})
