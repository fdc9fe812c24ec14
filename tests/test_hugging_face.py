"""tokenizer.json: the same ids as in Hugging Face's `tokenizers`, both ways, and clear refusals."""

import doctest
import json
import random
import sys
import unicodedata

import pytest

import npgpt.tokenizer.hugging_face
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, load_tokenizer
from npgpt.tokenizer.bpe import PATTERN
from npgpt.tokenizer.files import CHARACTER_OF
from npgpt.tokenizer.hugging_face import SPLIT

PROSE = """Once upon a time there was a small boat, and it couldn't swim; "We'll see," said the sea.
\tIn 1984, or 2001, they've sailed 12,345 miles  and   back...\n\n  She sells sea shells, naïve
Ὁ λόγος ἦν πρὸς τὸν θεόν. Съешь ещё этих мягких булок. 吾輩は猫である。 한국어 😀😀🏽 e\u0301é
"""

# Characters that have been letters, digits or marks since 2002: of younger ones, each library
# knows as many as its own version of Unicode does.
OLD = [
    chr(c)
    for c in range(sys.maxunicode + 1)
    if unicodedata.ucd_3_2_0.category(chr(c)) == unicodedata.category(chr(c)) not in ("Cn", "Cs")
]


def random_text(rng, length):
    """Characters of every kind, among them many of those that cut words."""
    common = " \n\t'sdlmtrev.,0123456789éλ中" + "".join(CHARACTER_OF.values())
    return "".join(rng.choice(rng.choice([common, common, OLD])) for _ in range(length))


@pytest.fixture(scope="module")
def tok():
    return BPETokenizer.train([PROSE * 2], 420, [END_OF_TEXT, "<|naïve pad|>"])


@pytest.fixture
def spec(tok, tmp_path):
    """The content of a tokenizer.json, for a test to spoil."""
    tok.save(tmp_path / "whole")
    return json.loads((tmp_path / "whole" / "tokenizer.json").read_text())


def load(spec, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    return load_tokenizer(tmp_path / "tokenizer.json")


def theirs(path):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(path))


def assert_same_ids(tok, other, texts):
    for text in texts:
        ids = other.encode(text).ids
        assert tok.encode(text, allowed_special="all") == ids
        assert tok.decode(ids) == text


def texts(seed, number=150):
    rng = random.Random(seed)
    yield from ("", " ", "\n", PROSE, PROSE + END_OF_TEXT + PROSE, f"a {END_OF_TEXT} b")
    yield from (f"  {END_OF_TEXT}{END_OF_TEXT}  ", "a" * 300, " " * 300, "<|endoftext")
    for length in range(number):
        yield random_text(rng, length)


# The same ids as theirs


def test_ours_exported_gives_the_same_ids_there(tok, tmp_path):
    tok.save(tmp_path)
    other = theirs(tmp_path / "tokenizer.json")
    assert other.get_vocab_size() == tok.vocab_size
    assert_same_ids(tok, other, texts(0))
    ids = tok.encode(PROSE)
    assert other.decode(ids) == PROSE
    half = tok.encode("é" if len(tok.encode("é")) == 2 else "ÿ")[:1]
    assert other.decode(half) == tok.decode(half) == "\ufffd"


def test_real_text_gives_the_same_ids_there(shared_data, tmp_path):
    pytest.importorskip("tokenizers")
    text = (shared_data / "tinystories" / "valid.txt").read_text("utf-8")
    tok = BPETokenizer.train([text[:60_000]], 800)
    tok.save(tmp_path)
    assert_same_ids(tok, theirs(tmp_path / "tokenizer.json"), [text, *texts(1, 20)])


@pytest.mark.parametrize("extra", ["first", "last", "within"])
def test_theirs_trained_gives_the_same_ids_here(extra, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pre = tokenizers.pre_tokenizers.ByteLevel
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = pre(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    if extra == "last":
        other.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre.alphabet(),
        special_tokens=[END_OF_TEXT] if extra == "first" else [],
        show_progress=False,
    )
    other.train_from_iterator([PROSE * 2], trainer)
    if extra != "first":
        other.add_special_tokens([END_OF_TEXT])
        other.add_tokens(["    ", "\n\n", "sea shells"])
    other.save(str(tmp_path / "tokenizer.json"))
    if extra == "within":  # ids need not follow those of the words
        spec = json.loads((tmp_path / "tokenizer.json").read_text())
        last = len(spec["model"]["vocab"]) + 3
        vocab = {name: last - i for name, i in spec["model"]["vocab"].items()}
        for token in spec["added_tokens"]:
            token["id"] = vocab[token["content"]] = last - token["id"]
        spec["model"]["vocab"] = vocab
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
        other = theirs(tmp_path / "tokenizer.json")
    tok = load_tokenizer(tmp_path)
    assert tok.vocab_size == other.get_vocab_size()
    assert tok.special_tokens == {
        token.content: i for i, token in other.get_added_tokens_decoder().items()
    }
    more = ("x    y     z", "she sells  sea shells\n\n\n", f"\n\n{END_OF_TEXT}    ")
    assert_same_ids(tok, other, [*texts(2), *more])
    # Written by us, it is the same once more, there and here.
    tok.save(tmp_path / "again")
    assert_same_ids(tok, theirs(tmp_path / "again" / "tokenizer.json"), [*texts(3, 30), *more])
    for path in (tmp_path / "again", tmp_path / "again" / "tokenizer.json"):
        again = load_tokenizer(path)
        assert again.always_allowed == tok.always_allowed
        assert (again.tokens, again.merges) == (tok.tokens, tok.merges)
        assert again.special_tokens == tok.special_tokens


def test_added_tokens_that_begin_together(spec, tmp_path):
    first = spec["added_tokens"][0]["id"]
    for i, name in enumerate(["<|a|>", "<|a|><|b|>", "|b|>x", "b|"]):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        spec["added_tokens"].append(
            {"id": first + 2 + i, "content": name, "special": i < 2} | flags
        )
    tok = load(spec, tmp_path)
    other = theirs(tmp_path / "tokenizer.json")
    rng = random.Random(4)
    pieces = ["<|a|>", "<|b|>", "<|a|", "b", "|b|>", "x", " ", ">", "<", "abab"]
    assert_same_ids(tok, other, ["".join(rng.choices(pieces, k=8)) for _ in range(200)])


def test_gpt2_gives_tiktokens_ids_by_way_of_tokenizer_json(shared_data, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    gpt2 = load_tokenizer(shared_data / "gpt2")
    gpt2.save(tmp_path)
    tok = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tok.tokens, tok.merges) == (gpt2.tokens, gpt2.merges)
    ranks = {token: i for i, token in enumerate(tok.tokens[:50256])}
    peer = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN.pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )
    real = (shared_data / "tinystories" / "valid.txt").read_text("utf-8")
    for text in [*texts(5), real]:
        ids = peer.encode(text, allowed_special="all")
        assert tok.encode(text, allowed_special="all") == ids
        assert tok.decode(ids) == text
    pytest.importorskip("tokenizers")
    assert_same_ids(tok, theirs(tmp_path / "tokenizer.json"), texts(6, 50))


def test_transformers_reads_our_folder(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    tok.save(tmp_path / "ours")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = f"{PROSE}, don 't{END_OF_TEXT} . <|naïve pad|>"
    ids = tok.encode(text, allowed_special="all")
    assert other(text)["input_ids"] == ids and set(other(text)) == {"input_ids", "attention_mask"}
    assert other.decode(other(PROSE + " .")["input_ids"]) == PROSE + " ."
    assert (len(other), other.eos_token_id) == (tok.vocab_size, tok.end_of_text)
    other.save_pretrained(tmp_path / "theirs")  # keeps our keys, but writes tokenizer.json only
    assert load_tokenizer(tmp_path / "theirs").encode(text, allowed_special="all") == ids


# What is read


def test_a_token_that_is_not_special_needs_no_permission(spec, tmp_path):
    spec["added_tokens"][1]["special"] = False
    tok = load(spec, tmp_path)
    pad = tok.special_tokens["<|naïve pad|>"]
    assert tok.always_allowed == {"<|naïve pad|>"}
    assert tok.encode("a<|naïve pad|>b") == [*tok.encode("a"), pad, *tok.encode("b")]
    with pytest.raises(UserError, match=r"special token .<.endoftext.>. at position 0"):
        tok.encode(END_OF_TEXT)
    tok.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode("<|naïve pad|>") == [pad]
    settings = tmp_path / "again" / "tokenizer_config.json"
    settings.write_text(
        settings.read_text().replace('"always_allowed": [', '"always_allowed": [7,')
    )
    with pytest.raises(UserError, match="always_allowed is not a list of its special tokens"):
        load_tokenizer(tmp_path / "again")


def test_both_ways_to_write_a_merge_and_what_changes_no_id(tok, spec, tmp_path):
    del spec["model"]["type"], spec["model"]["ignore_merges"]  # as in GPT-2's own, of 2019
    spec["model"] |= {"continuing_subword_prefix": "", "unk_token": END_OF_TEXT, "dropout": 0.0}
    spec["model"]["merges"] = [merge.split(" ") for merge in spec["model"]["merges"]]
    spec["normalizer"] = {"type": "Sequence", "normalizers": []}
    cut = {"type": "Split", "pattern": {"Regex": PATTERN.pattern}, "behavior": "Isolated"}
    write = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    spec["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [cut | {"invert": False}, write]
    }  # fmt: skip
    spec["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    spec["post_processor"] = {"type": "TemplateProcessing", "single": text, "pair": text * 2}
    again = load(spec, tmp_path)
    assert (again.tokens, again.merges) == (tok.tokens, tok.merges)
    assert SPLIT["pattern"] == (cut["pattern"],)


def test_a_token_may_be_made_twice_while_nothing_uses_it(spec, tmp_path):
    names = ["ab", "bc", "abc", "abcd"]
    spec["model"]["vocab"] = {c: i for i, c in enumerate([*CHARACTER_OF.values(), *names])}
    spec["model"]["merges"] = ["a b", "b c", "ab c", "a bc", "abc d"]
    spec["added_tokens"] = []
    tok = load(spec, tmp_path)
    assert tok.encode("abcd") == [259] and len(tok.merges) == 5
    assert_same_ids(tok, theirs(tmp_path / "tokenizer.json"), ["abcd abcabcd bcd abdabc"])


@pytest.mark.parametrize("merges", ["a b|b c|ab c|abc d|a bc", "a b|b c|ab c|ab c"])
def test_but_not_later_and_not_of_the_same_two(merges, spec, tmp_path):
    """What is refused depends on the encoder: which of the two merges would come first?"""
    names = ["ab", "bc", "abc", "abcd"]
    spec["model"]["vocab"] = {c: i for i, c in enumerate([*CHARACTER_OF.values(), *names])}
    spec["model"]["merges"] = merges.split("|")
    spec["added_tokens"] = []
    with pytest.raises(UserError, match=r"' makes a token that was made, and used, before$"):
        load(spec, tmp_path)


def test_a_folder_of_theirs_is_read_by_its_tokenizer_json(tok, spec, tmp_path):
    tok.save(tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    (tmp_path / "whole" / "vocab.json").write_text("{}")  # is not asked
    assert load_tokenizer(tmp_path / "whole").tokens == tok.tokens


def test_the_example_in_the_text():
    result = doctest.testmod(npgpt.tokenizer.hugging_face)
    assert result.failed == 0 and result.attempted == 1


# What is refused, and what is damaged


def put(*keys, value):
    """A change of one place in the file: keys, the way to it."""

    def change(spec):
        for key in keys[:-1]:
            spec = spec[key]
        spec[keys[-1]] = value

    return change


NOT_SUPPORTED = {
    "a normalizer": (put("normalizer", value={"type": "NFC"}), "the normalizer NFC"),
    "one of two": (
        put(
            "normalizer",
            value={"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFC"}]},
        ),
        "the normalizer Lowercase",
    ),
    "another model": (put("model", "type", value="Unigram"), "the model Unigram"),
    "bytes last": (put("model", "byte_fallback", value=True), "byte_fallback true in its model"),
    "dropout": (put("model", "dropout", value=0.1), "dropout 0.1 in its model"),
    "whole words": (put("model", "ignore_merges", value=True), "ignore_merges true in its model"),
    "ends": (put("model", "end_of_word_suffix", value="</w>"), 'end_of_word_suffix "</w>" in its'),
    "continuation": (
        put("model", "continuing_subword_prefix", value="##"),
        'continuing_subword_prefix "##" in its model',
    ),
    "the future": (put("model", "vision", value=1), "'vision' in its model"),
    "the far future": (put("version", value="2.0"), 'version "2.0" in its outer table'),
    "a part unheard of": (
        put("post_normalizer", value=None),
        "'post_normalizer' in its outer table",
    ),
    "no words": (
        put("pre_tokenizer", value=None),
        "text that is not cut into words: it has no pre",
    ),
    "a space before": (
        put("pre_tokenizer", "add_prefix_space", value=True),
        "add_prefix_space true in its pre_tokenizer",
    ),
    "uncut": (put("pre_tokenizer", "use_regex", value=False), "use_regex false in its pre_token"),
    "other words": (
        put("pre_tokenizer", value={"type": "Metaspace"}),
        "the pre_tokenizer Metaspace",
    ),
    "digits": (
        put(
            "pre_tokenizer",
            value={
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}],
            },
        ),
        "individual_digits null in its pre_tokenizer",
    ),
    "another pattern": (
        put(
            "pre_tokenizer",
            value={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
        ),
        r'pattern {"Regex": "\\p{N}{1,3}"} in its pre_tokenizer',
    ),
    "words and more": (
        put(
            "pre_tokenizer",
            value={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "ByteLevel", "add_prefix_space": False},
                    {"type": "Digits"},
                ],
            },
        ),
        "the pre_tokenizers ByteLevel, Digits in a row",
    ),
    "a beginning": (
        put(
            "post_processor",
            value={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
            },
        ),
        'single [{"SpecialToken": {"id": "<s>", "type_id": 0}}] in its post_processor',
    ),
    "both ends": (
        put("post_processor", value={"type": "RobertaProcessing", "sep": ["</s>", 2]}),
        "the post_processor RobertaProcessing",
    ),
    "another decoder": (put("decoder", value={"type": "WordPiece"}), "the decoder WordPiece"),
    "truncation": (put("truncation", value={"max_length": 8}), 'truncation {"max_length": 8} in'),
    "padding": (put("padding", value={"pad_id": 0}), 'padding {"pad_id": 0} in its outer table'),
    "greedy spaces": (
        put("added_tokens", 0, "lstrip", value=True),
        "lstrip true in its added token '<|endoftext|>'",
    ),
    "two passes": (
        lambda spec: (
            put("added_tokens", 0, "normalized", value=True)(spec),
            put("added_tokens", 1, "content", value="end")(spec),
            spec["model"]["vocab"].update(end=spec["model"]["vocab"].pop("<|naïve pad|>")),
        ),
        "the added tokens '<|endoftext|>' and 'end', one normalized, that can overlap",
    ),
    "added and ordinary": (
        lambda spec: spec["added_tokens"].append({"id": 0, "content": "!"}),
        "'!' as an added token and as an ordinary one",
    ),
}


@pytest.mark.parametrize("what", NOT_SUPPORTED)
def test_what_is_not_supported_is_named(what, spec, tmp_path):
    change, message = NOT_SUPPORTED[what]
    change(spec)
    with pytest.raises(UserError) as caught:
        load(spec, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'tokenizer.json'} asks for {message}")
    assert said.endswith(
        ", which is not supported: npgpt reads byte-level BPE that cuts words as GPT-2 does"
    )


def rename(old, new):
    """A change of a token's name in the vocabulary."""

    def change(spec):
        vocab = spec["model"]["vocab"]
        spec["model"]["vocab"] = {(new if k == old else k): i for k, i in vocab.items()}

    return change


DAMAGES = {
    "a list": (lambda spec: [spec], "is not a tokenizer.json, since it has no table 'model'"),
    "no model": (lambda spec: spec.pop("model") and None, "has no table 'model'"),
    "no vocab": (put("model", "vocab", value=[]), "its model has no table 'vocab' or no list"),
    "no merges": (put("model", "merges", value=None), "no table 'vocab' or no list 'merges'"),
    "a word for an id": (put("model", "vocab", "a", value="7"), "not a table from tokens to ids"),
    "true": (put("model", "vocab", "a", value=True), "is not a table from tokens to ids"),
    "a gap": (put("model", "vocab", "a", value=9999), "ids are not 0 to 419, each once: 64 is mis"),
    "one id twice": (put("model", "vocab", "a", value=65), "each once: 64 is missing"),
    "no byte": (rename("a", "aaaaaaa"), "has no token 'a' for the byte b'a'"),
    "a merge of one": (put("model", "merges", 4, value="ab"), "merge 5: 'ab' is not two tokens"),
    "a merge of three": (put("model", "merges", 4, value=list("abc")), "merge 5: 'a b c' is not"),
    "a merge of ids": (
        put("model", "merges", 4, value=[3, 4]),
        r"merge 5: [3, 4] is not two token",
    ),
    "a merge of what is not": (put("model", "merges", 0, value="zz z"), "merge 1: 'zz z' is not"),
    "a merge to what is not": (put("model", "merges", 0, value="z q"), "merge 1: 'z q' makes a to"),
    "a merge twice": (
        lambda spec: spec["model"]["merges"].append(spec["model"]["merges"][0]),
        "makes a token that was made, and used, before",
    ),
    "a merge lost": (
        lambda spec: spec["model"]["merges"].pop() and None,
        "is no byte, is made by no merge, and is not among the added tokens",
    ),
    "an added token lost": (
        lambda spec: spec["added_tokens"].pop() and None,
        "the token '<|naïve pad|>' is no byte, is made by no merge",
    ),
    "added table": (put("added_tokens", value={}), "its added_tokens are not a list"),
    "added word": (put("added_tokens", 0, value="word"), "added token 1 has no content or no id"),
    "added nothing": (put("added_tokens", 1, "content", value=""), "added token 2 has no content"),
    "added without id": (put("added_tokens", 1, "id", value=None), "added token 2 has no content"),
    "another id": (
        put("added_tokens", 0, "id", value=5),
        "'<|endoftext|>' has id 418 in vocab, 5 as added token",
    ),
    "added twice": (
        lambda spec: spec["added_tokens"].append(spec["added_tokens"][0]),
        "the added token '<|endoftext|>' is there twice",
    ),
    "no part": (put("pre_tokenizer", value="ByteLevel"), "its pre_tokenizer is not a table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage, spec, tmp_path):
    change, message = DAMAGES[damage]
    spec = change(spec) or spec
    with pytest.raises(UserError) as caught:
        load(spec, tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "tokenizer.json")) and message in said
    assert "\n" not in said and not said.endswith(".")


def test_a_token_twice_in_the_vocabulary(tok, tmp_path):
    tok.save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"!": 0,', '"!": 0, "!": 1,'))
    with pytest.raises(UserError, match=r"tokenizer\.json has '!' twice in one table: fetch"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged: what it holds is not JSON"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_random_damage_loads_or_says_so(tok, tmp_path):
    tok.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    rng = random.Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            load_tokenizer(path).decode([0, 1, 2])
        except UserError:
            pass


def random_value(rng):
    return rng.choice(
        [None, True, False, 0, -1, 1.5, "", "a", [], {}, [[]], [{}], {"type": "Sequence"}]
    )


def test_random_values_anywhere_load_or_are_refused(spec, tmp_path):
    rng = random.Random(8)
    whole = json.dumps(spec)
    for _ in range(300):
        spec = place = json.loads(whole)
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            deeper = isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7
            if not deeper:
                break
            place = place[key]
        place[key] = random_value(rng)
        try:
            load(spec, tmp_path)
        except UserError:
            pass
