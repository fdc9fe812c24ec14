"""The files of a tokenizer: GPT-2's two, one for characters, and one that says which.

GPT-2 keeps its vocabulary as text, so each of the 256 bytes needs a printable character to
stand for it. Bytes that are printable in Latin-1 stand for themselves; the other 68 (the
controls, the space, 0x7F to 0xA0, the soft hyphen) borrow, in order, the characters from
U+0100 up. Thus a space is Ġ, U+0120, and the word " the" is written Ġthe. The order in which
that table is made, printable bytes first, is also the order of the first 256 ids.

    vocab.json   {"!": 0, "\\"": 1, ..., "Ġthe": 262, ..., "<|endoftext|>": 50256}
    merges.txt   a line "#version: 0.2", then the two sides of each merge, in order

GPT-2 was published with the names encoder.json and vocab.bpe, which are read too.

tokenizer_config.json says which kind of tokenizer a folder holds, its special tokens, and what is
not as GPT-2 has it: how words are cut, which bytes have no token, what stands around a text.
Hugging Face's transformers looks into a file of that name for what it has to know, so theirs
stands beside ours: each passes over the keys of the other.

Every file is written beside its place and then moved onto it, so a crash leaves the old file
or the new one, never half of one.

Source: Radford et al. 2019: the table bytes_to_unicode of the released encoder.py.
"""

import json
import os
from collections import Counter
from pathlib import Path

from ..errors import UserError
from .base import END_OF_TEXT

SETTINGS = "tokenizer_config.json"
CHARACTERS = "chars.json"
VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
TOKENIZER_JSON = "tokenizer.json"  # of hugging_face.py
LLAMA2C = "tokenizer.bin"  # of interchange/llama2c.py
HEADER = "#version: 0.2"
FOR_TRANSFORMERS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,  # or its decode would write "end ." as "end."
    "model_input_names": ["input_ids", "attention_mask"],
}


def _byte_characters():
    """The dict from each byte, 0 to 255, to its character, in the order of GPT-2's ids."""
    table = {b: chr(b) for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    for b in range(256):
        if b not in table:
            table[b] = chr(0x100 + len(table) - 188)  # 188 bytes are printable
    return table


CHARACTER_OF = _byte_characters()
BYTE_OF = {c: bytes([b]) for b, c in CHARACTER_OF.items()}


def written(token):
    """Bytes as GPT-2's files write them: b" the" is "Ġthe"."""
    return "".join([CHARACTER_OF[b] for b in token])


def names_of(tok):
    """What the files call each token, a list: special tokens by their text, others as written."""
    names = {i: name for name, i in tok.special_tokens.items()}
    return [names.get(i) or written(token) for i, token in enumerate(tok.tokens)]


def check_names(special_tokens, tokens):
    """Raise UserError if the files could not tell a special token from one of tokens."""
    for name in set(special_tokens) & {written(token) for token in tokens}:
        raise UserError(f"the special token {name!r} is an ordinary token too: rename it")


def save_bpe(tok, folder):
    """Write vocab.json, merges.txt and tokenizer_config.json for a BPETokenizer.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    lines = [HEADER, *(f"{written(left)} {written(right)}" for left, right in tok.merges)]
    write_json(folder, "vocab.json", {name: i for i, name in enumerate(names_of(tok))})
    write_file(folder, "merges.txt", "\n".join(lines) + "\n")
    save_settings(tok, folder, FOR_TRANSFORMERS)


def load_bpe(folder, settings):
    """Read GPT-2's two files.

    Args:    folder; settings, the content of tokenizer_config.json ({} where there is none).
    Returns: tokens, a list of bytes; merges, a list of pairs of bytes; special_tokens, a dict.
    Raises:  UserError naming the file that is missing, damaged, or at odds with another.
    """
    pairs = [(folder / vocab, folder / merges) for vocab, merges in VOCABULARIES]
    vocab_path, merges_path = next((p for p in pairs if p[0].exists() or p[1].exists()), pairs[0])
    vocab = read_json(vocab_path)
    missing = str(settings.get("missing_bytes", "")).split() if "kind" in settings else ()
    check_vocab(vocab_path, vocab, [c for c, b in BYTE_OF.items() if b.hex() not in missing])
    lines = read_file(merges_path).rstrip("\n").split("\n")
    if not lines[0].startswith("#version"):
        raise UserError(f"{merges_path} does not begin with the line {HEADER!r}")
    sides = [line.rstrip("\r").split(" ") for line in lines[1:]]
    merges, made = follow_merges(f"{merges_path}, line", sides, vocab, first=2)

    rest = {name: i for name, i in vocab.items() if name not in made}
    if "kind" in settings:
        special_tokens = special_tokens_of(folder, settings)
    else:  # GPT-2's own files name no special tokens, and all of its kind look like this
        special_tokens = {s: i for s, i in rest.items() if s[:2] == "<|" and s[-2:] == "|>"}
    if special_tokens != rest:
        odd = min(special_tokens.items() ^ rest.items())[0]
        raise UserError(
            f"{vocab_path}: the token {odd!r} is not made by {merges_path.name}, or is not the "
            f"special token that {SETTINGS} says: one of the files is cut short or of another save"
        )
    return in_order(vocab, made), merges, in_order_of_ids(special_tokens)


def check_vocab(path, vocab, needed=BYTE_OF):
    """Raise unless vocab is a dict from tokens to the ids 0, 1, 2, ..., the bytes among them.

    Args:    path, for errors; vocab; needed, the bytes that it must have, as written.
    Raises:  UserError naming the path.
    """
    if not isinstance(vocab, dict) or any(type(i) is not int for i in vocab.values()):
        raise UserError(f"{path} is not a table from tokens to ids: fetch or save it again")
    missing = set(range(len(vocab))).difference(vocab.values())
    if missing:
        raise UserError(
            f"{path}: its ids are not 0 to {len(vocab) - 1}, each once: {min(missing)} is missing"
        )
    lacking = next((c for c in needed if c not in vocab), None)
    if lacking is not None:
        raise UserError(f"{path} has no token {lacking!r} for the byte {BYTE_OF[lacking]!r}")


def follow_merges(where, merges, vocab, first):
    """Make the tokens as training made them, and see that all of it fits together.

    A list of merges that lost some would still load, and encode to other ids than the model
    was trained with; so every merge must join what there is to a token that the vocabulary has.
    It may be the second to make that token (other trainers do that), but not after the token has
    been used: then it would depend on the encoder which of two merges comes first.

    Args:    where, the beginning of an error, such as "merges.txt, line"; merges, a list of
             lists of two tokens as written; vocab; first, the number of the first merge.
    Returns: merges, a list of pairs of bytes; made, a dict from what is written to bytes.
    Raises:  UserError naming the merge that does not fit.
    """
    pairs, made, used = {}, dict(BYTE_OF), set()
    for number, sides in enumerate(merges, start=first):
        joined = "".join(sides)
        if len(sides) != 2 or not all(side in made for side in sides):
            wrong = "is not two tokens that are bytes or were made before"
        elif joined not in vocab:
            wrong = "makes a token that the vocabulary does not list"
        elif joined in used or tuple(sides) in pairs:
            wrong = "makes a token that was made, and used, before"
        else:
            pairs[tuple(sides)] = tuple(made[side] for side in sides)
            made[joined] = b"".join(pairs[tuple(sides)])
            used.update(sides)
            continue
        raise UserError(f"{where} {number}: {' '.join(sides)!r} {wrong}")
    return list(pairs.values()), made


def in_order(vocab, made):
    """The bytes of all tokens in the order of their ids; what no merge made is its own text."""
    return [made[name] if name in made else name.encode("utf-8") for name in in_order_of_ids(vocab)]


def in_order_of_ids(table):
    """A dict from text to id, sorted by the ids."""
    return dict(sorted(table.items(), key=lambda item: item[1]))


def save_characters(tok, folder):
    """Write chars.json, the characters in the order of their ids, and tokenizer_config.json.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    write_json(folder, CHARACTERS, tok.characters)
    save_settings(tok, folder, {})


def load_characters(folder, settings):
    """Read the characters, and check that the special tokens follow them.

    Args:    folder; settings, the content of tokenizer_config.json.
    Returns: characters, special_tokens: two lists of str.
    Raises:  UserError naming the file that is missing, damaged, or at odds with another.
    """
    path = folder / CHARACTERS
    characters = read_json(path)
    if not isinstance(characters, list) or not all(
        isinstance(c, str) and len(c) == 1 for c in characters
    ):
        raise UserError(f"{path} is not a list of single characters: save the tokenizer again")
    if not characters or characters != sorted(set(characters)):
        raise UserError(f"{path} is empty or out of order: save the tokenizer again")
    ids = special_tokens_of(folder, settings)
    following = range(len(characters), len(characters) + len(ids))
    if sorted(ids.values()) != list(following) or set(characters) & set(ids):
        raise UserError(
            f"{folder / SETTINGS}: the special tokens {ids} do not follow the "
            f"{len(characters)} characters of {CHARACTERS}: save the tokenizer again"
        )
    return characters, sorted(ids, key=ids.get)


def saved_tokenizer(folder):
    """What tok.save wrote into a folder, as a checkpoint keeps it.

    Whatever else lies there is left out: the temporary file of a save that was killed, say.

    Args:    folder, named "tokenizer".
    Returns: a dict from "tokenizer/" and a file's name to its bytes.
    """
    names = (SETTINGS, CHARACTERS, *VOCABULARIES[0], TOKENIZER_JSON, LLAMA2C)
    paths = (Path(folder) / name for name in names)
    return {f"tokenizer/{path.name}": path.read_bytes() for path in paths if path.is_file()}


def save_settings(tok, folder, others):
    """Write tokenizer_config.json: the kind of tokenizer, its special tokens, and others' keys."""
    settings = {"kind": tok.kind, "special_tokens": tok.special_tokens}
    if tok.always_allowed:
        settings["always_allowed"] = sorted(tok.always_allowed)
    if getattr(tok, "words", "gpt2") != "gpt2":
        settings["words"] = tok.words
    if tok.kind == "bpe" and (missing := set(BYTE_OF.values()) - set(tok.tokens)):
        settings["missing_bytes"] = " ".join(sorted(b.hex() for b in missing))
    if (tok.end_name, tok.begin_name) != (END_OF_TEXT, END_OF_TEXT):
        settings["end_name"], settings["begin_name"] = tok.end_name, tok.begin_name
    if others and tok.end_of_text is not None:  # it stands before each document, and after
        begin = tok.end_name if tok.begin_of_text is None else tok.begin_name
        others = {**others, "bos_token": begin, "eos_token": tok.end_name}
    write_json(folder, SETTINGS, {**settings, **others}, indent=2)


def read_settings(folder):
    """The content of tokenizer_config.json, {} where there is none; UserError if damaged."""
    path = Path(folder) / SETTINGS
    settings = read_json(path) if path.exists() else {}
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a table of settings: save the tokenizer again")
    return settings


def special_tokens_of(folder, settings):
    """settings["special_tokens"], if it is a dict from text to id; UserError otherwise."""
    special_tokens = settings.get("special_tokens")
    if not isinstance(special_tokens, dict) or any(
        not name or type(i) is not int for name, i in special_tokens.items()
    ):
        raise UserError(
            f"{Path(folder) / SETTINGS}: special_tokens is not a table from texts to ids: "
            "save the tokenizer again"
        )
    return special_tokens


def around_of(folder, settings):
    """The names of the special tokens behind a text and before it, the latter perhaps None.

    They stand in the settings of ours, or as eos_token and bos_token in those of others. A model
    of theirs has seen the latter before each text if add_bos_token says so, and also where both
    are the same: then it stood between texts.

    Returns: end_name, begin_name.
    Raises:  UserError if they are no texts.
    """

    def name(key, otherwise):
        value = settings.get(key, otherwise)
        value = value.get("content") if isinstance(value, dict) else value  # older files have more
        if not isinstance(value, str | None):
            raise UserError(f"{Path(folder) / SETTINGS}: {key} is {value!r}, and must be a text")
        return value

    if "kind" in settings:
        return name("end_name", END_OF_TEXT), name("begin_name", END_OF_TEXT)
    end, begin = name("eos_token", END_OF_TEXT), name("bos_token", END_OF_TEXT)
    return end, begin if begin == end or settings.get("add_bos_token") is True else None


def words_of(folder, settings, patterns):
    """settings["words"], the name of a pattern that cuts words; UserError if it is none."""
    words = settings.get("words", "gpt2") if "kind" in settings else "gpt2"
    if words not in patterns:
        raise UserError(
            f"{Path(folder) / SETTINGS}: words is {words!r}, and must be one of "
            f"{', '.join(patterns)}: save the tokenizer again"
        )
    return words


def always_allowed_of(folder, settings):
    """settings["always_allowed"], a frozenset of special tokens; UserError if it is not that."""
    names = settings.get("always_allowed", [])
    special_tokens = settings.get("special_tokens", {})
    if not isinstance(names, list) or not all(name in special_tokens for name in names):
        raise UserError(
            f"{Path(folder) / SETTINGS}: always_allowed is not a list of its special tokens: "
            "save the tokenizer again"
        )
    return frozenset(names)


def write_json(folder, name, value, indent=None):
    """Write value as JSON in ASCII, as GPT-2's files are; UserError if that fails."""
    write_file(folder, name, json.dumps(value, indent=indent))


def write_file(folder, name, text):
    """Write text to folder/name in one atomic move; UserError if that fails."""
    path = Path(folder) / name
    beside = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())  # the move must not reach the disk before the text
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read_file(path):
    """The text of a file; UserError if it is missing or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the tokenizer cannot be loaded without it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path):
    """The value in a JSON file; UserError if it is missing or damaged."""
    text = read_file(path)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _table(path, pairs))
        # JSON can spell half a surrogate pair, which is no character, as \ud800.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: what it holds is not JSON") from None
    return value


def _table(path, pairs):
    """A JSON object as a dict; UserError if it has a key twice, where Python takes the last."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise UserError(f"{path} has {twice!r} twice in one table: fetch or save it again")
    return table
