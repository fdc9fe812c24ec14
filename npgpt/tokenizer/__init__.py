"""From text to numbers and back: characters, or GPT-2's byte-level BPE.

Read in this order:
    bpe.py    the lecture: bytes, words, pairs, merges
    char.py   one id per character: the smallest tokenizer that works
    base.py   what the two share: special tokens on the way in, decode on the way out
    files.py  GPT-2's two files, written and read with care
"""

from pathlib import Path

from ..errors import UserError
from .base import END_OF_TEXT, Tokenizer
from .bpe import BPETokenizer
from .char import CharTokenizer
from .files import (
    CHARACTERS,
    SETTINGS,
    VOCABULARIES,
    load_bpe,
    load_characters,
    read_settings,
)

__all__ = ["END_OF_TEXT", "BPETokenizer", "CharTokenizer", "Tokenizer", "load_tokenizer"]


def load_tokenizer(folder):
    """Load what tok.save(folder) wrote, or GPT-2's own files as they were published.

    Args:    folder, with tokenizer_config.json and the files of its kind; or, without that
             file, vocab.json + merges.txt, or encoder.json + vocab.bpe.
    Returns: BPETokenizer or CharTokenizer.
    Raises:  UserError naming the file that is missing, damaged, or at odds with another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no tokenizer folder {folder}: save one there with tok.save")
    settings = read_settings(folder)
    kind = settings.get("kind")
    if kind == "char":
        return CharTokenizer(*load_characters(folder, settings))
    # Other programs write a tokenizer_config.json without a kind: then the files must tell.
    any_vocabulary = any((folder / name).exists() for pair in VOCABULARIES for name in pair)
    if kind == "bpe" or (kind is None and any_vocabulary):
        return BPETokenizer(*load_bpe(folder, settings))
    if kind is not None:
        raise UserError(f"{folder / SETTINGS}: kind is {kind!r}, and must be 'bpe' or 'char'")
    if (folder / CHARACTERS).exists():
        raise UserError(
            f"{folder / SETTINGS} is missing or names no kind, and {CHARACTERS} cannot be read "
            "without it: save the tokenizer again"
        )
    raise UserError(
        f"{folder} holds no tokenizer: it has neither {SETTINGS} nor vocab.json with merges.txt"
    )
