"""The peer of train_step: the same GPT as one would write it in PyTorch to be fast on a CPU.

As few and as wide products as npgpt has, one for queries, keys and values, and one for gates and
ups; attention by PyTorch's own fused kernel; the tables of RoPE made once; AdamW fused.
"""

import torch
import torch.nn.functional as F
from torch import nn

from npgpt.layers import rope_table
from npgpt.model import parameter_shapes


class BaselineGPT(nn.Module):
    """The GPT of npgpt.model, on weights that are given.

    Args:    config, a GPTConfig; params, npgpt Parameters (float32, on the host), copied.
    """

    def __init__(self, config, params):
        super().__init__()
        self.config = config
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): self._parameter(name, w) for name, w in params.items()}
        )
        like = params.flat
        tables = rope_table(0, config.block_size, config.head_dim, config.rope_theta, like=like)
        for name, table in zip(("cos", "sin"), tables):
            # (T, D): the same angle for both channels of a pair, as `turn` wants it.
            self.register_buffer(name, torch.from_numpy(table).repeat(1, 2))

    @staticmethod
    def _parameter(name, w):
        """As F.linear wants a matrix: outputs by inputs, which the embedding's table is already."""
        turn = w.ndim == 2 and name != "wte"
        return nn.Parameter(torch.from_numpy(w.T.copy() if turn else w.copy()))

    def optimizer(self, lr):
        """AdamW as npgpt's: decay on matrices only."""
        decayed, free = parameter_shapes(self.config)
        groups = [
            dict(params=[self.weights[n.replace(".", "_")] for n in names], weight_decay=decay)
            for names, decay in ((decayed, 0.1), (free, 0.0))
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def forward(self, ids, targets):
        """The mean loss of ids (B, T) and targets (B, T)."""
        c, w = self.config, self.weights
        x = F.embedding(ids, w["wte"])
        for i in range(c.n_layer):
            h = self._norm(x, w[f"blocks_{i}_attn_norm"])
            x = x + self._attention(h, w[f"blocks_{i}_wqkv"], w[f"blocks_{i}_wo"])
            h = self._norm(x, w[f"blocks_{i}_mlp_norm"])
            gate, up = F.linear(h, w[f"blocks_{i}_w_gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w[f"blocks_{i}_w_down"])
        x = self._norm(x, w["norm"])
        logits = F.linear(x, w["wte"] if c.tie else w["lm_head"])
        return F.cross_entropy(logits.view(-1, c.vocab_size), targets.reshape(-1))

    def _norm(self, x, gain):
        return F.rms_norm(x, gain.shape, gain, self.config.norm_eps)

    def _attention(self, x, wqkv, wo):
        c, (B, T, _) = self.config, x.shape
        H, G, D = c.n_head, c.n_kv_head, c.head_dim
        heads = F.linear(x, wqkv).view(B, T, H + 2 * G, D).transpose(1, 2)
        q, k, v = heads.split([H, G, G], 1)
        q, k = self._turn(q), self._turn(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H)
        return F.linear(y.transpose(1, 2).reshape(B, T, H * D), wo)

    def _turn(self, x):
        T, D = x.shape[-2:]
        turned = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
        return x * self.cos[:T] + turned * self.sin[:T]
