"""tokenizer.json, the one file of Hugging Face's `tokenizers`: read with care, and written.

The file describes a tokenizer as a chain of parts, and each part comes in many kinds:

    part             what it does                               what is understood here
    added_tokens     texts that are cut out before all else     those that ask for nothing more
    normalizer       changes letters: lower case, no accents    none
    pre_tokenizer    cuts the text into words                   ByteLevel, with GPT-2's pattern;
                                                                before it Digits, one by one
    model            makes tokens of each word                  BPE
    post_processor   puts more tokens around them               none that does
    decoder          makes text of tokens                       ByteLevel
    truncation       cuts long texts off                        none
    padding          makes short texts longer                   none

A reader that passed over a part it does not know would seem to work, and now and then give other
ids than those the model was trained on: the worst of faults, for nothing shows it. So whatever
could change an id is either understood or refused by its name.

Added tokens
    A special one is a mark like <|endoftext|>, and encode asks before it makes an id of it (see
    base.py). `tokenizers` never asks: its ids are those of encode(text, allowed_special="all").
    One that is not special is an ordinary text that happens to be one token, such as a row of
    spaces. It becomes its id whoever wrote it, so it stands in special_tokens, whose texts
    are cut out, and in always_allowed too. Where two fit, the first is taken, and where they
    begin together the longer, there as here.

Merges
    A merge is written "Ġt he" in older files, ["Ġt", "he"] in newer ones. Both are read; what is
    written is the first, which every version understands.
"""

import json
from itertools import product

from ..errors import UserError
from .files import (
    BYTE_OF,
    TOKENIZER_JSON,
    check_vocab,
    follow_merges,
    in_order,
    in_order_of_ids,
    names_of,
    read_json,
    save_bpe,
    write_json,
    written,
)

# What each part may say: its keys, and the values that are understood. ANY cannot change an id.
ANY = ()
NO = (None, False)
NOTHING = (None, "")
FILE = {
    "version": ("1.0",), "truncation": (None,), "padding": (None,), "added_tokens": ANY,
    "normalizer": ANY, "pre_tokenizer": ANY, "model": ANY, "post_processor": ANY, "decoder": ANY,
}  # fmt: skip
MODEL = {
    "type": ("BPE", None),  # older files leave it out
    "dropout": (None, 0), "unk_token": ANY, "fuse_unk": ANY,  # no byte is unknown
    "continuing_subword_prefix": NOTHING, "end_of_word_suffix": NOTHING,
    "byte_fallback": NO, "ignore_merges": NO, "vocab": ANY, "merges": ANY,
}  # fmt: skip
ADDED = {
    "id": ANY, "content": ANY, "single_word": NO, "lstrip": NO, "rstrip": NO,
    "normalized": ANY, "special": ANY,
}  # fmt: skip
BYTES = {"type": ("ByteLevel",), "add_prefix_space": ANY, "trim_offsets": ANY, "use_regex": ANY}
WORDS = {**BYTES, "add_prefix_space": (False,), "use_regex": (True, None)}
# The same in two steps. The pattern is that of bpe.py, which a test makes sure of.
SPLIT = {
    "type": ("Split",),
    "pattern": (
        {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"},
    ),
    "behavior": ("Isolated",), "invert": NO,
}  # fmt: skip
DIGITS = {"type": ("Digits",), "individual_digits": (True,)}
UNSPLIT = {**BYTES, "add_prefix_space": (False,), "use_regex": (False,)}
TEMPLATE = {
    "type": ("TemplateProcessing",),
    "single": ([{"Sequence": {"id": "A", "type_id": 0}}],),  # the text, and nothing around it
    "pair": ANY, "special_tokens": ANY,
}  # fmt: skip


def save_everywhere(tok, folder):
    """Write a BPETokenizer so that npgpt, tiktoken, tokenizers and transformers can read it.

    Args:    tok; folder, made if it is not there: then it has GPT-2's vocab.json and merges.txt,
             tokenizer_config.json, and tokenizer.json.
    Raises:  UserError if the folder cannot be written.
    """
    save_bpe(tok, folder)
    save_hugging_face(tok, folder)


def save_hugging_face(tok, folder):
    """Write tokenizer.json for a BPETokenizer.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    byte_level["trim_offsets"] = False  # the space before a word belongs to its token
    cut = byte_level
    if tok.words == "digits":
        digits = {"type": "Digits", "individual_digits": True}
        cut = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {name: i for i, name in enumerate(names_of(tok))},
        "merges": [f"{written(left)} {written(right)}" for left, right in tok.merges],
    }  # fmt: skip
    write_parts(tok, folder, pre_tokenizer=cut, post_processor=byte_level, decoder=byte_level,
                model=model)  # fmt: skip


def save_characters_json(tok, folder):
    """Write tokenizer.json for a CharTokenizer: every character is a word, and a token.

    It is for other programs: npgpt reads its own chars.json.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    vocab = {name: i for i, name in enumerate([*tok.characters, *tok.special_tokens])}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}
    # The token for what is unknown must be named, and is none: then the text is refused.
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<|no such token|>"}
    write_parts(tok, folder, pre_tokenizer=split | {"invert": False}, post_processor=None,
                decoder={"type": "Fuse"}, model=model)  # fmt: skip


def write_parts(tok, folder, **parts):
    """Write tokenizer.json: the parts that are given, and what every tokenizer has."""
    added = [
        {
            "id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": name not in tok.always_allowed,
        }
        for name, i in in_order_of_ids(tok.special_tokens).items()
    ]  # fmt: skip
    common = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
    }  # fmt: skip
    write_json(folder, TOKENIZER_JSON, common | parts)


def load_hugging_face(path):
    """Read a tokenizer.json.

    Args:    path of the file.
    Returns: tokens, a list of bytes; merges, a list of pairs of bytes; special_tokens, a dict
             of all added tokens; always_allowed, a frozenset of those that are not special;
             words, the name of the pattern that cuts them.
    Raises:  UserError naming what is missing, damaged, or not supported.
    """
    parts = read_json(path)
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        raise UserError(
            f"{path} is not a tokenizer.json, since it has no table 'model': "
            "of vocab.json and merges.txt give the folder"
        )
    model = parts["model"]
    check_part(path, "model", model, MODEL)
    check_part(path, "outer table", parts, FILE)
    words = check_chain(path, parts)
    special_tokens, always_allowed = read_added_tokens(path, parts.get("added_tokens"))

    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{path} is damaged: its model has no table 'vocab' or no list 'merges'")
    for name, i in special_tokens.items():
        if vocab.setdefault(name, i) != i:
            raise UserError(f"{path}: {name!r} has id {vocab[name]} in vocab, {i} as added token")
    sides = [read_merge(path, number, merge) for number, merge in enumerate(merges, start=1)]
    # Of bytes that its training text had not, a vocabulary from elsewhere may have no tokens.
    used = {side for pair in sides for side in pair}
    check_vocab(path, vocab, [c for c in BYTE_OF if c in used])
    merges, made = follow_merges(f"{path}, merge", sides, vocab, first=1)
    for name in vocab:
        if name in made and name in special_tokens:
            refuse(path, f"{name!r} as an added token and as an ordinary one")
        if name not in made and name not in special_tokens:
            raise UserError(
                f"{path}: the token {name!r} is no byte, is made by no merge, and is not among "
                "the added tokens: the file has lost something, so fetch or save it again"
            )
    tokens = in_order(vocab, made)
    return tokens, merges, in_order_of_ids(special_tokens), always_allowed, words


def check_chain(path, parts):
    """Raise UserError unless the parts around the model are understood.

    Returns: the name of the pattern that cuts words, a key of bpe.PATTERNS.
    """
    for step in chain(path, "normalizer", parts, "normalizers"):
        refuse(path, f"the normalizer {step.get('type')}")
    for step in chain(path, "post_processor", parts, "processors"):
        template = step.get("type") == "TemplateProcessing"
        check_part(path, "post_processor", step, TEMPLATE if template else BYTES)
    for step in chain(path, "decoder", parts, "decoders"):
        check_part(path, "decoder", step, BYTES)
    steps = chain(path, "pre_tokenizer", parts, "pretokenizers")
    if not steps:
        refuse(path, "text that is not cut into words: it has no pre_tokenizer")
    # ByteLevel cuts and writes bytes as characters, or only the latter, after a Split has cut.
    first = steps[0].get("type")
    known = [SPLIT, UNSPLIT] if first == "Split" else [WORDS]
    if first == "Digits":
        known = [DIGITS, *known]
    for step, keys in zip(steps, known):
        check_part(path, "pre_tokenizer", step, keys)
    if len(steps) != len(known):
        names = ", ".join(str(step.get("type")) for step in steps)
        refuse(path, f"the pre_tokenizers {names} in a row")
    return "digits" if first == "Digits" else "gpt2"


def chain(path, part, parts, steps):
    """The steps of a part, a list of dicts: a Sequence is taken apart, and null has none."""
    found = parts.get(part)
    if isinstance(found, dict) and found.get("type") == "Sequence" and steps in found:
        found = found[steps]
    found = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(step, dict) for step in found):
        raise UserError(f"{path} is damaged: its {part} is not a table")
    return found


def check_part(path, title, part, known):
    """Raise UserError, by name, for a key that is not known or a value that is not understood."""
    for key, value in {**dict.fromkeys(known), **part}.items():
        if key not in known:
            refuse(path, f"{key!r} in its {title}")
        if known[key] != ANY and value not in known[key]:
            said = json.dumps(value, ensure_ascii=False)
            said = f"{key} {said if len(said) <= 60 else said[:60] + '...'}"
            refuse(path, f"the {title} {value}" if key == "type" else f"{said} in its {title}")


def refuse(path, what):
    """Raise the UserError for what is not supported."""
    raise UserError(
        f"{path} asks for {what}, which is not supported: "
        "npgpt reads byte-level BPE that cuts words as GPT-2 does"
    )


def read_added_tokens(path, entries):
    """The added tokens: a dict from text to id, and a frozenset of those that are not special."""
    ids, groups, always_allowed = {}, {True: [], False: []}, set()
    if not isinstance(entries, list | None):
        raise UserError(f"{path} is damaged: its added_tokens are not a list")
    for number, entry in enumerate(entries or [], start=1):
        name, i = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(name, str) or not name or type(i) is not int:
            raise UserError(f"{path} is damaged: added token {number} has no content or no id")
        check_part(path, f"added token {name!r}", entry, ADDED)
        if name in ids:
            raise UserError(f"{path}: the added token {name!r} is there twice")
        ids[name] = i
        groups[bool(entry.get("normalized"))].append(name)
        if not entry.get("special"):
            always_allowed.add(name)
    for a, b in product(*groups.values()):  # `tokenizers` goes through one group after the other
        if overlap(a, b):
            refuse(path, f"the added tokens {a!r} and {b!r}, one normalized, that can overlap")
    return ids, frozenset(always_allowed)


def overlap(a, b):
    """Whether two texts can share characters: one holds the other, or ends as it begins.

    >>> overlap("<|a|>", "<|b|>"), overlap("aba", "bab"), overlap("a", "cat")
    (False, True, True)
    """
    shorter = range(1, min(len(a), len(b)))
    return a in b or b in a or any(a[-k:] == b[:k] or b[-k:] == a[:k] for k in shorter)


def read_merge(path, number, merge):
    """The two sides of a merge, which older files write as one string with a space."""
    sides = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(sides, list) or not all(isinstance(side, str) for side in sides):
        raise UserError(f"{path}, merge {number}: {merge!r} is not two tokens")
    return sides
