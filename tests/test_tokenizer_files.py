"""The tokenizers' files: what is saved is loaded again, and what is damaged is named."""

import json
import os
import random
from pathlib import Path

import pytest
from test_tokenizer import SAMPLE

from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, load_tokenizer
from npgpt.tokenizer.files import saved_tokenizer


def trained(kind):
    special = ["<|naïve pad|>", END_OF_TEXT]  # in no alphabetical order
    if kind == "bpe":
        return BPETokenizer.train([SAMPLE], 350, special)
    return CharTokenizer.train([SAMPLE], special)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_save_and_load(kind, tmp_path):
    tok = trained(kind)
    tok.save(str(tmp_path / "made" / "here"))
    again = load_tokenizer(str(tmp_path / "made" / "here"))
    assert isinstance(again, type(tok))
    assert again.tokens == tok.tokens and again.special_tokens == tok.special_tokens
    text = SAMPLE + END_OF_TEXT + "<|naïve pad|>" + SAMPLE
    ids = tok.encode(text, allowed_special="all")
    assert again.encode(text, allowed_special="all") == ids and again.decode(ids) == text
    again.save(tmp_path / "twice")
    for file in (tmp_path / "twice").iterdir():
        assert file.read_bytes() == (tmp_path / "made" / "here" / file.name).read_bytes()
    written = {f"tokenizer/{f.name}": f.read_bytes() for f in (tmp_path / "twice").iterdir()}
    assert saved_tokenizer(tmp_path / "twice") == written, "a checkpoint keeps all of them"


@pytest.mark.parametrize("begin", [END_OF_TEXT, "<|naïve pad|>", None])
@pytest.mark.parametrize("end", [END_OF_TEXT, "<|naïve pad|>"])
def test_the_marks_around_a_text_are_saved(end, begin, tmp_path):
    tok = trained("bpe")
    tok.end_name, tok.begin_name = end, begin
    tok.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.end_of_text, again.begin_of_text) == (tok.end_of_text, tok.begin_of_text)
    assert (again.end_name, again.begin_name) == (end, begin)


def test_files_look_like_gpt2s(tmp_path):
    tok = BPETokenizer.train(["the the é\n"], 262)
    tok.save(tmp_path)
    names = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(os.listdir(tmp_path)) == names
    merges = "#version: 0.2\nt h\nth e\nÃ ©\nĠ Ã©\nĠ the\n"
    assert (tmp_path / "merges.txt").read_bytes().decode() == merges
    vocab = (tmp_path / "vocab.json").read_text()
    assert vocab.startswith('{"!": 0, "\\"": 1, "#": 2, ')
    assert vocab.endswith('"\\u0120the": 260, "<|endoftext|>": 261}')
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == {
        "kind": "bpe",
        "special_tokens": {END_OF_TEXT: 261},
        # What follows is read by Hugging Face's transformers.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
    }
    # Without the settings the two files are enough, also under the names GPT-2 was given.
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    assert load_tokenizer(tmp_path).special_tokens == {END_OF_TEXT: 261}
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    (tmp_path / "vocab.bpe").write_bytes(merges.replace("\n", "\r\n").encode())
    assert load_tokenizer(tmp_path).merges == tok.merges


def test_ids_in_another_order(tmp_path):
    # Other trainers put special tokens first: the ids of vocab.json are taken as they are.
    tok = BPETokenizer.train([SAMPLE], 300)
    tok.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    vocab = {name: (i + 1) % 300 for name, i in vocab.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    again = load_tokenizer(tmp_path)
    assert again.end_of_text == 0
    assert again.encode(SAMPLE) == [i + 1 for i in tok.encode(SAMPLE)]
    assert again.decode(again.encode(SAMPLE)) == SAMPLE


def test_the_last_save_counts(tmp_path):
    for kind in ("bpe", "char", "bpe"):
        trained(kind).save(tmp_path)
        assert load_tokenizer(tmp_path).kind == kind


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(kind, step, tmp_path, monkeypatch):
    tok = trained(kind)
    tok.save(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match=r"^.*json cannot be written: No space left on device$"):
        tok.save(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, named_when_safe):
    trained("char").save(tmp_path)
    assert named_when_safe == ["chars.json", "tokenizer_config.json"]


def test_saving_into_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"vocab\.json cannot be written"):
        trained("bpe").save(tmp_path / "taken")


def edit(path, change):
    path.write_text(change(path.read_text("utf-8")), "utf-8")


def edit_json(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


DAMAGES = {
    "no vocab": ("bpe", "vocab.json", Path.unlink, r"vocab\.json is missing"),
    "no merges": ("bpe", "merges.txt", Path.unlink, r"merges\.txt is missing"),
    "no chars": ("char", "chars.json", Path.unlink, r"chars\.json is missing"),
    "no settings": ("char", "tokenizer_config.json", Path.unlink, r"config\.json is missing or"),
    "a folder": ("bpe", "merges.txt", lambda p: (p.unlink(), p.mkdir()), "cannot be read: "),
    "binary": ("bpe", "merges.txt", lambda p: p.write_bytes(b"\xff"), "byte 0 is not UTF-8$"),
    "cut json": ("bpe", "vocab.json", lambda p: edit(p, lambda t: t[:-9]), "is damaged"),
    "cut settings": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t[:-9]),
        r"tokenizer_config\.json is damaged",
    ),
    "half a pair": ("char", "chars.json", lambda p: p.write_text('["\\ud800"]'), "is damaged"),
    "a list": ("bpe", "vocab.json", lambda p: p.write_text("[1]"), "is not a table from tokens"),
    "settings list": ("bpe", "tokenizer_config.json", lambda p: p.write_text("[]"), "not a table"),
    "float ids": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: v.update(t=1.5)),
        "is not a table from tokens to ids",
    ),
    "ids twice": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: v.update(t=1)),
        "each once",
    ),
    "no byte": (
        "bpe",
        "vocab.json",
        lambda p: edit_json(p, lambda v: {("t?" if k == "t" else k): i for k, i in v.items()}),
        r"vocab\.json has no token 't' for the byte b't'$",
    ),
    "no header": ("bpe", "merges.txt", lambda p: edit(p, lambda t: t[14:]), "does not begin with"),
    "three sides": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t.replace("\n", " e\n").replace(" e\n", "\n", 1)),
        r"merges\.txt, line 2: '\S+ \S+ e' is not two tokens",
    ),
    "a line lost": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: "\n".join(t.split("\n")[:2] + t.split("\n")[3:])),
        r"(vocab\.json: the token|merges\.txt, line)",
    ),
    "a merge too many": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t + "q q\n"),
        r"merges\.txt, line \d+: 'q q' makes a token that the vocabulary does not list$",
    ),
    "cut merges": (
        "bpe",
        "merges.txt",
        lambda p: edit(p, lambda t: t[: len(t) // 2]),
        r"(vocab\.json: the token|merges\.txt, line)",
    ),
    "other special": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t.replace("endoftext", "endofword")),
        r"the token '<\|endof(text|word)\|>' is not made by merges\.txt",
    ),
    "special gone": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit_json(p, lambda s: {"kind": "bpe"}),
        "special_tokens is not a table",
    ),
    "unknown kind": (
        "bpe",
        "tokenizer_config.json",
        lambda p: edit_json(p, lambda s: s.update(kind="wordpiece")),
        "kind is 'wordpiece', and must be 'bpe' or 'char'$",
    ),
    "not characters": (
        "char",
        "chars.json",
        lambda p: p.write_text('["ab"]'),
        "is not a list of single characters",
    ),
    "chars out of order": (
        "char",
        "chars.json",
        lambda p: edit_json(p, lambda c: c[::-1]),
        "is empty or out of order",
    ),
    "a character twice": (
        "char",
        "chars.json",
        lambda p: edit_json(p, lambda c: [c[0], *c]),
        "is empty or out of order",
    ),
    "special character": (
        "char",
        "tokenizer_config.json",
        lambda p: edit(p, lambda t: t.replace(END_OF_TEXT, "t")),
        r"do not follow the \d+ characters of chars\.json",
    ),
    "a character lost": (
        "char",
        "chars.json",
        lambda p: edit_json(p, lambda c: c[1:]),
        r"do not follow the \d+ characters of chars\.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage, tmp_path):
    kind, file, change, message = DAMAGES[damage]
    trained(kind).save(tmp_path)
    change(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text and "\n" not in text and not text.endswith(".")


def test_cut_merges_without_settings(tmp_path):
    trained("bpe").save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    edit(tmp_path / "merges.txt", lambda t: "\n".join(t.split("\n")[:20]))
    with pytest.raises(UserError, match=r"vocab\.json: the token .* is not made by merges\.txt"):
        load_tokenizer(tmp_path)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match=r"^there is no tokenizer folder .*nowhere: "):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_random_damage_loads_or_says_so(kind, tmp_path):
    trained(kind).save(tmp_path)
    rng = random.Random(4)
    files = sorted(tmp_path.iterdir())
    for _ in range(150):
        file = rng.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            load_tokenizer(tmp_path).decode([0, 1, 2])
        except UserError:
            pass
        file.write_bytes(whole)
