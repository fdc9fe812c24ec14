"""Llama and GPT-2 as others define them, written from their files' point of view.

What an export is worth shows only in somebody else's program. Theirs are large and not always
installed; so here are both architectures once more, in as few lines as possible, from the names in
the file and the values in its configuration. Nothing of npgpt is used, nor its order of channels,
nor its axes: a weight in the wrong place would show as another score.
"""

import numpy as np
import torch
import torch.nn.functional as F


def hugging_face_scores(config, tensors, ids):
    """What transformers' LlamaForCausalLM or GPT2LMHeadModel computes, in float64.

    Args:    config, the content of config.json; tensors, a dict from name to float64 torch tensor;
             ids (B, T).
    Returns: scores (B, T, V).
    """
    return {"llama": llama, "gpt2": gpt2}[config["model_type"]](config, tensors, ids)


def attention(q, k, v, heads, kv_heads, turn=lambda x: x):
    """Causal attention of (B, T, channels) each; turn, what is done to the heads of q and k."""
    B, T, _ = q.shape
    q = turn(q.view(B, T, heads, -1).transpose(1, 2))
    k = turn(k.view(B, T, kv_heads, -1).transpose(1, 2))
    v = v.view(B, T, kv_heads, -1).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).reshape(B, T, -1)


def llama(config, w, ids):
    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], config["rms_norm_eps"])

    cos, sin = llama_angles(config, ids.shape[1])

    def turn(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        h = norm(x, f"model.layers.{i}.input_layernorm")
        q, k, v = (linear(h, f"{at}{part}_proj") for part in "qkv")
        heads = config["num_attention_heads"], config["num_key_value_heads"]
        x = x + linear(attention(q, k, v, *heads, turn), f"{at}o_proj")
        h = norm(x, f"model.layers.{i}.post_attention_layernorm")
        h = F.silu(linear(h, f"{mlp}gate_proj")) * linear(h, f"{mlp}up_proj")
        x = x + linear(h, f"{mlp}down_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return F.linear(norm(x, "model.norm"), w[f"{head}.weight"])


def llama_angles(config, T):
    """cos and sin (T, D), with what rope_parameters says of the wavelengths."""
    rope, D = config["rope_parameters"], config["hidden_size"] // config["num_attention_heads"]
    speed = 1 / rope["rope_theta"] ** (torch.arange(0, D, 2, dtype=torch.float64) / D)
    if rope["rope_type"] == "linear":
        speed = speed / rope["factor"]
    if rope["rope_type"] == "llama3":
        old, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        for j, s in enumerate(speed.tolist()):
            length = 2 * np.pi / s
            smooth = (old / length - low) / (high - low)
            if length > old / low:
                speed[j] = s / factor
            elif length >= old / high:
                speed[j] = (1 - smooth) * s / factor + smooth * s
    angle = torch.outer(torch.arange(T, dtype=torch.float64), speed).repeat(1, 2)
    return angle.cos(), angle.sin()


def gpt2(config, w, ids):
    def conv1d(x, name):  # GPT-2's own layer: (in, out), unlike everybody's
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        eps = config["layer_norm_epsilon"]
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    bend = {
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "relu": F.relu,
    }[config["activation_function"]]  # fmt: skip
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        q, k, v = conv1d(norm(x, f"{at}ln_1"), f"{at}attn.c_attn").chunk(3, -1)
        heads = config["n_head"], config["n_head"]
        x = x + conv1d(attention(q, k, v, *heads), f"{at}attn.c_proj")
        h = bend(conv1d(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc"))
        x = x + conv1d(h, f"{at}mlp.c_proj")
    head = "transformer.wte" if config["tie_word_embeddings"] else "lm_head"
    return F.linear(norm(x, "transformer.ln_f"), w[f"{head}.weight"])


def gguf_llama_scores(entries, w, ids):
    """What llama.cpp computes of a Llama, token after token, in NumPy and float64.

    Args:    entries and tensors (a dict from name to array) of a GGUF file; ids (T,).
    Returns: scores (T, V).
    """
    facts = {key.removeprefix("llama."): value for key, value in entries.items()}
    H, G = facts["attention.head_count"], facts["attention.head_count_kv"]
    L, D, out = facts["block_count"], facts["embedding_length"] // H, []
    eps = facts["attention.layer_norm_rms_epsilon"]
    speed = facts["rope.freq_base"] ** (-np.arange(0, D, 2) / D) / w.get("rope_freqs.weight", 1.0)
    speed = speed / facts.get("rope.scaling.factor", 1.0)
    past = [([], []) for _ in range(L)]

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x) + eps) * w[f"{name}.weight"]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    def turned(x, heads, place):  # neighbours 2j and 2j + 1 of a head are one complex number
        z = x.reshape(heads, D // 2, 2) @ [1, 1j] * np.exp(1j * place * speed)
        return np.stack([z.real, z.imag], -1).reshape(heads, D)

    for place, token in enumerate(ids):
        x = w["token_embd.weight"][token]
        for i, (keys, values) in enumerate(past):
            h = norm(x, f"blk.{i}.attn_norm")
            q, k, v = (linear(h, f"blk.{i}.attn_{part}") for part in "qkv")
            q = turned(q, H, place)
            keys.append(turned(k, G, place))
            values.append(v.reshape(G, D))
            heads = []
            for head in range(H):
                group = head // (H // G)
                p = np.array([np.exp(q[head] @ key[group] / np.sqrt(D)) for key in keys])
                heads.append(p / p.sum() @ [value[group] for value in values])
            x = x + linear(np.concatenate(heads), f"blk.{i}.attn_output")
            h = norm(x, f"blk.{i}.ffn_norm")
            gate = linear(h, f"blk.{i}.ffn_gate")
            h = gate / (1 + np.exp(-gate)) * linear(h, f"blk.{i}.ffn_up")
            x = x + linear(h, f"blk.{i}.ffn_down")
        head = "output.weight" if "output.weight" in w else "token_embd.weight"
        out.append(w[head] @ norm(x, "output_norm"))
    return np.array(out)
