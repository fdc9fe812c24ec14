"""The same GPT in ordinary PyTorch, written as someone who never saw npgpt would write it.

A reference is worth as much as it is independent, so nothing here is npgpt's own way of
doing things where torch has another:
    queries, keys, values, gates and ups are five `nn.Linear`s, with (out, in) weights, where
        npgpt cuts two wide (in, out) products: a slip in the order of the cut would show;
    RoPE multiplies by complex numbers of length 1, where npgpt has cosines and sines;
    norm, attention, SiLU, loss and every gradient are torch's own.

Only `load_parameters` and `read_parameters` at the end know both: they carry the weights there,
and the weights or gradients back.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from npgpt.model import Parameters, count_parameters


def rotate(x, first, theta):
    """RoPE: channel j and channel j + D/2 are one complex number, turned by position · ωⱼ.

    Args:    x (B, H, T, D), heads before places as torch's attention wants them; first, the
             position of x[:, :, 0]; theta, the base of the wavelengths.
    """
    T, D = x.shape[-2:]
    omega = theta ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D/2,)
    angle = torch.outer(torch.arange(first, first + T, dtype=torch.float64), omega)  # (T, D/2)
    z = torch.complex(x[..., : D // 2], x[..., D // 2 :])  # (B, H, T, D/2)
    z = z * torch.polar(torch.ones_like(angle), angle).to(z.dtype)  # eⁱᵃⁿᵍˡᵉ
    return torch.cat([z.real, z.imag], dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.n_kv_head, self.theta = config.n_head, config.n_kv_head, config.rope_theta
        self.head_dim = config.n_embd // config.n_head
        self.q_proj = nn.Linear(config.n_embd, self.n_head * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=False)

    def forward(self, x):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        q, k = rotate(q, 0, self.theta), rotate(k, 0, self.theta)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attention(self.input_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TorchGPT(nn.Module):
    """The model of a GPTConfig: model(ids) gives logits, model.loss(ids, targets) their loss."""

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


def parameter_groups(model, weight_decay):
    """The usual two groups for torch.optim.AdamW: matrices are decayed, gains are not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def correspondence(model, config):
    """Say which of torch's parameters make up which of npgpt's.

    Returns: a dict from npgpt's name to (torch parameters, transposed): npgpt's tensor is these
             side by side, along torch's output axis, and transposed if they are an nn.Linear's.
    """
    pairs = {"wte": ([model.embed.weight], False), "norm": ([model.norm.weight], False)}
    for i, block in enumerate(model.blocks):
        a, m = block.attention, block.mlp
        pairs |= {
            f"blocks.{i}.attn_norm": ([block.input_norm.weight], False),
            f"blocks.{i}.wqkv": ([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight], True),
            f"blocks.{i}.wo": ([a.o_proj.weight], True),
            f"blocks.{i}.mlp_norm": ([block.mlp_norm.weight], False),
            f"blocks.{i}.w_gate_up": ([m.gate_proj.weight, m.up_proj.weight], True),
            f"blocks.{i}.w_down": ([m.down_proj.weight], True),
        }
    if not config.tie:
        pairs["lm_head"] = ([model.head.weight], True)
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
