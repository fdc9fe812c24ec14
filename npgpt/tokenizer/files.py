"""The files of a tokenizer: GPT-2's two, one for characters, and one that says which.

GPT-2 keeps its vocabulary as text, so each of the 256 bytes needs a printable character to
stand for it. Bytes that are printable in Latin-1 stand for themselves; the other 68 (the
controls, the space, 0x7F to 0xA0, the soft hyphen) borrow, in order, the characters from
U+0100 up. Thus a space is Ġ, U+0120, and the word " the" is written Ġthe. The order in which
that table is made, printable bytes first, is also the order of the first 256 ids.

    vocab.json   {"!": 0, "\\"": 1, ..., "Ġthe": 262, ..., "<|endoftext|>": 50256}
    merges.txt   a line "#version: 0.2", then the two sides of each merge, in order

GPT-2 was published with the names encoder.json and vocab.bpe, which are read too.

Every file is written beside its place and then moved onto it, so a crash leaves the old file
or the new one, never half of one.

Source: Radford et al. 2019: the table bytes_to_unicode of the released encoder.py.
"""

import json
import os
from pathlib import Path

from ..errors import UserError

SETTINGS = "tokenizer_config.json"
CHARACTERS = "chars.json"
VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
HEADER = "#version: 0.2"


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


def save_bpe(tok, folder):
    """Write vocab.json, merges.txt and tokenizer_config.json for a BPETokenizer.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    names = {i: name for name, i in tok.special_tokens.items()}
    vocab = {names.get(i) or written(token): i for i, token in enumerate(tok.tokens)}
    lines = [HEADER, *(f"{written(left)} {written(right)}" for left, right in tok.merges)]
    write_json(folder, "vocab.json", vocab)
    write_file(folder, "merges.txt", "\n".join(lines) + "\n")
    save_settings(tok, folder)


def load_bpe(folder, settings):
    """Read a vocabulary, and refuse one whose parts do not fit together.

    A merges.txt that lost its end would still load, and encode to other ids than the model
    was trained with; so every token must be a byte, or made by a merge, or be special.

    Args:    folder; settings, the content of tokenizer_config.json ({} where there is none).
    Returns: tokens, a list of bytes; merges, a list of pairs of bytes; special_tokens, a dict.
    Raises:  UserError naming the file that is missing, damaged, or at odds with another.
    """
    pairs = [(folder / vocab, folder / merges) for vocab, merges in VOCABULARIES]
    vocab_path, merges_path = next((p for p in pairs if p[0].exists() or p[1].exists()), pairs[0])

    vocab = read_json(vocab_path)
    if not isinstance(vocab, dict) or any(type(i) is not int for i in vocab.values()):
        raise UserError(f"{vocab_path} is not a table from tokens to ids: fetch or save it again")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{vocab_path}: its ids are not 0 to {len(vocab) - 1}, each once")

    made = dict(BYTE_OF)  # what the files write → the bytes that it stands for
    lacking = next((c for c in made if c not in vocab), None)
    if lacking is not None:
        raise UserError(f"{vocab_path} has no token {lacking!r} for the byte {made[lacking]!r}")

    merges = []
    lines = read_file(merges_path).rstrip("\n").split("\n")
    if not lines[0].startswith("#version"):
        raise UserError(f"{merges_path} does not begin with the line {HEADER!r}")
    for number, line in enumerate(lines[1:], start=2):
        sides = line.rstrip("\r").split(" ")
        if len(sides) != 2 or not all(side in made for side in sides):
            raise UserError(
                f"{merges_path}, line {number}: {line!r} is not two tokens "
                "that are bytes or were made on the lines before"
            )
        if "".join(sides) not in vocab:
            raise UserError(
                f"{merges_path}, line {number}: {line!r} makes a token that "
                f"{vocab_path.name} does not list"
            )
        merges.append((made[sides[0]], made[sides[1]]))
        made["".join(sides)] = b"".join(merges[-1])

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
    tokens = [b""] * len(vocab)
    for name, i in vocab.items():
        tokens[i] = name.encode("utf-8") if name in special_tokens else made[name]
    return tokens, merges, dict(sorted(special_tokens.items(), key=lambda item: item[1]))


def save_characters(tok, folder):
    """Write chars.json, the characters in the order of their ids, and tokenizer_config.json.

    Args:    tok; folder, made if it is not there.
    Raises:  UserError if the folder cannot be written.
    """
    write_json(folder, CHARACTERS, tok.characters)
    save_settings(tok, folder)


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


def save_settings(tok, folder):
    """Write tokenizer_config.json: which kind of tokenizer this is, and its special tokens."""
    write_json(folder, SETTINGS, {"kind": tok.kind, "special_tokens": tok.special_tokens}, indent=2)


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
        value = json.loads(text)
        # JSON can spell half a surrogate pair, which is no character, as \ud800.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: what it holds is not JSON") from None
    return value
