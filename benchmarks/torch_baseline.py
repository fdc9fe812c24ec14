"""The peer of train_step: the same GPT as one would write it in PyTorch to be fast on a CPU.

As few and as wide products as npgpt has, one for queries, keys and values, and one for gates and
ups; attention by PyTorch's own fused kernel; the tables of RoPE made once; AdamW fused. It is made
of whatever parts the configuration names, and drops what it says while it is in training.
"""

import torch
import torch.nn.functional as F
from torch import nn

from npgpt.layers import rope_table
from npgpt.model import parameter_shapes
from npgpt.parameters import bias_of

BENDS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class BaselineGPT(nn.Module):
    """The GPT of npgpt.model, on weights that are given.

    Args:    config, a GPTConfig; params, npgpt Parameters (float32, on the host), copied;
             smoothing of the targets.
    """

    def __init__(self, config, params, smoothing=0.0):
        super().__init__()
        self.config, self.smoothing = config, smoothing
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): self._parameter(name, w) for name, w in params.items()}
        )
        if config.position != "rope":
            return
        like = params.flat
        tables = rope_table(0, config.block_size, config.head_dim, config.rope_theta, like=like)
        for name, table in zip(("cos", "sin"), tables):
            # (T, D): the same angle for both channels of a pair, as `turn` wants it.
            self.register_buffer(name, torch.from_numpy(table).repeat(1, 2))

    @staticmethod
    def _parameter(name, w):
        """As F.linear wants a matrix: outputs by inputs, which the embedding's table is already."""
        turn = w.ndim == 2 and name not in ("wte", "wpe")
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
        if c.position == "learned":
            x = x + w["wpe"][: ids.shape[1]]
        x = self._drop(x)
        for i in range(c.n_layer):
            block = f"blocks_{i}_"
            x = x + self._drop(self._attention(self._norm(x, block + "attn_norm"), block))
            if c.mlp != "none":
                x = x + self._drop(self._mlp(self._norm(x, block + "mlp_norm"), block))
        x = self._norm(x, "norm")
        head = w["wte"] if c.tie else w["lm_head"]
        logits = F.linear(x, head, self._bias("", "lm_head"))
        return F.cross_entropy(
            logits.view(-1, c.vocab_size), targets.reshape(-1), label_smoothing=self.smoothing
        )

    def _norm(self, x, name):
        gain, eps = self.weights[name], self.config.norm_eps
        if self.config.norm == "layernorm":
            return F.layer_norm(x, gain.shape, gain, self._bias("", name), eps)
        return F.rms_norm(x, gain.shape, gain, eps)

    def _attention(self, x, block):
        c, (B, T, _) = self.config, x.shape
        H, G, D = c.n_head, c.n_kv_head, c.head_dim
        heads = self._linear(x, block, "wqkv").view(B, T, H + 2 * G, D).transpose(1, 2)
        q, k, v = heads.split([H, G, G], 1)
        if c.position == "rope":
            q, k = self._turn(q), self._turn(k)
        rate = c.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=G != H, dropout_p=rate
        )
        return self._linear(y.transpose(1, 2).reshape(B, T, H * D), block, "wo")

    def _mlp(self, x, block):
        c = self.config
        h = self._linear(x, block, c.w_up)
        if c.mlp == "swiglu":
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        else:
            h = BENDS[c.mlp](h)
        return self._linear(h, block, "w_down")

    def _linear(self, x, block, name):
        return F.linear(x, self.weights[block + name], self._bias(block, name))

    def _bias(self, block, name):
        """The bias of a matrix or a gain, None if it has none."""
        name = block + bias_of(name)
        return self.weights[name] if name in self.weights else None

    def _drop(self, x):
        return F.dropout(x, self.config.dropout, self.training)

    def _turn(self, x):
        T, D = x.shape[-2:]
        turned = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
        return x * self.cos[:T] + turned * self.sin[:T]
