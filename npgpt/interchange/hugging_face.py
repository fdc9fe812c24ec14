"""A model's folder as Hugging Face has it: config.json, model.safetensors, tokenizer.json.

Reading: what config.json says is understood, or refused by its name. A key that was passed over,
a window of attention, say, would give a model that nearly works.

Writing has its traps, each of which has cost somebody a day:
    rope_theta      transformers 5 reads rope_parameters; 4.57 reads rope_theta, and without it
                    silently takes 10000. Both are written.
    rms_norm_eps    its default is 1e-6 and ours 1e-5: written, as is every other default.
    tokenizer       without tokenizer_class PreTrainedTokenizerFast, 4.57 takes the class that
                    goes with the architecture, which puts an id of its own before each text.
    eos and bos     the defaults of transformers are tokens 1 and 2 for a Llama, which here are
                    plain letters: a text would end with the first of them.
"""

from pathlib import Path

from npgpt.errors import UserError
from npgpt.interchange.architectures import architecture_of, fill, parts_of
from npgpt.interchange.facts import Facts
from npgpt.interchange.safetensors import SINGLE, read_shards, write_safetensors
from npgpt.model import GPTConfig
from npgpt.tokenizer import load_tokenizer
from npgpt.tokenizer.files import read_json, read_settings, write_json
from npgpt.tokenizer.hugging_face import save_characters_json, save_hugging_face

CONFIG = "config.json"
GENERATION = "generation_config.json"
GELUS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
WRITTEN_GELUS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}


def load_folder(folder):
    """Read a model of Hugging Face's.

    Args:    folder, with config.json, the safetensors, and the tokenizer's files.
    Returns: config, a GPTConfig; params, float32 Parameters on the host; tok.
    Raises:  UserError naming what is missing, damaged or not supported.
    """
    folder = Path(folder)
    table = read_json(folder / CONFIG)
    if not isinstance(table, dict):
        raise UserError(f"{folder / CONFIG} is not a table: download it again")
    facts = Facts(table, folder / CONFIG)
    facts.must_be("model_type", "llama", "gpt2")
    tensors = read_shards(folder)
    tok = _tokenizer(folder, facts)
    read = {"llama": llama_config, "gpt2": gpt2_config}[facts.text("model_type")]
    config = read(facts, tok.vocab_size, tensors)
    return config, fill(config, tensors, False, folder), tok


def _tokenizer(folder, facts):
    """The tokenizer of a folder, which fits the model."""
    tok = load_tokenizer(folder)
    if not read_settings(folder) and tok.end_of_text is None:
        # Nothing but config.json says which token ends a text.
        end = facts.table.get("eos_token_id")
        names = {i: name for name, i in tok.special_tokens.items()}
        tok.end_name = names.get(end, tok.end_name) if type(end) is int else tok.end_name
        tok.begin_name = tok.end_name
    return check_vocabulary(tok, facts.whole("vocab_size"), folder)


def begins_with_a_mark(tok):
    """Whether a text begins with another special token than the one that ends it."""
    return tok.begin_of_text not in (None, tok.end_of_text)


def check_vocabulary(tok, rows, where):
    """The tokenizer, if the model knows all its tokens: a table may have rows to spare, no less.

    Raises:  UserError if they don't belong together.
    """
    if tok.vocab_size > rows:
        raise UserError(
            f"{where}: the tokenizer has {tok.vocab_size:,} tokens, and the model {rows:,}: "
            "they do not belong together"
        )
    return tok


def llama_config(facts, vocab_size, tensors):
    """A GPTConfig of a Llama's config.json.

    Args:    facts; vocab_size, the tokenizer's; tensors, by name, which must have the biases that
             are promised, and no others.
    Raises:  UserError for what our layers don't have.
    """
    for flag, place in (("attention_bias", ".self_attn."), ("mlp_bias", ".mlp.")):
        has = any(place in name and name.endswith("_proj.bias") for name in tensors)
        if facts.flag(flag, False) != has:
            raise UserError(
                f"{facts.where}: {flag} is {not has}, but its weights {'have' if has else 'lack'} "
                "such biases: config.json and weights are not of one model"
            )
    n_embd, n_head = facts.whole("hidden_size"), facts.whole("num_attention_heads")
    facts.must_be("hidden_act", "silu")
    facts.must_be("head_dim", n_embd // max(n_head, 1))
    for key, *known in (
        ("quantization_config",), ("sliding_window",), ("use_sliding_window", False),
        ("rope_interleaved", False), ("partial_rotary_factor", 1.0), ("num_local_experts",),
    ):  # fmt: skip
        facts.must_be(key, *known)
    parameters, scaling = facts.table_of("rope_parameters"), facts.table_of("rope_scaling")
    theta = parameters.number("rope_theta", facts.number("rope_theta", 10_000.0))
    if facts.number("rope_theta", theta) != theta:
        raise UserError(f"{facts.where} names two values of rope_theta: which is meant?")
    return GPTConfig(
        vocab_size=vocab_size, block_size=facts.whole("max_position_embeddings", 2048),
        n_layer=facts.whole("num_hidden_layers"), n_head=n_head,
        n_kv_head=facts.whole("num_key_value_heads", n_head), n_embd=n_embd,
        n_hidden=facts.whole("intermediate_size"), rope_theta=theta,
        norm_eps=facts.number("rms_norm_eps", 1e-6),
        tie=facts.flag("tie_word_embeddings", False),
        bias=any(name.endswith("_proj.bias") for name in tensors),
        **_stretch(parameters if len(parameters.table) > 1 else scaling),
    )  # fmt: skip


def _stretch(scaling):
    """The stretching of RoPE's waves that rope_scaling, or rope_parameters, asks for.

    Returns: the fields of a GPTConfig.
    """
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return {}
    factor = scaling.number("factor")
    if kind == "linear":
        return {"rope_factor": factor}
    if kind != "llama3":
        raise UserError(
            f"{scaling.where} asks for RoPE of type {kind[:60]!r}, which is not supported: "
            "npgpt knows default, linear and llama3"
        )
    context = scaling.whole("original_max_position_embeddings")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if not 0 < low < high:
        raise UserError(f"{scaling.where}: low_freq_factor {low}, high_freq_factor {high}: why?")
    return {"rope_factor": factor, "rope_kept": context / high, "rope_stretched": context / low}


def gpt2_config(facts, vocab_size, tensors):
    """A GPTConfig of a GPT-2's config.json; of tensors nothing needs to be asked.

    Raises:  UserError for what our layers don't have.
    """
    facts.must_be("scale_attn_weights", True)
    facts.must_be("scale_attn_by_inverse_layer_idx", False)
    facts.must_be("add_cross_attention", False)
    facts.must_be("quantization_config")
    facts.must_be("activation_function", *GELUS)
    n_embd = facts.whole("n_embd", 768)
    return GPTConfig(
        vocab_size=vocab_size, block_size=facts.whole("n_positions", 1024),
        n_layer=facts.whole("n_layer", 12), n_head=facts.whole("n_head", 12), n_embd=n_embd,
        n_hidden=facts.whole("n_inner", 4 * n_embd),
        norm_eps=facts.number("layer_norm_epsilon", 1e-5),
        tie=facts.flag("tie_word_embeddings", True), norm="layernorm", position="learned",
        mlp=GELUS[facts.text("activation_function", "gelu_new")], bias=True,
    )  # fmt: skip


def save_folder(folder, config, params, tok, dtype="float32"):
    """Write a model as Hugging Face has it, all but its card.

    Args:    folder, which is there; config; params on the host; tok, of bytes or characters;
             dtype that the weights are rounded to, float32 or bf16.
    Raises:  UserError if the model is neither a Llama nor a GPT-2, if its tokens are of another
             kind, or if the folder can't be written.
    """
    architecture = architecture_of(config)
    save_tokenizer = {"bpe": save_hugging_face, "char": save_characters_json}.get(tok.kind)
    if save_tokenizer is None:
        raise UserError(
            f"the tokens of this model are of the kind {tok.kind!r}, which tokenizer.json has no "
            "word for: export it with --format npz"
        )
    begin = tok.end_of_text if tok.begin_of_text is None else tok.begin_of_text
    ids = {"bos_token_id": begin, "eos_token_id": tok.end_of_text, "pad_token_id": tok.end_of_text}
    describe = {"llama": describe_llama, "gpt2": describe_gpt2}[architecture]
    about = {**describe(config), **ids, "vocab_size": config.vocab_size, "use_cache": True}
    stored = "bfloat16" if dtype == "bf16" else "float32"
    about |= {"tie_word_embeddings": config.tie, "dtype": stored, "torch_dtype": stored}
    write_json(folder, CONFIG, about, indent=2)
    write_json(folder, GENERATION, ids, indent=2)
    write_safetensors(
        Path(folder) / SINGLE,
        {
            part.name: (part.shape, lambda part=part: part.take(params))
            for part in parts_of(config, False)
        },
        dtype,
    )
    save_tokenizer(tok, folder)
    others = {} if tok.end_of_text is None else {"bos_token": _name(tok, begin)}
    others |= {} if tok.end_of_text is None else {"eos_token": tok.end_name}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.block_size, "add_bos_token": begins_with_a_mark(tok), **others,
    }  # fmt: skip
    write_json(folder, "tokenizer_config.json", settings, indent=2)


def _name(tok, i):
    return next(name for name, number in tok.special_tokens.items() if number == i)


def describe_llama(config):
    """What config.json says of a Llama."""
    scaling = {"rope_type": "default"}
    if config.rope_factor != 1.0:
        scaling = {"rope_type": "linear", "factor": config.rope_factor}
    if config.rope_stretched:
        scaling |= {
            "rope_type": "llama3", "low_freq_factor": 1.0,
            "high_freq_factor": config.rope_stretched / config.rope_kept,
            "original_max_position_embeddings": int(config.rope_stretched),
        }  # fmt: skip
        if int(config.rope_stretched) != config.rope_stretched:
            raise UserError(
                f"rope_stretched is {config.rope_stretched}, for which config.json has only whole "
                "numbers: export it with --format npz"
            )
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": config.n_embd, "intermediate_size": config.n_hidden,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "head_dim": config.head_dim,
        "max_position_embeddings": config.block_size, "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_factor == 1.0 else scaling,
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        "attention_bias": config.bias, "mlp_bias": config.bias, "attention_dropout": 0.0,
        "initializer_range": 0.02, "pretraining_tp": 1,
    }  # fmt: skip


def describe_gpt2(config):
    """What config.json says of a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": config.n_embd,
        "n_inner": config.n_hidden, "n_layer": config.n_layer, "n_head": config.n_head,
        "n_positions": config.block_size, "n_ctx": config.block_size,
        "activation_function": WRITTEN_GELUS[config.mlp], "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": True, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "initializer_range": 0.02,
    }  # fmt: skip
