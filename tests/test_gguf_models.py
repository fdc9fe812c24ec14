"""Models in GGUF files, in and out, against llama.cpp's own arithmetic."""

import numpy as np
import pytest
from interchange_helpers import (
    CONFIGS,
    GGUF_CONFIGS,
    IDS,
    TEXT,
    TOK,
    altered,
    gguf_of,
    model_of,
    precise,
    relative,
)

from npgpt.errors import UserError
from npgpt.interchange import read_model
from npgpt.interchange.gguf import read_gguf
from npgpt.interchange.gguf_model import load_gguf
from npgpt.model import forward
from npgpt.parameters import bias_of
from npgpt.tokenizer import BPETokenizer


@pytest.mark.parametrize("name", GGUF_CONFIGS)
def test_a_gguf_comes_back(tmp_path, name):
    config = GGUF_CONFIGS[name]
    read, params, tok = load_gguf(gguf_of(tmp_path / "m.gguf", config))
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)
    assert tok.encode(TEXT) == TOK.encode(TEXT)
    assert tok.end_of_text == tok.begin_of_text == TOK.end_of_text
    assert tok.special_tokens == TOK.special_tokens


def test_a_gguf_is_known_by_its_first_bytes(tmp_path):
    assert read_model(gguf_of(tmp_path / "m", CONFIGS["llama"]))[0] == CONFIGS["llama"]


def marked_tokenizer():
    tok = BPETokenizer.from_merges(TOK.merges[: 290 - 256 - 3], ["<s>", "<|im_end|>", "<b>"])
    tok.end_name, tok.begin_name, tok.always_allowed = "<|im_end|>", "<s>", frozenset(["<b>"])
    return tok


@pytest.mark.parametrize(
    "tok, begin, end, asked", [(marked_tokenizer(), 287, 288, True), (TOK, 289, 289, False)]
)
def test_llama_cpp_is_told_what_each_token_is(tmp_path, tok, begin, end, asked):
    """In the numbers of llama.h: 1 is a plain token, 3 a mark, 4 one that a text may spell."""
    entries = read_gguf(gguf_of(tmp_path / "m.gguf", CONFIGS["llama"], tok))[0]
    entries = {key.removeprefix("tokenizer.ggml."): value for key, value in entries.items()}
    kinds = entries["token_type"].tolist()
    assert kinds == ([1] * 287 + [3, 3, 4] if asked else [1] * 289 + [3])
    assert (entries["bos_token_id"], entries["eos_token_id"]) == (begin, end)
    assert entries["add_bos_token"] is asked and entries["add_space_prefix"] is False


def test_marks_come_back(tmp_path):
    """Which one ends a text, and which is a mark wherever it stands; and the beginning, if used."""
    tok = marked_tokenizer()
    path = gguf_of(tmp_path / "m.gguf", CONFIGS["llama"], tok)
    read = load_gguf(path)[2]
    assert (read.end_name, read.begin_name, read.always_allowed) == ("<|im_end|>", "<s>", {"<b>"})
    altered(path, lambda e, t: e.update({"tokenizer.ggml.add_bos_token": False}))
    assert load_gguf(path)[2].begin_name is None


def test_a_stretching_that_gguf_has_no_word_for(tmp_path):
    with pytest.raises(UserError, match="only Llama 3's own stretching of RoPE is written"):
        gguf_of(tmp_path / "m.gguf", CONFIGS["llama 3"])


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in GGUF_CONFIGS if name != "gpt2"])
def test_a_gguf_says_what_the_model_says(tmp_path, name):
    """At every place: with q and k unpermuted, place 0 is right and the others are wrong."""
    pytest.importorskip("torch")  # other_models needs it
    from other_models import gguf_llama_scores

    config = GGUF_CONFIGS[name]
    entries, tensors = read_gguf(gguf_of(tmp_path / "m.gguf", config))
    arrays = {key: t.floats().astype(np.float64) for key, t in tensors.items()}
    theirs = gguf_llama_scores(entries, arrays, IDS[0])
    ours = forward(precise(model_of(config), config), IDS[:1], config)[0][0]
    error = np.max(np.abs(theirs - ours), axis=1) / np.max(np.abs(ours))
    assert np.all(error < 1e-6), error  # eps and theta are float32 in the file
    assert entries["tokenizer.ggml.model"] == "gpt2" and entries["tokenizer.ggml.pre"] == "gpt-2"
    q = arrays["blk.0.attn_q.weight"]
    assert not np.array_equal(q, model_of(config).block(0)["wqkv"].T[: len(q)])


def test_a_gpt2_has_the_names_that_llama_cpp_looks_for(tmp_path):
    """Reading would undo a mistake that writing has made: both take the names from one table."""
    config = CONFIGS["gpt2"]
    tensors = read_gguf(gguf_of(tmp_path / "m.gguf", config))[1]
    ours = {
        "attn_norm": "attn_norm", "attn_qkv": "wqkv", "attn_output": "wo", "ffn_norm": "mlp_norm",
        "ffn_up": "w_up", "ffn_down": "w_down",
    }  # fmt: skip
    params = model_of(config)
    expected = {
        "token_embd.weight": params["wte"], "position_embd.weight": params["wpe"],
        "output_norm.weight": params["norm"], "output_norm.bias": params["norm_bias"],
    }  # fmt: skip
    for i in range(config.n_layer):
        block = params.block(i)
        for name, our in ours.items():
            expected[f"blk.{i}.{name}.weight"] = block[our].T  # of a vector the same
            expected[f"blk.{i}.{name}.bias"] = block[bias_of(our)]
    assert sorted(tensors) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name].floats(), array, err_msg=name)


@pytest.mark.parametrize("name", GGUF_CONFIGS)
def test_llama_cpp_reads_it(tmp_path, name):
    llama_cpp = pytest.importorskip("llama_cpp")
    config = GGUF_CONFIGS[name]
    model = llama_cpp.Llama(
        str(gguf_of(tmp_path / "m.gguf", config)), n_ctx=16, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    model.eval(IDS[0].tolist())
    ours, _ = forward(model_of(config), IDS[:1], config)
    bar = 2e-3 if name == "gpt2" else 1e-5  # its GELU is a table of float16 numbers
    assert relative(np.array(model.scores[:16]), ours[0]) < bar
    for text in (TEXT, "in  1999,\n\n12.5 %", "naïve 日本 😀"):
        assert model.tokenize(text.encode(), add_bos=False, special=False) == TOK.encode(text)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda e, t: e.update({"general.architecture": "mamba"}), "architecture is 'mamba'"),
        (lambda e, t: e.update({"tokenizer.ggml.model": "llama"}), "model is 'llama', which"),
        (lambda e, t: e.update({"tokenizer.ggml.pre": "qwen2"}), "pre is 'qwen2', which is not"),
        (lambda e, t: e.update({"llama.expert_count": 8}), "expert_count is 8"),
        (lambda e, t: e.update({"llama.rope.scaling.type": "yarn"}), "type is 'yarn'"),
        (lambda e, t: e.update({"llama.rope.dimension_count": 4}), "dimension_count is 4"),
        (lambda e, t: e.update({"llama.attention.sliding_window": 8}), "sliding_window is 8"),
        (lambda e, t: e.update({"llama.attention.key_length": 4}), "key_length is 4"),
        (lambda e, t: e.update({"llama.attention.value_length": 4}), "value_length is 4"),
        (lambda e, t: e.update({"llama.attention.scale": 0.5}), r"attention.scale is 0\.5"),
        (lambda e, t: e.update({"llama.logit_scale": 0.5}), r"logit_scale is 0\.5"),
        (lambda e, t: e.pop("llama.block_count"), "does not say block_count"),
        (lambda e, t: e.update({"llama.block_count": 2**31}), "claims 2,147,483,648 layers"),
        (lambda e, t: e.pop("tokenizer.ggml.merges"), "no list tokenizer.ggml.merges"),
        (lambda e, t: e["tokenizer.ggml.merges"].pop(5), "merge 10: .* is not two tokens"),
        (lambda e, t: e["tokenizer.ggml.tokens"].pop(), "token_type does not fit"),
        (lambda e, t: t.pop("token_embd.weight"), "has no tensor token_embd.weight"),
        (lambda e, t: t.pop("output_norm.weight"), "has no tensor output_norm.weight"),
        (lambda e, t: t.pop("blk.1.ffn_up.weight"), "has no tensor blk.1.ffn_up.weight"),
        (lambda e, t: t.update({"blk.0.more": np.ones(3)}), "has a tensor .blk.0.more"),
        (lambda e, t: t.update({"rope_freqs.weight": np.full(4, 3.0)}), "rope_freqs.weight is not"),
    ],
)
def test_what_a_gguf_asks_for_and_we_lack(tmp_path, change, sentence):
    altered(gguf_of(tmp_path / "m.gguf", CONFIGS["llama"]), change)
    with pytest.raises(UserError, match=sentence) as error:
        load_gguf(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


def test_any_entry_of_any_kind_loads_or_is_refused(tmp_path):
    path = gguf_of(tmp_path / "m.gguf", CONFIGS["llama"])
    keys = list(read_gguf(path)[0])
    values = [True, 7, 2**32 - 1, -0.5, "x", ["x"], np.zeros(290, np.int32)]
    whole, refused = path.read_bytes(), 0
    for key in keys:
        for value in values:
            path.write_bytes(whole)
            altered(path, lambda e, t, key=key, value=value: e.update({key: value}))
            try:
                load_gguf(path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > 70


def test_damaged_models_are_refused_or_read(tmp_path):
    """Whole models this time: what passes the reader meets the shape, the names, the tokenizer."""
    from test_model_files import damage

    path = gguf_of(tmp_path / "m.gguf", CONFIGS["llama"])
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    ends = read_gguf(path)[1]["token_embd.weight"].data.nbytes
    front = len(whole) - 2 * ends
    refused = 0
    for _ in range(250):
        path.write_bytes(damage(whole[:front], rng) + whole[front:])
        try:
            load_gguf(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
