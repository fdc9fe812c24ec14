"""From text to numbers and back: characters, or GPT-2's byte-level BPE.

Read in this order:
    bpe.py           the lecture: bytes, words, pairs, merges
    char.py          one id per character: the smallest tokenizer that works
    base.py          what the two share: special tokens on the way in, decode on the way out
    files.py         GPT-2's two files, written and read with care
    hugging_face.py  the same in one file: tokenizer.json, as Hugging Face has it
    show.py          a text as its tokenizer sees it, merge by merge
The compiled twin of bpe.py, which gives the same ids and merges a hundred times as fast:
    fast.py             FastBPETokenizer: what is replaced, and when
    scan.py             where words end: a regular expression, 64 bytes at a time
    unicode_classes.py  which characters are letters, numbers, white space
    digits.py           numbers cut out one by one, for tokenizers that want it so
    merging.py          the merges of one word, in numbers
    word_table.py       the ids of words seen before, at one look
    encoder.py          the loop that ties these together, on all threads
    fast_encode.py      many documents, and streams
    batches.py          texts of any number and size, dealt out in batches
    count_table.py      a table of words and how often each occurs
    word_counts.py      counting the words of all texts, on all threads
    pair_heap.py        which pair is the most frequent
    fast_train.py       learning merges, with a number for every gap and no dict

`python -m npgpt.tokenizer --show "some text"` lets you watch.
"""

from pathlib import Path

from ..backend import kernels_enabled
from ..errors import UserError
from .base import END_OF_TEXT, Tokenizer
from .bpe import PATTERNS, BPETokenizer
from .char import CharTokenizer
from .files import (
    CHARACTERS,
    SETTINGS,
    VOCABULARIES,
    always_allowed_of,
    around_of,
    load_bpe,
    load_characters,
    read_settings,
    words_of,
)
from .hugging_face import TOKENIZER_JSON, load_hugging_face

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharTokenizer",
    "Tokenizer",
    "bpe_class",
    "load_tokenizer",
]


def bpe_class():
    """FastBPETokenizer where compiled kernels may run, and otherwise the readable BPETokenizer."""
    if not kernels_enabled():
        return BPETokenizer
    from .fast import FastBPETokenizer

    return FastBPETokenizer


def load_tokenizer(path):
    """Load what tok.save(folder) wrote, or the files of GPT-2 or of Hugging Face.

    Args:    path of a folder with tokenizer_config.json and the files of its kind, or without
             it a tokenizer.json, or vocab.json + merges.txt, or encoder.json + vocab.bpe;
             or of a tokenizer.json itself.
    Returns: BPETokenizer, CharTokenizer or Llama2cTokenizer.
    Raises:  UserError naming the file that is missing, damaged, not supported, or at odds with
             another.
    """
    path = Path(path)
    if path.is_file():
        return _from_tokenizer_json(path, read_settings(path.parent))
    if not path.is_dir():
        raise UserError(
            f"there is no tokenizer folder {path}: check the spelling, or learn one with "
            "python -m npgpt.tokenizer --train"
        )
    settings = read_settings(path)
    kind = settings.get("kind")
    if kind == "char":
        tok = CharTokenizer(*load_characters(path, settings))
        return _with_marks(tok, path, settings)
    if kind == "llama2c":
        from ..interchange.llama2c import TOKENIZER, Llama2cTokenizer

        return Llama2cTokenizer.load(path / TOKENIZER)
    if kind not in ("bpe", None):
        raise UserError(f"{path / SETTINGS}: kind is {kind!r}, and must be 'bpe' or 'char'")
    # Other programs write a tokenizer_config.json too: then the files must tell. Of theirs,
    # tokenizer.json says most: vocab.json and merges.txt are silent about how words are cut.
    any_vocabulary = any((path / name).exists() for pair in VOCABULARIES for name in pair)
    if (path / TOKENIZER_JSON).exists() and not (kind and any_vocabulary):
        return _from_tokenizer_json(path / TOKENIZER_JSON, settings)
    if kind or any_vocabulary:
        tok = bpe_class()(*load_bpe(path, settings))
        tok.always_allowed = always_allowed_of(path, settings)
        tok.words = words_of(path, settings, PATTERNS)
        return _with_marks(tok, path, settings)
    if (path / CHARACTERS).exists():
        raise UserError(
            f"{path / SETTINGS} is missing or names no kind, and {CHARACTERS} cannot be read "
            "without it: save the tokenizer again"
        )
    raise UserError(
        f"{path} holds no tokenizer: it has neither {SETTINGS} nor {TOKENIZER_JSON} "
        "nor vocab.json with merges.txt"
    )


def _from_tokenizer_json(path, settings):
    *parts, always_allowed, words = load_hugging_face(path)
    tok = bpe_class()(*parts)
    tok.always_allowed, tok.words = always_allowed, words
    return _with_marks(tok, path.parent, settings)


def _with_marks(tok, folder, settings):
    """The tokenizer, knowing what its settings say of the marks before a text and behind it."""
    end_name, begin_name = around_of(folder, settings)
    if end_name in tok.special_tokens:
        tok.end_name, tok.begin_name = end_name, begin_name
    return tok
