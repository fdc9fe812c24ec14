"""One program beside npgpt, asked for its scores: run by parity.py under a Python that has it.

    PYTHON parity_peer.py transformers FOLDER IDS OUT
    PYTHON parity_peer.py llama.cpp FILE IDS OUT

IDS is a .npy with tokens (N, T); OUT becomes a .npy with scores (N, T, V). The last line printed is
the program's version. Nothing of npgpt is imported: it need not be installed there.
"""

import sys

import numpy as np


def with_transformers(folder, ids):
    """The scores of AutoModelForCausalLM in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        scores = [model(torch.from_numpy(row[None])).logits[0].numpy() for row in ids]
    return np.stack(scores), transformers.__version__


def with_llama_cpp(path, ids):
    """The scores of llama.cpp, with the weights as they are in the file."""
    import ctypes

    import llama_cpp

    # Without this, it tells a page about each model.
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    N, T = ids.shape
    model = llama_cpp.Llama(
        str(path), n_ctx=T, n_batch=T, logits_all=True, verbose=False, n_threads=2,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,  # float16 if not told
    )  # fmt: skip
    scores = np.empty((N, T, model.n_vocab()), np.float32)
    for n in range(N):
        model.reset()
        model.eval(ids[n].tolist())
        scores[n] = model.scores[:T]
    return scores, llama_cpp.__version__


if __name__ == "__main__":
    kind, model, ids, out = sys.argv[1:]
    run = {"transformers": with_transformers, "llama.cpp": with_llama_cpp}[kind]
    scores, version = run(model, np.load(ids))
    np.save(out, scores)
    print(version)
