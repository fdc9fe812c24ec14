"""From --data to tokens: what is read, what is kept for validation, and where the result lies.

--data is a recipe's name, a text of any size and kind that sources.py reads, or tokens that
are ready. A text goes by in a stream, once for each of these, and is never in memory as a whole:

    1. find_split: where does the validation text begin? With the last documents, a share
       --valid-fraction of all bytes, but 4 MB at most; in a single document, with its last
       part. Where a validation text is given there is nothing to look for.
    2. The tokenizer learns from the training text, or from its first --tokenizer-mb.
    3. The documents become ids, with an end-of-text token before the first and after each:
       train.bin and valid.bin.

The two files and the tokenizer lie in a folder in the user's cache, or in $NPGPT_DATA. Its name
ends with a fingerprint of all that decides them: of the text, of the settings, and of the code that
cuts text into tokens. The next run that asks for the same finds them there, and after a crash one
goes on where the other had come to. A run's own folder gets links to the files, so that the cache
may be emptied at any time. Such a folder is itself something that --data takes: on another
machine, say.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from npgpt.checkpoint import write_atomic
from npgpt.corpus.sources import GivenSource, Source, open_source
from npgpt.corpus.token_files import SUFFIXES, TokenFile, open_tokens, vocabulary_sha256
from npgpt.corpus.tokenizing import (
    Part,
    find_split,
    learn_bpe,
    learn_characters,
    watched,
    write_tokens,
)
from npgpt.errors import UserError
from npgpt.folders import data_folder
from npgpt.locks import locked
from npgpt.tokenizer import load_tokenizer

VALID_NAMES = ("valid", "val", "validation")
LEAST_TEXT = 5  # bytes to train on: one character at least, however it is cut
NOTES = "prepared.json"  # in a folder of tokens: what was found out about the text
CODE = ("sources.py", "parquet.py", "tokenizing.py")  # decides the tokens, beside ../tokenizer/


@dataclass(frozen=True)
class Prepared:
    """What a run learns from.

    Attributes: train, valid, TokenFiles; tokenizer; nats of the validation text under its true
                source, None where nobody knows them.
    """

    train: TokenFile
    valid: TokenFile
    tokenizer: object
    nats: float | None


class Text(NamedTuple):
    """What is to become tokens."""

    train: Source
    valid: Source | None = None  # None: the end of train
    nats: Callable = lambda: None  # finds the nats of valid, where they can be known


def prepare(settings, tokenizer=None):
    """Turn --data into tokens, or find those that are there already.

    Args:    settings of train.py, the preset applied; tokenizer to use, if there is one already.
    Returns: Prepared.
    Raises:  UserError if there is no such text, or it can't be used.
    """
    s = settings
    if s.data is None:
        raise UserError(
            f"the preset {s.preset} needs a text: give it one with --data FILE, or let "
            f"--data {' or '.join(name for name in recipes() if name != 'storybook')} fetch one"
        )
    given = tokenizer if s.tokenizer_from is None else _load_tokenizer(s.tokenizer_from)
    if s.data not in recipes() and (ready := ready_tokens(s.data)):
        return _open_ready(s, given, *ready)
    text = _open_text(s)
    folder = data_folder("tokens") / f"{_slug(s.data)}-{_key(s, text, given)[:12]}"
    with _alone(folder):
        tokenizer, notes = _make(folder, s, text, given)
        advice = f"delete the folder {folder}, and the same command makes it anew"
        train, valid = (
            open_tokens(folder / name, tokenizer, advice) for name in ("train.bin", "valid.bin")
        )
    return Prepared(train, valid, tokenizer, notes["nats"])


def recipes():
    """The recipes by name: the storybook, and texts that are fetched from the network."""
    from data import RECIPES  # of the repository, beside train.py

    return RECIPES


# Ready tokens.


def ready_tokens(data):
    """The token files that --data names.

    Args:    data, the path of a .bin or .npy, or of a folder with a train.bin or train.npy.
    Returns: paths of the training file, of the validation file beside it or None, and of their
             folder; None if there are no tokens.
    """
    path = Path(data)
    folder = path if os.path.isdir(path) else path.parent

    def first(*names):
        paths = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        return next(filter(os.path.isfile, paths), None)

    if path == folder:
        train = first("train")
    else:
        train = path if path.suffix in SUFFIXES and os.path.isfile(path) else None
    return train and (train, first(*VALID_NAMES), folder)


def _open_ready(s, given, train, valid, folder):
    """Prepared, of files that somebody else made, or an earlier run."""
    valid = s.valid or valid
    if valid is None or Path(valid).suffix not in SUFFIXES:
        raise UserError(
            f"{train} holds tokens, so --valid must name a file of tokens too, a .bin or .npy"
        )
    if given is None:
        if not os.path.isdir(folder / "tokenizer"):
            raise UserError(
                f"{train} holds tokens, but there is no {folder / 'tokenizer'} to read them with: "
                "give the folder of their tokenizer, such as GPT-2's, with --tokenizer-from"
            )
        given = load_tokenizer(folder / "tokenizer")
    print(f"taking the tokens of {train} and {valid}", flush=True)
    advice = "give the tokenizer that made it with --tokenizer-from, or make it anew"
    train, valid = (open_tokens(path, given, advice) for path in (train, valid))
    return Prepared(train, valid, given, (_notes(folder) or {}).get("nats"))


def _load_tokenizer(folder):
    """The tokenizer of a folder, or of a run's or of tokens', which have it in tokenizer/."""
    inside = Path(folder) / "tokenizer"
    return load_tokenizer(inside if os.path.isdir(inside) else folder)


# Text.


def _open_text(s):
    """The Text that --data and --valid name."""
    article = "the " if s.data == "storybook" else "" if s.data in recipes() else "the text "
    print(f"reading {article}{s.data} ...", flush=True)
    if s.data == "storybook":
        return _storybook(s)
    if s.data in recipes():
        train, valid = recipes()[s.data].sources(
            data_folder(s.data), lambda line: print(line, flush=True)
        )
    else:
        if not os.path.exists(s.data):
            raise UserError(
                f"there is no text at {s.data}: give --data a file or a folder, or one of "
                f"{', '.join(recipes())}"
            )
        train, valid = open_source(s.data, s.field), None
    if s.valid is not None:
        if s.valid.suffix in SUFFIXES:
            raise UserError(f"--valid {s.valid} holds tokens, so --data must hold tokens too")
        valid = open_source(s.valid, s.field)
    return Text(train, valid)


def _storybook(s):
    """The storybook as a Text: its two parts are told by different seeds."""
    from data import storybook, storybook_grammar, storybook_tree

    modules = storybook, storybook_tree, storybook_grammar
    code = [Path(module.__file__).read_bytes() for module in modules]
    code = hashlib.sha256(b"".join(code)).hexdigest()

    def told(words, seed):
        def documents(start=0):
            for story in itertools.islice(storybook.told(words, seed), start, None):
                yield story.text.encode()

        return GivenSource("the storybook", documents, f"{words} words, seed {seed}, {code}")

    valid = max(1, round(s.words * s.valid_fraction)), 2 * s.seed + 1
    return Text(
        told(s.words, 2 * s.seed),
        told(*valid),
        lambda: sum(story.nats for story in storybook.told(*valid)),
    )


# Tokens.


def _make(folder, s, text, given):
    """Do what has not been done yet of a folder of tokens.

    Returns: the tokenizer, and the notes kept in the folder.
    """
    notes, most = _notes(folder), math.inf if s.data_mb is None else s.data_mb * 1e6
    if notes is None:
        split = None
        if text.valid is None:
            whole = Part(text.train, most=most)
            split = find_split(watched(whole, "measuring"), s.valid_fraction)
            if split[2][0] < LEAST_TEXT:
                raise UserError(
                    f"{text.train.name} leaves {split[2][0]} bytes to train on: give a longer text"
                )
        train, valid = _parts(text, most, split)
        if given is not None:
            tokenizer = given
        elif s.tokenizer == "char":
            tokenizer = learn_characters(train, valid)
        else:
            tokenizer = learn_bpe(train, s.vocab_size, s.tokenizer_mb)
        tokenizer.save(folder / "tokenizer")
        notes = {"data": s.data, "split": split, "nats": text.nats()}
        write_atomic(folder / NOTES, json.dumps(notes, indent=1).encode())
    else:
        tokenizer = load_tokenizer(folder / "tokenizer")
        train, valid = _parts(text, most, notes["split"])
    missing = [
        (path, part)
        for path, part in ((folder / "train.bin", train), (folder / "valid.bin", valid))
        if not path.exists()
    ]
    if missing:
        print(f"turning it into tokens, in {folder} ...", flush=True)
    else:
        print(f"an earlier run has turned it into tokens, in {folder}", flush=True)
    for path, part in missing:
        write_tokens(path, part, tokenizer)
    return tokenizer, notes


def _parts(text, most, split):
    """The Parts of a Text to train on and to validate on; split as find_split gives it, or None."""
    if split is None:
        return Part(text.train, most=most), Part(text.valid)
    begin, end, sizes = map(tuple, split)
    train = Part(text.train, end=begin, size=sizes[0])
    return train, Part(text.train, begin, end, size=sizes[1])


# The folder.


def _key(s, text, given):
    """A fingerprint of all that decides the tokens of a text."""
    here = Path(__file__).parent
    code = hashlib.sha256()
    for path in [*sorted(here.parent.glob("tokenizer/*.py")), *map(here.joinpath, CODE)]:
        code.update(path.read_bytes())
    tokenizer = [s.tokenizer] if s.tokenizer == "char" else ["bpe", s.vocab_size, s.tokenizer_mb]
    identity = [
        code.hexdigest(),
        text.train.fingerprint(),
        s.data_mb,
        s.valid_fraction if text.valid is None else text.valid.fingerprint(),
        tokenizer if given is None else [vocabulary_sha256(given), given.end_of_text],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _slug(data):
    """The last part of a path, as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", Path(data).resolve().name)[:40] or "text"


def _notes(folder):
    """What has been found out about a folder's text; None where nothing has been yet."""
    try:
        return json.loads((folder / NOTES).read_bytes())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _alone(folder):
    """Make a folder, and wait until no other process works in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't make the folder {folder} ({error.strerror}): "
            "name another place in the environment variable NPGPT_DATA"
        ) from None
    with locked(
        folder / ".lock",
        on_wait=lambda: print("waiting for another process that does the same ...", flush=True),
    ):
        yield
