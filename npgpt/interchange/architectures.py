"""The two shapes of model that everybody knows, Llama and GPT-2, and what they call each weight.

    ours          Llama                          GPT-2
    norm          rmsnorm                        layernorm
    position      rope                           learned
    mlp           swiglu                         gelu, gelu_tanh or relu
    bias          none, or all                   all, but none of the output
    n_kv_head     any that divides n_head        n_head

Everything else about a weight is where it lies. We join what meets the same input: wqkv is
[wq | wk | wv] by columns, w_gate_up is [gate | up]. A Llama of Hugging Face's has five matrices
for those two, and a GPT-2 joins as we do. So a table names for each of theirs the columns of ours,
and both directions, in and out, read the same table. Two more differences:

Matrices are (out, in) there, as in PyTorch, y = x @ Wᵀ, and ours are (in, out). But Hugging Face's
    GPT-2 has them as we do; GGUF's has not.

RoPE pairs the channels j and j + D/2 here and in Hugging Face, and 2j, 2j + 1 in GGUF: there the
    rows that make q and k are permuted within each head. Why that is enough, llama2c.py derives.
"""

import re
from typing import NamedTuple

import numpy as np

from npgpt.errors import UserError
from npgpt.model import Parameters, count_parameters, parameter_shapes
from npgpt.parameters import bias_of

# Ours, which piece of it, Hugging Face's name, GGUF's name: once, and for each block.
LLAMA = [
    ("wte", None, "model.embed_tokens", "token_embd"),
    ("norm", None, "model.norm", "output_norm"),
    ("lm_head", None, "lm_head", "output"),
]
LLAMA_BLOCK = [
    ("attn_norm", None, "input_layernorm", "attn_norm"),
    ("wqkv", "q", "self_attn.q_proj", "attn_q"),
    ("wqkv", "k", "self_attn.k_proj", "attn_k"),
    ("wqkv", "v", "self_attn.v_proj", "attn_v"),
    ("wo", None, "self_attn.o_proj", "attn_output"),
    ("mlp_norm", None, "post_attention_layernorm", "ffn_norm"),
    ("w_gate_up", "gate", "mlp.gate_proj", "ffn_gate"),
    ("w_gate_up", "up", "mlp.up_proj", "ffn_up"),
    ("w_down", None, "mlp.down_proj", "ffn_down"),
]
GPT2 = [
    ("wte", None, "transformer.wte", "token_embd"),
    ("wpe", None, "transformer.wpe", "position_embd"),
    ("norm", None, "transformer.ln_f", "output_norm"),
    ("lm_head", None, "lm_head", "output"),
]
GPT2_BLOCK = [
    ("attn_norm", None, "ln_1", "attn_norm"),
    ("wqkv", None, "attn.c_attn", "attn_qkv"),
    ("wo", None, "attn.c_proj", "attn_output"),
    ("mlp_norm", None, "ln_2", "ffn_norm"),
    ("w_up", None, "mlp.c_fc", "ffn_up"),
    ("w_down", None, "mlp.c_proj", "ffn_down"),
]
TABLES = {
    "llama": (LLAMA, LLAMA_BLOCK, "model.layers.{}.", "blk.{}."),
    "gpt2": (GPT2, GPT2_BLOCK, "transformer.h.{}.", "blk.{}."),
}
# Tensors of theirs that hold nothing learned.
KNOWN_CONSTANTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "rope_freqs.weight")


class Part(NamedTuple):
    """One tensor of theirs, and where it lies in ours."""

    name: str  # theirs
    ours: str  # the parameter
    columns: slice  # of its last axis
    shape: tuple  # theirs
    turned: bool  # theirs is (out, in)
    heads: int  # the rows of so many heads are permuted; 0 for none

    def take(self, params):
        """Their array, of our parameters; zeros for a bias that we don't have."""
        if self.ours not in params:
            return np.zeros(self.shape, np.float32)
        w = params[self.ours][..., self.columns]
        return _permuted(w.T if self.turned else w, self.heads, back=False)

    def put(self, params, array):
        """Write their array into our parameters."""
        w = _permuted(array, self.heads, back=True)
        params[self.ours][..., self.columns] = w.T if self.turned else w


def architecture_of(config):
    """Which of the two a model is.

    Returns: "llama" or "gpt2".
    Raises:  UserError, one sentence, if it is neither.
    """
    shape = f"{config.norm}, {config.position} positions, {config.mlp}"
    if config.head_bias:
        raise UserError(
            "the output of this model has a bias, and no Llama's or GPT-2's has: export it with "
            "--format npz"
        )
    if (config.norm, config.position, config.mlp) == ("rmsnorm", "rope", "swiglu"):
        return "llama"
    if config.norm == "layernorm" and config.position == "learned":
        if config.mlp in ("gelu", "gelu_tanh", "relu"):
            if config.n_kv_head == config.n_head:
                return "gpt2"
            shape += f", {config.n_kv_head} key/value heads for {config.n_head} heads"
    raise UserError(
        f"this model ({shape}) is neither a Llama (rmsnorm, rope, swiglu) nor a GPT-2 (layernorm, "
        "learned positions, gelu or relu, as many key/value heads as heads), so other programs "
        "have no name for it: export it with --format npz"
    )


def parts_of(config, gguf):
    """Every tensor of theirs that a model has.

    Args:    config; gguf, whether the names and the order of channels are those of GGUF.
    Returns: a list of Part.
    """
    architecture = architecture_of(config)
    outer, inner, *prefixes = TABLES[architecture]
    decayed, free = parameter_shapes(config)
    shapes = decayed | free
    rows = [(ours, piece, names[gguf]) for ours, piece, *names in outer]
    for i in range(config.n_layer):
        ours_prefix, theirs_prefix = f"blocks.{i}.", prefixes[gguf].format(i)
        for ours, piece, *names in inner:
            rows.append((ours_prefix + ours, piece, theirs_prefix + names[gguf]))
    found = []
    for ours, piece, name in rows:
        if ours not in shapes:  # a tied head
            continue
        columns, heads = _piece(piece, config)
        heads = heads if gguf else 0
        first, last, _ = columns.indices(shapes[ours][-1])
        shape = (*shapes[ours][:-1], last - first)
        as_ours = ours in ("wte", "wpe") or len(shape) == 1  # rows are tokens and places
        if architecture == "gpt2" and not gguf:
            as_ours = ours != "lm_head"
        weight = shape if as_ours else shape[::-1]
        found.append(Part(f"{name}.weight", ours, columns, weight, not as_ours, heads))
        block, dot, short = ours.rpartition(".")
        bias = block + dot + bias_of(short)
        # Where they have a bias and we have none, it is zero: GPT-2 has biases everywhere.
        has = architecture == "gpt2" and ours not in ("wte", "wpe", "lm_head")
        if bias in shapes or has or (config.bias and short == "wqkv"):
            found.append(Part(f"{name}.bias", bias, columns, shape[-1:], False, heads))
    return found


def _piece(piece, config):
    """The columns that a piece of a joined matrix has, and its heads if RoPE turns them."""
    H, G, D, F = config.n_head, config.n_kv_head, config.head_dim, config.n_hidden
    return {
        None: (slice(None), 0),
        "q": (slice(0, H * D), H),
        "k": (slice(H * D, (H + G) * D), G),
        "v": (slice((H + G) * D, None), 0),
        "gate": (slice(0, F), 0),
        "up": (slice(F, None), 0),
    }[piece]


def _permuted(w, heads, back):
    """Reorder the rows of each head: half-split to interleaved, or back."""
    if not heads:
        return w
    half = len(w) // heads // 2
    pairs = (heads, half, 2) if back else (heads, 2, half)
    return np.swapaxes(w.reshape(*pairs, *w.shape[1:]), 1, 2).reshape(w.shape)


def fill(config, tensors, gguf, where):
    """Make our parameters of their tensors.

    Args:    config, whose vocabulary may be smaller than their table of tokens: some have rows
             without a token at its end, which are left out; tensors, a dict from name to
             stored.Tensor; gguf, whose names they are; where, for errors.
    Returns: float32 Parameters on the host.
    Raises:  UserError naming a tensor that is missing, that has another shape than config asks
             for, or that no one asked for.
    """
    if config.n_layer > len(tensors):
        raise UserError(f"{where} claims {config.n_layer:,} layers and has {len(tensors)} tensors")
    rest, found, without = dict(tensors), [], []
    for part in parts_of(config, gguf):
        # Models without a head on top leave the outer prefix out.
        names = [part.name, part.name.partition(".")[2]]
        tensor = next((rest.pop(name) for name in names if name in rest), None)
        if tensor is None and part.name.endswith(".bias"):
            without.append(part.name)  # a zero stays a zero
            continue
        if tensor is None:
            raise UserError(f"{where} has no tensor {part.name}, which its configuration asks for")
        rows = tensor.shape[:1] + part.shape[1:]
        longer = part.ours in ("wte", "wpe", "lm_head") and tensor.shape[:1] > part.shape[:1]
        if tensor.shape != (rows if longer else part.shape):
            raise UserError(
                f"{where}: {tensor.name[:60]!r} has shape {tensor.shape}, "
                f"and its configuration asks for {part.shape}"
            )
        found.append((part, tensor))
    if config.tie:  # some keep the tied table twice
        rest.pop("output.weight" if gguf else "lm_head.weight", None)
    odd = next((name for name in rest if not name.endswith(KNOWN_CONSTANTS)), None)
    if odd is not None:
        raise UserError(f"{where} has a tensor {odd[:60]!r}, which is not supported")
    # Some models have biases on a few matrices only, but then in every block.
    kinds = {re.sub("[0-9]+", "#", part.name) for part, _ in found}
    lost = next((name for name in without if re.sub("[0-9]+", "#", name) in kinds), None)
    if lost is not None:
        raise UserError(f"{where} has no tensor {lost}, though other blocks have one")
    params = Parameters(config, np.zeros(count_parameters(config), np.float32))
    for part, tensor in found:
        part.put(params, tensor.floats()[: part.shape[0]])
    return params
