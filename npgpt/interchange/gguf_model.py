"""A model in a GGUF file: its shape, its weights and its tokenizer, in and out.

The shape stands in entries such as llama.block_count. The tokenizer stands beside it, as three
lists: the tokens as GPT-2's files write them, what each is (a plain one, a mark), and the merges.
tokenizer.ggml.pre names the pattern that cuts words. llama.cpp knows some fifty of these; npgpt
knows two, and refuses the others, for with the wrong one everything works and is a little wrong.

What is written is float32. To make it small, give it to llama.cpp's own llama-quantize.
"""

import numpy as np

from npgpt.errors import UserError
from npgpt.interchange.architectures import architecture_of, fill, parts_of
from npgpt.interchange.facts import Facts
from npgpt.interchange.gguf import read_gguf, write_gguf
from npgpt.interchange.hugging_face import begins_with_a_mark, check_vocabulary
from npgpt.layers.rope import stretch_waves
from npgpt.model import GPTConfig
from npgpt.tokenizer import bpe_class
from npgpt.tokenizer.files import BYTE_OF, check_vocab, follow_merges, in_order, names_of, written

WORDS = {"gpt-2": "gpt2", "smollm": "digits"}  # tokenizer.ggml.pre, and our names of patterns
PLAIN, CONTROL, USER_DEFINED = 1, 3, 4  # what a token is
LLAMA3 = (2048.0, 8192.0)  # lengths of waves kept and stretched, of Llama 3.1 and 3.2
NORM_EPS = {"llama": "attention.layer_norm_rms_epsilon", "gpt2": "attention.layer_norm_epsilon"}


def load_gguf(path):
    """Read a model.

    Args:    path of the .gguf file.
    Returns: config, a GPTConfig; params, float32 Parameters on the host; tok.
    Raises:  UserError naming what is missing, damaged or not supported.
    """
    entries, tensors = read_gguf(path)
    facts = Facts(entries, path)
    facts.must_be("general.architecture", "llama", "gpt2")
    tok = gguf_tokenizer(facts)
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} has no tensor token_embd.weight: is it a whole model?")
    check_vocabulary(tok, tensors["token_embd.weight"].shape[0], path)
    config = gguf_config(facts, tok.vocab_size, tensors)
    return config, fill(config, tensors, True, path), tok


def gguf_config(facts, vocab_size, tensors):
    """A GPTConfig of a GGUF's entries.

    Args:    facts; vocab_size, the tokenizer's; tensors, for what only they tell.
    Raises:  UserError for what our layers don't have.
    """
    name = facts.text("general.architecture")
    asked = {key.removeprefix(f"{name}."): value for key, value in facts.table.items()}
    facts = Facts(asked, facts.where)
    n_embd, n_head = facts.whole("embedding_length"), facts.whole("attention.head_count")
    shape = dict(
        vocab_size=vocab_size, block_size=facts.whole("context_length"),
        n_layer=facts.whole("block_count"), n_head=n_head, n_embd=n_embd,
        n_hidden=facts.whole("feed_forward_length"), norm_eps=_short(facts.number(NORM_EPS[name])),
        tie="output.weight" not in tensors,
    )  # fmt: skip
    if name == "gpt2":
        return GPTConfig(**shape, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True)
    head_dim = n_embd // max(n_head, 1)
    for key, *known in (
        ("rope.dimension_count", head_dim), ("attention.key_length", head_dim),
        ("attention.value_length", head_dim), ("expert_count", 0), ("attention.sliding_window",),
        ("rope.scaling.type", "none", "linear"), ("attention.scale",), ("logit_scale",),
    ):  # fmt: skip
        facts.must_be(key, *known)
    theta = _short(facts.number("rope.freq_base", 10_000.0))
    stretch = {}
    if facts.text("rope.scaling.type", "none") == "linear":
        stretch = {"rope_factor": _short(facts.number("rope.scaling.factor"))}
    if "rope_freqs.weight" in tensors:
        stretch = recognised_stretch(tensors["rope_freqs.weight"].floats(), theta, facts.where)
    return GPTConfig(
        **shape, **stretch, n_kv_head=facts.whole("attention.head_count_kv", n_head),
        rope_theta=theta, bias=any(name.endswith(".bias") for name in tensors),
    )  # fmt: skip


def recognised_stretch(divisors, theta, where):
    """Which stretching of RoPE's waves a table of divisors is: GGUF has the result, not the rule.

    Args:    divisors (D/2,), by which each ω is divided; theta; where, for errors.
    Returns: the fields of a GPTConfig.
    Raises:  UserError if it is not Llama 3's with its usual lengths.
    """
    D = 2 * divisors.size
    omega = theta ** (-2.0 * np.arange(D // 2) / D)  # (D/2,)
    factor = _short(np.max(divisors, initial=1.0))
    if not np.allclose(omega / stretch_waves(omega, factor, *LLAMA3), divisors, rtol=1e-5):
        raise UserError(
            f"{where}: rope_freqs.weight is not Llama 3's stretching of RoPE by a factor "
            f"of {factor:g}, and no other is supported"
        )
    return {"rope_factor": factor, "rope_kept": LLAMA3[0], "rope_stretched": LLAMA3[1]}


def _short(value):
    """The shortest number that float32 rounds to the same: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))


def gguf_tokenizer(facts):
    """The tokenizer of a GGUF file.

    Returns: BPETokenizer.
    Raises:  UserError if it is damaged, or is no byte-level BPE with a pattern that we know.
    """
    facts.must_be("tokenizer.ggml.model", "gpt2")
    facts.must_be("tokenizer.ggml.pre", *WORDS)
    where, table = facts.where, facts.table
    words = WORDS[facts.text("tokenizer.ggml.pre")]  # without it, llama.cpp takes a third pattern
    names, kinds, merges = tokenizer_lists(facts)
    vocab = {name: i for i, name in enumerate(names)}
    sides = [merge.split(" ") for merge in merges]
    used = {side for pair in sides for side in pair}
    check_vocab(where, vocab, [c for c in BYTE_OF if c in used])
    merges, made = follow_merges(f"{where}, merge", sides, vocab, first=1)
    special = {name: i for i, name in enumerate(names) if kinds[i] in (CONTROL, USER_DEFINED)}
    odd = next((name for name in names if (name in made) == (name in special)), None)
    if odd is not None:
        raise UserError(
            f"{where}: the token {odd[:60]!r} is neither made by merges nor a mark, or is both"
        )
    tok = bpe_class()(in_order(vocab, made), merges, special)
    tok.words = words
    tok.always_allowed = frozenset(name for name, i in special.items() if kinds[i] == USER_DEFINED)
    ids = [table.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "bos")]
    end, begin = (special_name(i, special) for i in ids)
    if end is not None:
        seen = begin == end or facts.flag("tokenizer.ggml.add_bos_token", False)
        tok.end_name, tok.begin_name = end, begin if seen else None
    return tok


def tokenizer_lists(facts):
    """The lists that a tokenizer is made of, seen to fit together.

    Returns: names of tokens, a list of str; kinds, an array of as many; merges, a list of str.
    Raises:  UserError naming the one that is missing or does not fit.
    """
    facts.text("tokenizer.ggml.model")
    lists = [facts.table.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges")]
    for key, value in zip(("tokens", "merges"), lists):
        if not isinstance(value, list):
            raise UserError(f"{facts.where} has no list tokenizer.ggml.{key}: is it a whole model?")
    names, merges = lists
    if len(set(names)) < len(names):
        raise UserError(f"{facts.where}: its tokenizer has a token twice")
    kinds = facts.table.get("tokenizer.ggml.token_type", np.full(len(names), PLAIN))
    if not isinstance(kinds, np.ndarray) or kinds.shape != (len(names),):
        raise UserError(f"{facts.where}: tokenizer.ggml.token_type does not fit to its tokens")
    return names, kinds, merges


def special_name(i, special):
    """The special token that has an id, None if there is none."""
    names = {number: name for name, number in special.items()}
    return names.get(i) if type(i) is int else None


def save_gguf(path, config, params, tok, name):
    """Write a model.

    Args:    path; config; params on the host; tok, a BPETokenizer; name of the model.
    Raises:  UserError if llama.cpp has no word for the model or its tokens, or if the file can't be
             written.
    """
    architecture = architecture_of(config)
    pre = {words: pre for pre, words in WORDS.items()}.get(getattr(tok, "words", None))
    if tok.kind != "bpe" or pre is None:
        raise UserError(
            f"the tokens of this model are of the kind {tok.kind!r}, which llama.cpp can't read "
            "from a file of ours: export it with --format npz"
        )
    if config.mlp in ("gelu", "relu"):
        raise UserError(
            f"llama.cpp computes the MLP of a GPT-2 with gelu_tanh, and this model's is "
            f"{config.mlp}: export it with --format hf"
        )
    if config.rope_stretched and (config.rope_kept, config.rope_stretched) != LLAMA3:
        raise UserError("only Llama 3's own stretching of RoPE is written: use --format hf")
    tensors = {
        part.name: (part.shape, lambda part=part: part.take(params))
        for part in parts_of(config, True)
    }
    if config.rope_stretched:
        omega = config.rope_theta ** (-2.0 * np.arange(config.head_dim // 2) / config.head_dim)
        divisors = omega / stretch_waves(omega, *config.rope_stretch)
        tensors["rope_freqs.weight"] = (divisors.shape, lambda: divisors)
    entries = {"general.architecture": architecture, "general.name": name, "general.file_type": 0}
    entries |= {f"{architecture}.{key}": value for key, value in describe(config).items()}
    write_gguf(path, entries | tokenizer_entries(tok, pre), tensors)


def describe(config):
    """What the entries of a GGUF file say of a model's shape, without the architecture's name."""
    architecture = architecture_of(config)
    facts = {
        "context_length": config.block_size, "embedding_length": config.n_embd,
        "block_count": config.n_layer, "feed_forward_length": config.n_hidden,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head,
        NORM_EPS[architecture]: float(config.norm_eps), "vocab_size": config.vocab_size,
    }  # fmt: skip
    if architecture == "llama":
        facts |= {"rope.freq_base": config.rope_theta, "rope.dimension_count": config.head_dim}
        if config.rope_factor != 1.0 and not config.rope_stretched:  # which has a tensor for it
            facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    return facts


def tokenizer_entries(tok, pre):
    """What a GGUF file says of a tokenizer.

    Args:    tok, a BPETokenizer; pre, llama.cpp's name of its pattern.
    """
    kinds = np.full(tok.vocab_size, PLAIN, np.int32)
    for name, i in tok.special_tokens.items():
        kinds[i] = USER_DEFINED if name in tok.always_allowed else CONTROL
    entries = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": names_of(tok), "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{written(a)} {written(b)}" for a, b in tok.merges],
        "tokenizer.ggml.add_bos_token": begins_with_a_mark(tok),
        "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    if tok.end_of_text is not None:
        begin = tok.end_of_text if tok.begin_of_text is None else tok.begin_of_text
        entries["tokenizer.ggml.bos_token_id"] = begin
        entries["tokenizer.ggml.eos_token_id"] = tok.end_of_text
    return entries
