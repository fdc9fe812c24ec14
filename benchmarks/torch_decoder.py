"""The peer of generate: one token through the same GPT, as one would write it in eager PyTorch.

What can be done once is done once: the keys and values lie in arrays made before, the tables of
RoPE too, the weights are (out, in) as F.linear reads them best, and no gradients are kept.
"""

import torch
import torch.nn.functional as F

from npgpt.layers import rope_table


class TorchDecoder:
    """Reads one token of each of B texts, like npgpt.sampling.Decoder.

    Args:    params, float32 npgpt Parameters on the host; config; batch, B; dtype, torch's, of
             weights, keys and values, and all between; device, torch's name of where they are.
    Attributes: length, how many tokens have been read: set it back to forget.
    """

    def __init__(self, params, config, batch, dtype, device="cpu"):
        self.config, self.length, self.device = config, 0, device

        def tensor(array):
            return torch.from_numpy(array.copy()).to(device, dtype)

        self.blocks = [
            {name: tensor(w.T if w.ndim == 2 else w) for name, w in params.block(i).items()}
            for i in range(config.n_layer)
        ]
        self.wte, self.norm = tensor(params["wte"]), tensor(params["norm"])
        self.lm_head = self.wte if config.tie else tensor(params["lm_head"].T)
        cos, sin = rope_table(
            0, config.block_size, config.head_dim, config.rope_theta, like=params["norm"]
        )
        self.cos, self.sin = tensor(cos).repeat(1, 2), tensor(sin).repeat(1, 2)  # (T, D)
        shape = (config.n_layer, batch, config.n_kv_head, config.block_size, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in "kv")

    @torch.inference_mode()
    def read(self, ids):
        """The scores (B, V), a NumPy array, of what follows the tokens ids (B,)."""
        c, t = self.config, self.length
        B, C = len(ids), c.n_embd
        H, G, D = c.n_head, c.n_kv_head, c.head_dim
        cos, sin = self.cos[t], self.sin[t]
        x = self.wte[torch.from_numpy(ids).to(self.device)]  # (B, C)
        for w, keys, values in zip(self.blocks, self.keys, self.values):
            h = F.rms_norm(x, (C,), w["attn_norm"], c.norm_eps)
            q, k, v = F.linear(h, w["wqkv"]).view(B, H + 2 * G, 1, D).split([H, G, G], 1)
            keys[:, :, t], values[:, :, t] = turn(k, cos, sin)[:, :, 0], v[:, :, 0]
            a = F.scaled_dot_product_attention(
                turn(q, cos, sin), keys[:, :, : t + 1], values[:, :, : t + 1], enable_gqa=G != H
            )
            x = x + F.linear(a.reshape(B, C), w["wo"])
            h = F.rms_norm(x, (C,), w["mlp_norm"], c.norm_eps)
            gate, up = F.linear(h, w["w_gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w["w_down"])
        self.length += 1
        scores = F.linear(F.rms_norm(x, (C,), self.norm, c.norm_eps), self.lm_head)
        return scores.float().cpu().numpy()


def turn(x, cos, sin):
    """RoPE, half-split: each channel by its cosine, and its partner by the sine."""
    D = x.shape[-1]
    return x * cos + torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1) * sin
