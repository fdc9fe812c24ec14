"""The shape of a model, and its parameters: named views into one flat buffer.

A GPTConfig says how large a model is, and by name of which parts it is made; parameter_shapes
says what numbers that takes. All of them lie in one buffer, those that weight decay pulls on
first, and gradients lie likewise: so the optimizer, the gradient's norm and the zeroing are one
call each over one array, and a name is only a view of a part of it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from npgpt.errors import UserError

# What there is to choose from; block.py says which layers the names stand for.
NORM_NAMES = ("rmsnorm", "layernorm")
POSITIONS = ("rope", "learned", "none")
MLP_NAMES = ("swiglu", "gelu", "gelu_tanh", "relu", "none")
INITS = ("npgpt", "gpt2")  # how the first weights are drawn: see init_parameters


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model; the defaults are the 40M one, 38.7 million parameters."""

    vocab_size: int = 10_000  # V
    block_size: int = 128  # the largest T: how far the model looks back
    n_layer: int = 8  # L
    n_head: int = 8  # H
    n_kv_head: int | None = None  # G; None means as many as n_head
    n_embd: int = 512  # C
    n_hidden: int = 2048  # F
    rope_theta: float = 10_000.0  # base of RoPE's wavelengths
    rope_factor: float = 1.0  # by which they are stretched: those from rope_stretched tokens on,
    rope_kept: float = 0.0  # not those up to rope_kept tokens, and between the two a part;
    rope_stretched: float = 0.0  # 0 for both: all alike
    norm_eps: float = 1e-5  # in the units of the stream, squared
    tie: bool = True  # one table for wte and lm_head
    padding: int = 0  # rows of it, the last of V, that stand for no token: a round V is faster
    norm: str = "rmsnorm"  # one of NORM_NAMES
    position: str = "rope"  # one of POSITIONS
    mlp: str = "swiglu"  # one of MLP_NAMES
    bias: bool = False  # whether the blocks' matrices, and layernorm, have biases
    qkv_bias: bool = True  # and whether queries, keys and values are among them
    head_bias: bool = False  # whether the output has one
    dropout: float = 0.0  # share of channels dropped in training: see chance.Chance
    attention_dropout: float = 0.0  # share of attention's weights dropped in training
    recompute: bool = False  # whether backward makes each block's cache again: see model.recall

    def __post_init__(self):
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        for name in (
            "vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but it must be at least 1")
        if not 0 <= self.padding < self.vocab_size:
            raise UserError(
                f"padding is {self.padding}, but it must be 0 or more, and less than vocab_size "
                f"{self.vocab_size}"
            )
        for name, known in (("norm", NORM_NAMES), ("position", POSITIONS), ("mlp", MLP_NAMES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(known)}"
                )
        step = 2 if self.position == "rope" else 1  # rope turns pairs of channels
        if self.n_embd % (step * self.n_head):
            raise UserError(
                f"n_embd {self.n_embd} does not split into n_head {self.n_head} heads of an "
                f"{'even' if step == 2 else 'equal'} number of channels: "
                f"choose n_embd as a multiple of {step * self.n_head}"
            )
        if self.n_head % self.n_kv_head:
            raise UserError(
                f"n_kv_head {self.n_kv_head} must divide n_head {self.n_head}: "
                "each key/value head serves the same number of query heads"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(
                    f"{name} is {getattr(self, name)}, but it must be 0 or more, and less than 1"
                )
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, but it must be above 0")
        if self.rope_factor < 1 or not (
            0 < self.rope_kept < self.rope_stretched or self.rope_kept == self.rope_stretched == 0
        ):
            raise UserError(
                f"rope_factor {self.rope_factor}, rope_kept {self.rope_kept} and rope_stretched "
                f"{self.rope_stretched} stretch no wave: the first must be at least 1, and the "
                "second less than the third, or both 0"
            )

    @property
    def rope_stretch(self):
        """What rope_table is to be told of the wavelengths, None if they are as theta says."""
        if self.rope_factor == 1.0:
            return None
        return self.rope_factor, self.rope_kept, self.rope_stretched

    @property
    def num_tokens(self):
        """How many tokens there are: the vocabulary without its padding."""
        return self.vocab_size - self.padding

    @property
    def drops(self):
        """Whether a step of training leaves something to chance."""
        return self.dropout > 0.0 or self.attention_dropout > 0.0

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    @property
    def w_up(self):
        """The name of the MLP's first matrix, which makes gates too if its bend wants them."""
        return "w_gate_up" if self.mlp == "swiglu" else "w_up"


def parameter_shapes(config):
    """Name every parameter: those that weight decay pulls on first, gains and biases last.

    Args:    config, a GPTConfig.
    Returns: (decayed, free), two dicts from name to shape, in the order of the flat buffer.
    """
    C, F, V, D = config.n_embd, config.n_hidden, config.vocab_size, config.head_dim
    H, G = config.n_head, config.n_kv_head
    matrices = {"wqkv": (C, (H + 2 * G) * D), "wo": (H * D, C)}
    norms = {"attn_norm": (C,)}
    if config.mlp != "none":
        matrices |= {config.w_up: (C, 2 * F if config.mlp == "swiglu" else F), "w_down": (F, C)}
        norms |= {"mlp_norm": (C,)}
    biases = {bias_of(name): shape[1:] for name, shape in matrices.items() if config.bias}
    if not config.qkv_bias:
        biases.pop("bqkv", None)
    if config.bias and config.norm == "layernorm":
        biases |= {bias_of(name): shape for name, shape in norms.items()}
    decayed, free = {"wte": (V, C)}, {}
    if config.position == "learned":
        decayed["wpe"] = (config.block_size, C)
    for block in (f"blocks.{i}." for i in range(config.n_layer)):
        decayed |= {block + name: shape for name, shape in matrices.items()}
        free |= {block + name: shape for name, shape in (norms | biases).items()}
    free["norm"] = (C,)
    if "attn_norm_bias" in biases:
        free["norm_bias"] = (C,)
    if not config.tie:
        decayed["lm_head"] = (C, V)
    if config.head_bias:
        free["lm_head_bias"] = (V,)
    return decayed, free


def bias_of(name):
    """The name of the bias that belongs to a matrix or a gain: wqkv → bqkv, norm → norm_bias."""
    return "b" + name[1:] if name.startswith("w") else f"{name}_bias"


def count_parameters(config):
    """The number of parameters, a tied table counted once."""

    def count(n_layer):
        decayed, free = parameter_shapes(replace(config, n_layer=n_layer))
        return sum(map(math.prod, [*decayed.values(), *free.values()]))

    one = count(1)
    return one + (config.n_layer - 1) * (count(2) - one)  # all blocks are alike


class Parameters(dict):
    """Named views into one flat buffer; writing to a view writes to the buffer.

    Args:    config, a GPTConfig; flat, the buffer, of any float or complex dtype and on any
             device, with count_parameters(config) entries.
    Attributes: flat (P,); num_decayed, how many entries at its beginning are weight-decayed.
    Raises:  ValueError if flat has another size.
    """

    def __init__(self, config, flat):
        if flat.shape != (count_parameters(config),):
            raise ValueError(
                f"Parameters: flat has shape {flat.shape}, "
                f"but this GPTConfig needs ({count_parameters(config)},)"
            )
        decayed, free = parameter_shapes(config)
        self.config, self.flat = config, flat
        self.num_decayed = sum(int(np.prod(shape)) for shape in decayed.values())
        start = 0
        for name, shape in {**decayed, **free}.items():
            size = int(np.prod(shape))
            self[name] = flat[start : start + size].reshape(shape)
            start += size

    def block(self, i):
        """The parameters of block i by their short names, as views."""
        prefix = f"blocks.{i}."
        return {k.removeprefix(prefix): w for k, w in self.items() if k.startswith(prefix)}

    def zeros_like(self):
        """Another set of the same shapes, all zeros: the gradients, say."""
        return Parameters(self.config, np.zeros_like(self.flat))


def init_parameters(config, seed, dtype=np.float32, init="npgpt"):
    """Draw the weights at the start of training.

    Gains are 1, biases 0. Matrices are normal with standard deviation 1/(2√C), so that a
    normalised row of C channels has half its size after a matrix. The first scores of
    attention then have the standard deviation 1/4, and all places weigh nearly the same: a
    head should be drawn to a place by what is worth finding there, not by chance. (GPT-2's
    0.02 at C = 768 is 0.55/√C.) Each block adds to the stream twice, so wo and w_down, the
    last matrix of each branch, are drawn smaller by √(2L): the stream at the top then has the
    same size whatever the depth.

    A wte of its own begins at 1/2, for the stream should not forget which token it began as
    while the blocks learn what to add; and its lm_head at 0.02, for a model that has seen
    nothing should say that all tokens are alike: the first loss is near log V. A tied table cannot
    be both. It is drawn at 1/√C, and so are the other matrices: what the blocks add must drown
    the token that the stream began as, or the head will see its own row there, and say that
    token again.
    wpe is drawn like wte: a token's place and its name are worth the same until one has learned.

    With init="gpt2" all is drawn at 0.02, and wo and w_down smaller, as here: so most programs
    begin a GPT-2.

    Args:    config; seed, an int; dtype of the flat buffer; init, one of INITS.
    Returns: Parameters, on the host.
    """
    params = Parameters(config, np.zeros(count_parameters(config), dtype))
    rng = np.random.default_rng([seed, 0])
    usual = config.n_embd**-0.5 if config.tie else 0.5 * config.n_embd**-0.5
    untied = {} if config.tie else {"wte": 0.5, "wpe": 0.5, "lm_head": 0.02}
    if init == "gpt2":
        usual, untied = 0.02, {}
    for name, w in params.items():
        if w.ndim == 1:
            w[...] = 1.0 if name.endswith("norm") else 0.0
        else:
            std = untied.get(name, usual)
            if name.endswith((".wo", ".w_down")):
                std *= (2 * config.n_layer) ** -0.5
            w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
    return params
