"""Training that begins with a trained model: train.py --init-from.

The model brings its shape and its tokenizer; only the text and the manner of learning are chosen.
Its context may be cut: nobody fine-tunes on 8,192 tokens at a time on two cores, and a model that
was trained on T places reads fewer as well. RoPE's angles stay what they were; of a table of
places the first rows are taken.
"""

import os
from dataclasses import replace

import numpy as np

from npgpt.checkpoint import list_checkpoints
from npgpt.errors import UserError
from npgpt.interchange import read_model
from npgpt.model import GPTConfig, Parameters, count_parameters
from npgpt.runs import instead_of, load_run, run_path
from npgpt.tokenizer import load_tokenizer

# What the model decides, by the names of train.py's settings.
DECIDED = (
    "init", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "tie", "norm", "position",
    "mlp", "bias", "qkv_bias", "head_bias", "vocab_size", "pad_vocab_to", "tokenizer",
    "tokenizer_from",
)  # fmt: skip


def read_start(path):
    """Read the model to begin with.

    Args:    path, a run by its name or folder, or whatever npgpt.load reads.
    Returns: config; params, float32 Parameters on the host; tok.
    Raises:  UserError if there is none, or it can't be read.
    """
    from npgpt.training import restored_parameters

    run_dir = run_path(path)
    if not list_checkpoints(run_dir):
        if not os.path.lexists(path):
            raise UserError(f"there is neither a run nor a model {path}: {instead_of(path)}")
        return read_model(path)
    checkpoint = load_run(run_dir, groups=("model",))
    config = GPTConfig(**checkpoint.state["config"])
    return config, restored_parameters(checkpoint), load_tokenizer(checkpoint.path / "tokenizer")


def with_context(config, params, block_size):
    """The same model with a shorter context.

    Args:    config; params; block_size, of which no more is taken than the model has.
    Returns: config, params.
    """
    shorter = replace(config, block_size=min(block_size, config.block_size))
    if "wpe" not in params:
        return shorter, Parameters(shorter, params.flat)
    cut = Parameters(shorter, np.empty(count_parameters(shorter), params.flat.dtype))
    for name, w in cut.items():
        w[...] = params[name][: len(w)]
    return shorter, cut
