"""Token files: a text as one long array of ids on the disk.

    train.bin        the ids, 2 bytes each (4 for a vocabulary of more than 65,536), the low byte
                     first and nothing else: as nanoGPT writes and reads them
    train.bin.json   what they mean: how many there are, of how many bytes of text, their
                     sha256, and the fingerprint of the vocabulary that they belong to

A .npy, NumPy's own kind, is read and written just so. Ids say nothing without their vocabulary:
7 may be "the" for one tokenizer and "(" for another, and a model trained with the wrong one
learns noise without a complaint. So a file's vocabulary is compared with the tokenizer's, and the
mark behind its documents too. A .bin from elsewhere comes without the .json; then every id is at
least seen to be in the vocabulary.

A file of 20 GB is no reason to use 20 GB of memory: it is checked a piece at a time, and then
mapped, so that the system reads a page when a batch needs one. token_writer.py writes them.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from npgpt import __version__
from npgpt.checkpoint import write_atomic
from npgpt.errors import UserError
from npgpt.runlog import byte_bar

FORMAT = 1  # of the .json; a reader refuses every other number
SUFFIXES = (".bin", ".npy")
CHUNK = 1 << 22  # bytes read at a time
SMALL = 100_000_000  # bytes of a file that is rather copied than linked symbolically
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenFile:
    """Tokens on the disk.

    Attributes: path; tokens (N,) uint16 or uint32, mapped; facts, the content of its .json;
                mapping, the file in memory, of which tokens is a view.
    """

    path: Path
    tokens: np.ndarray
    facts: dict
    mapping: mmap.mmap

    def expect_random_reads(self):
        """Tell the system that rows will be read in no order.

        For each page that is asked for it otherwise reads a hundred kilobytes around it, in case
        they are next: from a file larger than the memory a batch then takes forty times longer.
        """
        if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
            self.mapping.madvise(mmap.MADV_RANDOM)


def facts_path(path):
    """Where the facts about a token file stand: beside it."""
    return Path(f"{path}.json")


def token_dtype(vocab_size):
    """The smallest kind of number that holds every id."""
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def token_sizes(tokenizer):
    """How many bytes of text each token stands for (V,) int64: none, if it is a special one."""
    sizes = np.array([len(token) for token in tokenizer.tokens])
    sizes[list(tokenizer.special_tokens.values())] = 0
    return sizes


def vocabulary_sha256(tokenizer):
    """A fingerprint of all that decides which ids a text becomes.

    Which of the special tokens ends a document is not part of it: models of one vocabulary may
    differ in that, and the facts name its id.

    Args:    tokenizer, any of npgpt.tokenizer.
    Returns: 64 hexadecimal digits, the same for the fast tokenizer and the readable one.
    """
    special = sorted(tokenizer.special_tokens.items()), sorted(tokenizer.always_allowed)
    facts = [tokenizer.kind, *special]
    if (words := getattr(tokenizer, "words", "gpt2")) != "gpt2":
        facts.append(words)
    digest = hashlib.sha256(json.dumps(facts).encode())
    merges = getattr(tokenizer, "merges", ())  # characters have none
    for token in (*tokenizer.tokens, *(side for pair in merges for side in pair)):
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


# Reading.


def open_tokens(path, tokenizer, advice, check=True):
    """Map a token file into memory, once it is seen to be whole and to be this tokenizer's.

    Args:    path of a .bin or .npy; tokenizer that made it; advice, what to do if it can't be
             used, the end of a sentence; check, whether to read all of it and compare its
             sha256. A file without a .json is always read, and a warning printed.
    Returns: TokenFile.
    Raises:  UserError if it is missing, cut, changed or of another vocabulary, or holds an id
             that the vocabulary does not have.
    """
    path = Path(path)
    try:
        facts = _read_facts(path, tokenizer)
        dtype = token_dtype(tokenizer.vocab_size) if facts is None else DTYPES[facts["dtype"]]
        tokens, offset, mapping = _map(path, dtype)
        if facts is not None and len(tokens) != facts["count"]:
            raise ValueError(f"it holds {len(tokens):,} tokens, and {facts['count']:,} were saved")
        if check or facts is None:
            facts = _read_through(path, offset, tokens.dtype, tokenizer, facts)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the token file {path} cannot be used ({reason}): {advice}") from None
    return TokenFile(path, tokens, facts, mapping)


def _read_facts(path, tokenizer):
    """What train.bin.json says, None if there is none; ValueError if it does not fit."""
    beside = facts_path(path)
    try:
        facts = json.loads(beside.read_bytes())
    except FileNotFoundError:
        if path.exists():
            print(
                f"warning: nothing says which tokenizer made {path}, for there is no "
                f"{beside.name}: if it was another than this one, the model will learn noise",
                file=sys.stderr,
            )
        return None
    except (ValueError, RecursionError):
        raise ValueError(f"{beside.name} is damaged") from None
    kinds = dict(count=int, vocab_size=int, text_bytes=int, sha256=str, vocabulary_sha256=str)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{beside.name} is not of format {FORMAT}, which this npgpt reads")
    if facts.get("dtype") not in DTYPES or any(
        type(facts.get(name)) is not kind for name, kind in kinds.items()
    ):
        raise ValueError(f"{beside.name} is damaged")
    theirs, ours = facts["vocabulary_sha256"], vocabulary_sha256(tokenizer)
    if theirs != ours:
        raise ValueError(
            f"another tokenizer made it: its vocabulary is {theirs[:8]}, "
            f"{facts['vocab_size']:,} tokens, and this tokenizer's is {ours[:8]}, "
            f"{tokenizer.vocab_size:,} tokens"
        )
    theirs, ours = facts.get("end_of_text"), tokenizer.end_of_text
    if theirs != ours:
        raise ValueError(
            f"its documents end with token {theirs}, and this tokenizer's with {ours}, "
            "though the vocabulary is the same"
        )
    return facts


def _map(path, dtype):
    """The tokens of a file, the byte where they begin, the mapping; ValueError if it has none."""
    offset, size = 0, os.stat(path).st_size
    if path.suffix == ".npy" and size:
        announced = np.lib.format.open_memmap(path, mode="r")
        dtype, offset = announced.dtype, announced.offset
        if announced.ndim != 1 or dtype not in DTYPES.values():
            raise ValueError("it holds something else than a row of uint16 or uint32")
        if size != offset + announced.nbytes:
            raise ValueError(f"it has {size:,} bytes, and announces {offset + announced.nbytes:,}")
    elif path.suffix not in SUFFIXES:
        raise ValueError("its name must end with .bin or .npy")
    if size == offset:
        raise ValueError("it is empty")
    if (size - offset) % dtype.itemsize:
        raise ValueError(f"{size:,} bytes are no ids of {dtype.itemsize} bytes each")
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, dtype, offset=offset), offset, mapping


def _read_through(path, offset, dtype, tokenizer, facts):
    """Read all of a file, and compare it with the facts, or find them if there are none."""
    sizes, count, text_bytes = token_sizes(tokenizer), 0, 0
    digest = hashlib.sha256()
    bar = byte_bar(f"checking {path.name}", path.stat().st_size, offset)
    with open(path, "rb") as file, bar:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            bar.update(len(chunk))
            digest.update(chunk)
            if facts is not None:
                continue
            ids = np.frombuffer(chunk, dtype)
            if ids.max() >= len(sizes):
                place = count + int(np.argmax(ids >= len(sizes)))
                raise ValueError(
                    f"token {place:,} is {ids.max()}, but the vocabulary ends at {len(sizes) - 1}"
                )
            count += len(ids)
            text_bytes += int(sizes[ids].sum())
    if facts is None:
        return facts_about(tokenizer, dtype, count, digest.hexdigest(), text_bytes)
    if facts["sha256"] != digest.hexdigest():
        raise ValueError("it has changed since it was saved: its sha256 is another")
    return facts


def facts_about(tokenizer, dtype, count, sha256, text_bytes):
    """The content of a token file's .json.

    Args:    tokenizer that made the ids; dtype and count of the ids; sha256 of their bytes, in
             hexadecimal; text_bytes that they stand for.
    """
    return {
        "format": FORMAT,
        "npgpt": __version__,
        "dtype": dtype.name,
        "count": count,
        "sha256": sha256,
        "text_bytes": text_bytes,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "vocabulary_sha256": vocabulary_sha256(tokenizer),
    }


# A second name.


def link_tokens(found, path):
    """Give a token file a second name, by which it lives on when the first is deleted.

    That takes no second place. Only where the disk is another one, or knows no such links, a
    small file is copied, and a large one gets a symbolic link, which does not keep it alive.

    Args:    found, a TokenFile; path of the new name, without its suffix; what was there goes.
    Returns: TokenFile at the new place, with its facts beside it.
    Raises:  UserError if it can't be written.
    """
    source, path = found.path.resolve(), Path(f"{path}{found.path.suffix}")
    try:
        path.unlink(missing_ok=True)
        for link in (os.link, os.symlink) if source.stat().st_size > SMALL else (os.link,):
            with contextlib.suppress(OSError):
                link(source, path)
                break
        else:
            temporary = Path(f"{path}.part")
            shutil.copyfile(source, temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"could not write {path} ({error.strerror or error}): "
            f"it takes {source.stat().st_size:,} bytes, so make room"
        ) from None
    write_atomic(facts_path(path), json.dumps(found.facts, indent=1).encode())
    return replace(found, path=path)
