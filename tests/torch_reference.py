"""The same GPT in ordinary PyTorch, written as someone who never saw npgpt would write it.

A reference is worth as much as it is independent, so nothing here is npgpt's own way of
doing things where torch has another:
    queries, keys, values, gates and ups are five `nn.Linear`s, with (out, in) weights, where
        npgpt cuts two wide (in, out) products: a slip in the order of the cut would show;
    RoPE multiplies by complex numbers of length 1, where npgpt has cosines and sines;
    places are looked up in a second nn.Embedding, where npgpt cuts rows out of a table;
    norms, attention, SiLU, GELU, ReLU, loss and every gradient are torch's own.

Only `load_parameters` and `read_parameters` at the end know both: they carry the weights there,
and the weights or gradients back.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from npgpt.model import Parameters, count_parameters


def rotate(x, first, theta, stretch=None):
    """RoPE: channel j and channel j + D/2 are one complex number, turned by position · ωⱼ.

    Args:    x (B, H, T, D), heads before places as torch's attention wants them; first, the
             position of x[:, :, 0]; theta, the base of the wavelengths; stretch, GPTConfig's
             rope_stretch.
    """
    T, D = x.shape[-2:]
    omega = theta ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D/2,)
    if stretch is not None:
        omega = torch.tensor([stretched(float(w), *stretch) for w in omega], dtype=torch.float64)
    angle = torch.outer(torch.arange(first, first + T, dtype=torch.float64), omega)  # (T, D/2)
    z = torch.complex(x[..., : D // 2], x[..., D // 2 :])  # (B, H, T, D/2)
    z = z * torch.polar(torch.ones_like(angle), angle).to(z.dtype)  # eⁱᵃⁿᵍˡᵉ
    return torch.cat([z.real, z.imag], dim=-1)


def stretched(omega, factor, kept, whole):
    """Llama 3's rule for one wave, case by case, as its authors wrote it."""
    length = 2 * torch.pi / omega
    if whole and length < kept:
        return omega
    if length > whole:
        return omega / factor
    smooth = (whole / length - 1) / (whole / kept - 1)
    return (1 - smooth) * omega / factor + smooth * omega


def make_norm(config):
    """The norm that a configuration names, as a module of torch's."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias and config.qkv_bias
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = C // config.n_head
        self.theta = config.rope_theta if config.position == "rope" else None
        self.stretch = config.rope_stretch
        self.forgets = config.attention_dropout > 0
        self.q_proj = nn.Linear(C, self.n_head * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(C, self.n_kv_head * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(C, self.n_kv_head * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.n_head * self.head_dim, C, bias=config.bias)

    def forward(self, x, drop):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        if self.theta is not None:
            q, k = (rotate(x, 0, self.theta, self.stretch) for x in (q, k))
        if self.forgets:  # torch's own function draws its own mask
            k, v = (z.repeat_interleave(self.n_head // self.n_kv_head, dim=1) for z in (k, v))
            scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
            y = drop(weights, 2) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class GatedMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.bend = {
            "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "relu": nn.ReLU(),
        }[config.mlp]  # fmt: skip
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.down_proj(self.bend(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_norm = make_norm(config)
        self.attention = Attention(config)
        if config.mlp != "none":
            self.mlp_norm = make_norm(config)
            self.mlp = GatedMLP(config) if config.mlp == "swiglu" else PlainMLP(config)

    def forward(self, x, drop):
        x = x + drop(self.attention(self.input_norm(x), drop), 0)
        return x + drop(self.mlp(self.mlp_norm(x)), 1) if hasattr(self, "mlp") else x


def keep_all(x, layer, place):
    """No dropout. Torch can't draw npgpt's masks, so who wants dropout gives a function."""
    return x


class TorchGPT(nn.Module):
    """The model of a GPTConfig: model(ids) gives logits, model.loss(ids, targets) their loss.

    drop(x, layer, place), if given, is dropout: layer 0 is the embedding, 1 … L are the blocks,
    place 0 and 1 are a block's attention and MLP, and 2 the weights (B, H, T, T) of attention.
    """

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.places = None
        if config.position == "learned":
            self.places = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tie:
            self.head.weight = self.embed.weight

    def forward(self, ids, drop=keep_all):
        x = self.embed(ids)
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1]))
        x = drop(x, 0, 0)
        for layer, block in enumerate(self.blocks, 1):
            x = block(x, lambda x, place, layer=layer: drop(x, layer, place))
        return self.head(self.norm(x))

    def loss(self, ids, targets, smoothing=0.0, drop=keep_all):
        logits = self(ids, drop).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing)


def parameter_groups(model, weight_decay):
    """The usual two groups for torch.optim.AdamW: matrices are decayed, gains and biases not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def correspondence(model, config):
    """Say which of torch's parameters make up which of npgpt's.

    Returns: a dict from npgpt's name to (torch parameters, transposed): npgpt's tensor is these
             side by side, along torch's output axis, and transposed if they are an nn.Linear's.
    """
    pairs = {"wte": ([model.embed.weight], False)}
    if model.places is not None:
        pairs["wpe"] = ([model.places.weight], False)

    def add_norm(name, norm):
        pairs[name] = ([norm.weight], False)
        if getattr(norm, "bias", None) is not None:
            pairs[f"{name}_bias"] = ([norm.bias], False)

    def add_linear(weight, bias, *linears):
        pairs[weight] = ([linear.weight for linear in linears], True)
        if linears[0].bias is not None:
            pairs[bias] = ([linear.bias for linear in linears], False)

    for i, block in enumerate(model.blocks):
        a, at = block.attention, f"blocks.{i}."
        add_norm(f"{at}attn_norm", block.input_norm)
        add_linear(f"{at}wqkv", f"{at}bqkv", a.q_proj, a.k_proj, a.v_proj)
        add_linear(f"{at}wo", f"{at}bo", a.o_proj)
        if config.mlp == "none":
            continue
        m = block.mlp
        add_norm(f"{at}mlp_norm", block.mlp_norm)
        if config.mlp == "swiglu":
            add_linear(f"{at}w_gate_up", f"{at}b_gate_up", m.gate_proj, m.up_proj)
        else:
            add_linear(f"{at}w_up", f"{at}b_up", m.up_proj)
        add_linear(f"{at}w_down", f"{at}b_down", m.down_proj)
    add_norm("norm", model.norm)
    if not config.tie:
        pairs["lm_head"] = ([model.head.weight], True)
    if config.head_bias:
        pairs["lm_head_bias"] = ([model.head.bias], False)
    return pairs


def load_parameters(params, config):
    """Make a TorchGPT with the weights of params, in the dtype of params."""
    model = TorchGPT(config).to(torch.from_numpy(params.flat[:0]).dtype)
    pairs = correspondence(model, config)
    assert set(pairs) == set(params), "npgpt and torch_reference name different parameters"
    with torch.no_grad():
        for name, (theirs, transposed) in pairs.items():
            ours = torch.from_numpy(params[name].T.copy() if transposed else params[name].copy())
            for p, piece in zip(theirs, ours.split([len(p) for p in theirs]), strict=True):
                p.copy_(piece)
    return model


def read_parameters(model, config, what=lambda p: p):
    """Carry weights back into npgpt's layout; `what` picks from a parameter, p.grad for one."""
    dtype = model.embed.weight.detach().numpy().dtype
    params = Parameters(config, np.full(count_parameters(config), np.nan, dtype))
    for name, (theirs, transposed) in correspondence(model, config).items():
        joined = torch.cat([what(p).detach() for p in theirs]).numpy()
        params[name][...] = joined.T if transposed else joined
    return params
