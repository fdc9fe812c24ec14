"""Folders of Hugging Face's, in and out: shapes, weights, tokens, and every known trap."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from interchange_helpers import (
    CONFIGS,
    GPT2,
    IDS,
    SMALL,
    STRANGE,
    TEXT,
    TOK,
    edited,
    folder_of,
    gguf_of,
    model_of,
    precise,
    relative,
    same_config,
)

from npgpt.errors import UserError
from npgpt.interchange import read_model
from npgpt.interchange.facts import Facts
from npgpt.interchange.gguf_model import save_gguf
from npgpt.interchange.hugging_face import gpt2_config, llama_config, save_folder
from npgpt.interchange.llama2c import save_llama2c
from npgpt.interchange.safetensors import SINGLE, read_safetensors, write_safetensors
from npgpt.model import GPTConfig, forward
from npgpt.sampling import KVCache, make_decoder
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, load_tokenizer


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_says_what_the_model_says(tmp_path, name):
    torch = pytest.importorskip("torch")
    from other_models import hugging_face_scores

    config = CONFIGS[name]
    folder = folder_of(tmp_path / "hf", config)
    tensors = {
        key: torch.from_numpy(t.floats().astype(np.float64))
        for key, t in read_safetensors(folder / SINGLE).items()
    }
    about = json.loads((folder / "config.json").read_text())
    theirs = hugging_face_scores(about, tensors, torch.from_numpy(IDS)).numpy()
    ours, _ = forward(precise(model_of(config), config), IDS, config)
    assert relative(theirs, ours) < 1e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_comes_back(tmp_path, name):
    config = CONFIGS[name]
    folder = folder_of(tmp_path / "hf", config)
    read, params, tok = read_model(folder)
    assert same_config(read, config)
    before = model_of(config)
    for key, w in params.items():
        np.testing.assert_array_equal(w, before.get(key, np.zeros_like(w)))
    assert tok.encode(TEXT) == TOK.encode(TEXT)
    assert (tok.end_of_text, tok.begin_of_text) == (TOK.end_of_text, TOK.end_of_text)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoder_of_generate_does_the_same(name):
    config = CONFIGS[name]
    params = model_of(config)
    cache = KVCache(config, len(IDS), like=params["norm"])
    scores = make_decoder(params, config).read(IDS, cache)
    assert relative(scores, forward(params, IDS, config)[0][:, -1]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_it(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = CONFIGS[name]
    folder = folder_of(tmp_path / "hf", config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(IDS)).logits.numpy()
    ours, _ = forward(model_of(config), IDS, config)
    assert relative(theirs, ours) < 1e-5
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, " two  spaces\n", "naïve 日本 😀", "end ."):
        assert tok.encode(text) == TOK.encode(text)
        assert tok.decode(tok.encode(text)) == text
    assert tok.encode(END_OF_TEXT) == [TOK.end_of_text] == [tok.eos_token_id] == [tok.bos_token_id]


def test_what_a_folder_must_say(tmp_path):
    """Each of these, left out, has cost somebody a day: see hugging_face.py."""
    folder = folder_of(tmp_path / "hf", CONFIGS["rich llama"])
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0
    assert config["rms_norm_eps"] == 3e-6
    assert config["eos_token_id"] == config["bos_token_id"] == TOK.end_of_text
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == TOK.end_of_text
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["clean_up_tokenization_spaces"] is False
    assert settings["model_max_length"] == config["max_position_embeddings"] == 16
    assert settings["bos_token"] == settings["eos_token"] == END_OF_TEXT
    parts = json.loads((folder / "tokenizer.json").read_text())
    assert parts["pre_tokenizer"]["add_prefix_space"] is False
    names = set(read_safetensors(folder / SINGLE))
    assert "lm_head.weight" in names and "model.layers.1.self_attn.q_proj.bias" in names
    folder = folder_of(tmp_path / "some", replace(CONFIGS["rich llama"], qkv_bias=False))
    assert json.loads((folder / "config.json").read_text())["attention_bias"] is True
    tensors = read_safetensors(folder / SINGLE)  # which then must have all four of them
    assert not np.any(tensors["model.layers.1.self_attn.k_proj.bias"].floats())
    folder = folder_of(tmp_path / "tied", CONFIGS["llama"])
    assert "lm_head.weight" not in read_safetensors(folder / SINGLE)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    save_folder(folder, CONFIGS["llama"], model_of(CONFIGS["llama"]), TOK, "bf16")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "name, values, sentence",
    [
        ("llama", {"model_type": "mamba"}, "model_type is 'mamba', which is not supported"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("llama", {"head_dim": 16}, "head_dim is 16"),
        ("llama", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ("llama", {"num_local_experts": 8}, "num_local_experts is 8"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "of type .yarn., which",
        ),
        ("llama", {"rope_theta": 777.0}, "names two values of rope_theta"),
        ("llama", {"hidden_size": "24"}, "hidden_size is '24', and must be a whole number"),
        ("llama", {"hidden_size": True}, "hidden_size is True, and must be a whole number"),
        ("llama", {"hidden_size": "gone"}, "does not say hidden_size"),
        ("llama", {"hidden_size": 48, "head_dim": 16}, "has shape .*, and its config"),
        ("llama", {"intermediate_size": 10}, r"gate_proj\.weight' has shape \(20, 24\), and its"),
        ("llama", {"num_attention_heads": 0, "head_dim": 24}, "n_head is 0"),
        ("llama", {"num_hidden_layers": 10**9}, "claims 1,000,000,000 layers"),
        ("llama", {"num_hidden_layers": 3}, "has no tensor model.layers.2"),
        ("llama", {"num_hidden_layers": 1}, "has a tensor .model.layers.1.* not supported"),
        ("llama", {"vocab_size": 200}, "tokenizer has 290 tokens, and the model 200"),
        ("llama", {"rms_norm_eps": -1.0}, "norm_eps is -1.0"),
        ("llama", {"attention_bias": True}, "attention_bias is True, but its weights lack"),
        ("rich llama", {"mlp_bias": False}, "mlp_bias is False, but its weights have"),
        ("gpt2", {"activation_function": "silu"}, "activation_function is 'silu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("gpt2", {"n_head": 5}, "does not split into n_head 5 heads"),
    ],
)
def test_what_a_configuration_asks_for_and_we_lack(tmp_path, name, values, sentence):
    folder = folder_of(tmp_path / "hf", CONFIGS[name])
    edited(folder, "config.json", **values)
    with pytest.raises(UserError, match=sentence) as error:
        read_model(folder)
    assert "\n" not in str(error.value)


def test_what_a_configuration_leaves_out_is_as_transformers_has_it():
    shape = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    facts = Facts({**shape, "num_attention_heads": 2}, "config.json")
    assert llama_config(facts, 290, {}) == GPTConfig(
        290, 2048, n_layer=2, n_head=2, n_embd=24, n_hidden=20, rope_theta=10_000.0, norm_eps=1e-6,
        tie=False,
    )  # fmt: skip
    assert gpt2_config(Facts({"n_inner": None}, "config.json"), 50257, {}) == GPTConfig(
        50257, 1024, n_layer=12, n_head=12, n_embd=768, n_hidden=3072, norm_eps=1e-5, tie=True,
        norm="layernorm", position="learned", mlp="gelu_tanh", bias=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llama 3", "gpt2"])
def test_any_value_anywhere_loads_or_is_refused(tmp_path, name):
    folder = folder_of(tmp_path / "hf", CONFIGS[name])
    whole = (folder / "config.json").read_text()
    table, refused = json.loads(whole), 0
    inner = [("rope_parameters", key) for key in table.get("rope_parameters", {})]
    for key in [*((key,) for key in table), *inner]:
        for value in STRANGE:
            changed = json.loads(whole)
            place = changed
            for step in key[:-1]:
                place = place[step]
            place[key[-1]] = value
            (folder / "config.json").write_text(json.dumps(changed))
            try:
                read_model(folder)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > 100


def test_older_and_newer_ways_to_say_rope(tmp_path):
    folder = folder_of(tmp_path / "hf", CONFIGS["llama 3"])
    for gone in ({"rope_parameters": "gone"}, {"rope_theta": "gone", "rope_scaling": "gone"}):
        shutil.copytree(folder, tmp_path / "copy")
        edited(tmp_path / "copy", "config.json", **gone)
        assert read_model(tmp_path / "copy")[0] == CONFIGS["llama 3"]
        shutil.rmtree(tmp_path / "copy")


def test_names_without_the_outer_prefix_and_rows_to_spare(tmp_path):
    """GPT-2's own folder has no "transformer." before its names; many tables are padded."""
    config = CONFIGS["gpt2"]
    folder = folder_of(tmp_path / "hf", config)
    arrays = {}
    for name, tensor in read_safetensors(folder / SINGLE).items():
        array = tensor.floats()
        if name.endswith("wte.weight"):
            array = np.concatenate([array, np.full((14, 24), 9.0, np.float32)])
        arrays[name.removeprefix("transformer.")] = array
    arrays["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)  # the mask, in older files
    write_safetensors(folder / SINGLE, {n: (a.shape, lambda a=a: a) for n, a in arrays.items()})
    edited(folder, "config.json", vocab_size=304)
    read, params, _ = read_model(folder)
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)


def test_a_tied_table_may_be_there_twice(tmp_path):
    config = CONFIGS["llama"]
    folder = folder_of(tmp_path / "hf", config)
    arrays = {n: t.floats() for n, t in read_safetensors(folder / SINGLE).items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    write_safetensors(folder / SINGLE, {n: (a.shape, lambda a=a: a) for n, a in arrays.items()})
    read, params, _ = read_model(folder)
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)


def test_biases_on_some_matrices_but_then_in_every_block(tmp_path):
    config = CONFIGS["rich llama"]
    folder = folder_of(tmp_path / "hf", config)
    arrays = {n: t.floats() for n, t in read_safetensors(folder / SINGLE).items()}

    def read(*gone):
        kept = {n: (a.shape, lambda a=a: a) for n, a in arrays.items() if not n.endswith(gone)}
        write_safetensors(folder / SINGLE, kept)
        return read_model(folder)[1]

    edited(folder, "config.json", mlp_bias=False)
    params, before = read("gate_proj.bias", "up_proj.bias", "down_proj.bias"), model_of(config)
    assert not np.any(params["blocks.1.b_gate_up"]) and not np.any(params["blocks.1.b_down"])
    np.testing.assert_array_equal(params["blocks.1.bqkv"], before["blocks.1.bqkv"])
    edited(folder, "config.json", mlp_bias=True)
    with pytest.raises(UserError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.bias"):
        read("layers.1.mlp.up_proj.bias")


def test_marks_from_elsewhere(tmp_path):
    """A model's own end and beginning of a text are its tokenizer's, and survive a run."""
    folder = folder_of(tmp_path / "hf", CONFIGS["llama"], marked_tokenizer())
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "kept.json")
    edited(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>"}, bos_token="<s>")
    tok = read_model(folder)[2]
    assert (tok.end_name, tok.begin_of_text) == ("<|im_end|>", None)
    edited(folder, "tokenizer_config.json", add_bos_token=True)
    tok = read_model(folder)[2]
    assert (tok.end_name, tok.begin_name) == ("<|im_end|>", "<s>")
    exported = folder_of(tmp_path / "exported", CONFIGS["llama"], tok)
    read = read_model(exported)[2]
    assert (read.end_name, read.begin_name) == ("<|im_end|>", "<s>")
    for file in ("config.json", "generation_config.json"):
        said = json.loads((exported / file).read_text())
        assert (said["bos_token_id"], said["eos_token_id"]) == (tok.begin_of_text, tok.end_of_text)
    tok.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.end_of_text, again.begin_of_text) == (tok.end_of_text, tok.begin_of_text)


def marked_tokenizer():
    names = ["<s>", "<|im_end|>"]
    merges = TOK.merges[: 290 - 256 - len(names)]
    return BPETokenizer.from_merges(merges, names)


def test_special_tokens_may_stand_anywhere(tmp_path):
    """SmolLM2's are its first: whoever counts merges by ids must not count them."""
    names = [END_OF_TEXT, "<|im_start|>"]
    ordinary = [t for t in TOK.tokens if t != END_OF_TEXT.encode()][: 290 - len(names)]
    tokens = [name.encode() for name in names] + ordinary
    merges = [pair for pair in TOK.merges if pair[0] + pair[1] in ordinary]
    tok = BPETokenizer(tokens, merges, {name: i for i, name in enumerate(names)})
    for number, save in enumerate((folder_of, gguf_of)):
        read = read_model(save(tmp_path / f"m{number}.gguf", CONFIGS["llama"], tok))[2]
        assert (read.tokens, read.merges) == (tokens, merges)
        text = f"{END_OF_TEXT}{TEXT}<|im_start|>"
        ids = read.encode(text, allowed_special="all")
        assert ids[0] == 0 and ids[-1] == 1 and read.decode(ids) == text
        assert ids == tok.encode(text, allowed_special="all")


def test_characters_for_other_programs(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    text = "naïve, 日本\n\n two  spaces\tand 😀'll"
    tok = CharTokenizer.train([text], special_tokens=[END_OF_TEXT])
    config = replace(CONFIGS["llama"], vocab_size=tok.vocab_size)
    folder = folder_of(tmp_path / "hf", config, tok)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    marked = f"{text}{END_OF_TEXT}\n"
    ids = theirs.encode(marked).ids
    assert ids == tok.encode(marked, allowed_special="all")
    assert theirs.decode(ids, skip_special_tokens=False) == marked
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("Z")


LLAMA2C_LACKS = (
    dict(bias=True), dict(head_bias=True), dict(norm_eps=1e-6), dict(rope_theta=500.0),
    dict(rope_factor=4.0), dict(norm="layernorm"), dict(position="none"), dict(mlp="gelu"),
)  # fmt: skip


def test_odd_shapes_are_refused(tmp_path):
    config = CONFIGS["llama"]
    with pytest.raises(UserError, match=r"the kind .char.*--format npz"):
        chars = CharTokenizer.train([TEXT])
        save_gguf(tmp_path / "m.gguf", config, model_of(config), chars, "m")
    for save in (save_folder, lambda *args: save_gguf(args[0] / "m.gguf", *args[1:], "m")):
        odd = GPTConfig(**SMALL, n_head=3, norm="layernorm")
        with pytest.raises(UserError, match=r"layernorm, rope positions, swiglu.*--format npz"):
            save(tmp_path, odd, model_of(odd), TOK)
        odd = GPTConfig(**SMALL, **GPT2, n_head=4, n_kv_head=2, mlp="relu")
        with pytest.raises(UserError, match="2 key/value heads for 4 heads"):
            save(tmp_path, odd, model_of(odd), TOK)
        odd = GPTConfig(**SMALL, **GPT2, n_head=3, mlp="gelu_tanh", head_bias=True)
        with pytest.raises(UserError, match="the output of this model has a bias"):
            save(tmp_path, odd, model_of(odd), TOK)
    for odd in (replace(CONFIGS["llama"], **more) for more in LLAMA2C_LACKS):
        with pytest.raises(UserError, match="knows one model: rmsnorm"):
            save_llama2c(tmp_path / "m.bin", odd, model_of(odd))
    assert not any(tmp_path.iterdir())
    for mlp in ("relu", "gelu"):
        odd = GPTConfig(**SMALL, **GPT2, n_head=3, mlp=mlp)
        with pytest.raises(UserError, match=r"llama\.cpp computes the MLP of a GPT-2 with gelu_t"):
            save_gguf(tmp_path / "m.gguf", odd, model_of(odd), TOK, "m")
