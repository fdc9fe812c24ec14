"""Write a token file a piece at a time, to the same bytes however often it was interrupted.

A large text takes minutes or hours to become tokens, in which a process may be killed. So the file
grows under another name, train.bin.part, and beside it a note, train.bin.part.json, says how far
it has come: so many documents, so many ids. The next process cuts off what came after the note,
and goes on with the next document. What is unfinished never has the final name.

The sha256 is taken of the ids as they are written. A sha256 that is half done cannot be saved, so
who goes on reads what is there once more; and as the note has the sha256 up to itself, that
shows whether all of it has reached the disk.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np

from npgpt.checkpoint import write_atomic
from npgpt.corpus.token_files import CHUNK, facts_about, facts_path, token_dtype, vocabulary_sha256
from npgpt.errors import UserError

NOTE_SECONDS = 5.0  # between two notes


class TokenWriter:
    """A token file in the making: `with TokenWriter(...) as writer:`, then append and finish.

    Whoever leaves it without finish, by Ctrl-C say, leaves a note.

    Args:    path of the .bin or .npy; tokenizer; identity, a text that is another one when
             other tokens would be written: what was begun with another identity is dropped.
    Raises:  UserError if it can't be written.
    """

    def __init__(self, path, tokenizer, identity):
        self.path, self.tokenizer = Path(path), tokenizer
        self.identity = f"{identity} {vocabulary_sha256(tokenizer)}"
        self.part, self.note = Path(f"{path}.part"), Path(f"{path}.part.json")
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.documents = self.count = self.text_bytes = 0  # written so far
        self.digest = hashlib.sha256()
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._resumed() or self._begun()
        self.noted = time.monotonic()

    def append(self, ids, documents=0, text_bytes=0):
        """Write the ids of some whole documents.

        Args:    ids (K,) int; documents, how many they are; text_bytes, how long.
        Raises:  UserError if the disk is full.
        """
        ids = np.ascontiguousarray(ids, self.dtype)
        with self._errors():
            self.file.write(ids)
        self.digest.update(ids)
        self.count += len(ids)
        self.documents += documents
        self.text_bytes += text_bytes
        if time.monotonic() - self.noted > NOTE_SECONDS:
            self._make_note()

    def finish(self):
        """Give the file its facts and then its name: now it is whole, and safe on the disk.

        Raises:  UserError if the disk is full.
        """
        facts = facts_about(
            self.tokenizer, self.dtype, self.count, self.digest.hexdigest(), self.text_bytes
        )
        with self._errors():
            self.file.seek(0)
            self.file.write(_header(self.path, self.dtype, self.count))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            write_atomic(facts_path(self.path), json.dumps(facts, indent=1).encode())
            os.replace(self.part, self.path)
            self.note.unlink(missing_ok=True)
            # Of processes that were killed while they made a note:
            for beside in self.path.parent.glob(f".{self.note.name}.tmp-*"):
                beside.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.file.closed:
            with contextlib.suppress(UserError):  # the disk is full: an older note may be there
                self._make_note()
            with contextlib.suppress(OSError):
                self.file.close()

    def _begun(self):
        file = open(self.part, "w+b")
        file.write(_header(self.path, self.dtype, 0))
        return file

    def _resumed(self):
        """The file of a killed process, cut where its last note was made, or None."""
        try:
            note = json.loads(self.note.read_bytes())
            documents, count, text_bytes, sha256 = (
                note[name] for name in ("documents", "count", "text_bytes", "sha256")
            )
            if note["identity"] != self.identity:
                return None
            file = open(self.part, "r+b")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        file.seek(len(_header(self.path, self.dtype, 0)))
        digest, left = hashlib.sha256(), count * self.dtype.itemsize
        while chunk := file.read(min(left, CHUNK)):
            digest.update(chunk)
            left -= len(chunk)
        if digest.hexdigest() != sha256:  # after a power cut, perhaps: the note alone was safe
            file.close()
            return None
        file.truncate(file.seek(0, os.SEEK_CUR))
        self.documents, self.count, self.text_bytes = documents, count, text_bytes
        self.digest = digest
        return file

    def _make_note(self):
        with self._errors():
            self.file.flush()
        note = dict(
            identity=self.identity, documents=self.documents, count=self.count,
            text_bytes=self.text_bytes, sha256=self.digest.hexdigest(),
        )  # fmt: skip
        write_atomic(self.note, json.dumps(note).encode())
        self.noted = time.monotonic()

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"could not write {self.part} ({error.strerror or error}), which has come to "
                f"{self.count:,} tokens: make room there, and the same command goes on"
            ) from error


def _header(path, dtype, count):
    """What stands before the ids: nothing in a .bin, 128 bytes that announce them in a .npy."""
    header = io.BytesIO()
    if path.suffix == ".npy":
        announced = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(header, announced)
    return header.getvalue()
