"""Another peer of generate: the same GPT in llama.cpp, by way of a GGUF file.

Needs the packages llama-cpp-python and gguf. Build the former for the processor that it runs on,
    CMAKE_ARGS=-DGGML_NATIVE=ON python -m pip install --no-cache-dir llama-cpp-python gguf
as a wheel made for any processor would flatter whoever is compared with it.
"""

import gguf
import llama_cpp
import numpy as np

FILE_TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


class LlamaCppDecoder:
    """Reads one token at a time, like npgpt.sampling.Decoder for a single text.

    It keeps keys and values in float16, as it does unless told otherwise: half the bytes.

    Args:    path of a file from write_gguf; config; threads.
    """

    def __init__(self, path, config, threads):
        self.vocab_size = config.vocab_size
        self.model = llama_cpp.Llama(
            str(path), n_ctx=config.block_size, n_threads=threads, n_threads_batch=threads,
            verbose=False,
        )  # fmt: skip

    def go_back(self, length):
        """Forget all but the first tokens."""
        self.model.n_tokens = length  # what lies beyond is dropped with the next token

    def read(self, ids):
        """The scores (V,) of what follows the last of these tokens, a list."""
        self.model.eval(ids)
        scores = llama_cpp.llama_get_logits(self.model.ctx)
        return np.ctypeslib.as_array(scores, (self.vocab_size,))


def write_gguf(path, params, config, dtype):
    """Write npgpt Parameters as a GGUF file with a vocabulary of nonsense.

    llama.cpp turns neighbouring channels of q and k, npgpt those that lie D/2 apart: see
    npgpt.interchange.llama2c for why it is enough to permute their weights.
    """
    kind, file_type = FILE_TYPES[dtype]
    H, G, D = config.n_head, config.n_kv_head, config.head_dim
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(config.block_size)
    file.add_embedding_length(config.n_embd)
    file.add_block_count(config.n_layer)
    file.add_feed_forward_length(config.n_hidden)
    file.add_head_count(H)
    file.add_head_count_kv(G)
    file.add_layer_norm_rms_eps(config.norm_eps)
    file.add_rope_freq_base(config.rope_theta)
    file.add_rope_dimension_count(D)
    file.add_vocab_size(config.vocab_size)
    file.add_file_type(file_type)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    file.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    file.add_token_merges(["t 0"])
    file.add_eos_token_id(0)

    def add(name, w):
        w = np.ascontiguousarray(w, np.float32)
        if w.ndim == 1:
            file.add_tensor(f"{name}.weight", w)
        else:
            file.add_tensor(f"{name}.weight", gguf.quants.quantize(w, kind), raw_dtype=kind)

    def interleaved(rows):
        pairs = rows.reshape(-1, 2, D // 2, rows.shape[1])
        return np.swapaxes(pairs, 1, 2).reshape(rows.shape)

    add("token_embd", params["wte"])
    for i in range(config.n_layer):
        p, name = params.block(i), f"blk.{i}"
        q, k, v = np.split(p["wqkv"].T, [H * D, (H + G) * D])
        gate, up = np.split(p["w_gate_up"].T, 2)
        for part, w in (
            ("attn_norm", p["attn_norm"]), ("attn_q", interleaved(q)), ("attn_k", interleaved(k)),
            ("attn_v", v), ("attn_output", p["wo"].T), ("ffn_norm", p["mlp_norm"]),
            ("ffn_gate", gate), ("ffn_up", up), ("ffn_down", p["w_down"].T),
        ):  # fmt: skip
            add(f"{name}.{part}", w)
    add("output_norm", params["norm"])
    if not config.tie:
        add("output", params["lm_head"].T)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
