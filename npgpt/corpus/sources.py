"""Where documents come from: files of any size, read a piece at a time, in a fixed order.

A `Source` yields documents, each as UTF-8 bytes, and holds no more of a file than a piece of it
and one document. What a document is depends on the kind of file:

    .txt, .md and others    the text between two `<|endoftext|>`; the end of a file ends one too
    .jsonl                  a line: an object, of which the field "text" (or another) is meant
    .parquet                a row, likewise; it takes the library pyarrow
    .gz, .xz                one of the first two, unpacked on the way
    a folder                all of these that are in it, in the order of their names

A document is stripped, and dropped if nothing is left; CRLF becomes LF; a byte order mark at a
file's start is dropped. A document's number is its place in this order, from 0: who has dealt
with n of them goes on with `source.documents(n)`, at once or after a crash.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import lzma
import os
import zlib
from pathlib import Path

from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT

TEXT_SUFFIXES = {"", ".txt", ".md", ".text"}
UNPACK = {".gz": gzip.open, ".xz": lzma.open}
SEPARATOR = END_OF_TEXT.encode()
MARK = b"\xef\xbb\xbf"  # the byte order mark that Windows writes before UTF-8
DEL = b"\x7f"  # from here on, a byte is no letter of ASCII
CHUNK = 1 << 20  # bytes read at a time
# A longer document is cut into several, so that memory stays bounded. The end-of-text between
# them is one token in some two million: it teaches nothing wrong.
LONGEST_DOCUMENT = 8 << 20
LONGEST_LINE = 256 << 20  # of a .jsonl; a longer one is some other JSON


class Source:
    """Documents in a fixed order; subclasses say where they come from.

    name, as a person would call it; size_bytes, how much there is to read (on disk, packed), or
    None where nobody knows.
    """

    name = ""
    size_bytes = None

    def documents(self, start=0):
        """Read the documents from a number on; each call reads anew.

        Args:    start, how many to leave out.
        Returns: an iterator of bytes: valid UTF-8, none of them empty.
        Raises:  UserError, from the iterator, for what cannot be read, or if there is nothing.
        """
        raise NotImplementedError

    def position(self):
        """How many of size_bytes the newest iterator has consumed."""
        return 0

    def fingerprint(self):
        """A short text that is another one when the documents may be others; cheap to get."""
        raise NotImplementedError


class GivenSource(Source):
    """Documents that a program makes, a recipe's for instance.

    Args:    name; documents, a function of the start that returns an iterator of bytes;
             identity, a text that is changed when the documents are.
    """

    def __init__(self, name, documents, identity):
        self.name = name
        self.documents = documents
        self._identity = identity

    def fingerprint(self):
        return digest("given", self.name, self._identity)


class FileSource(Source):
    """The documents of some files, one file after another.

    Args:    name, a path as a rule; files, name by which the fingerprint knows it → path; field
             of a .jsonl or .parquet that holds the text.
    Raises:  OSError if one of them is not there.
    """

    def __init__(self, name, files, field="text"):
        self.name = str(name)
        self.files = {known_as: Path(path) for known_as, path in files.items()}
        self.field = field
        self.size_bytes = sum(path.stat().st_size for path in self.files.values())
        self._position = 0

    def documents(self, start=0):
        return itertools.islice(self._read(), start, None)

    def position(self):
        return self._position

    def fingerprint(self):
        stats = {known_as: path.stat() for known_as, path in self.files.items()}
        known = [(k, s.st_size, s.st_mtime_ns) for k, s in stats.items()]
        return digest("files", self.field, known)

    def _read(self):
        found = seen = before = 0  # documents with a text, and all; bytes of earlier files
        for path in self.files.values():
            with read_errors(path), open(path, "rb") as file:
                for document in _file_documents(file, path, self.field):
                    seen += 1
                    if document:
                        found += 1
                        self._position = before + file.tell()
                        yield document
                before += path.stat().st_size
                self._position = before
        if not found:
            what = "is empty" if seen <= len(self.files) else "holds nothing but separators"
            raise UserError(f"{self.name} {what}: give --data a text to learn from")


def open_source(spec, field=None):
    """Make a source of a path.

    Args:    spec, a file, a folder that is searched through, or a Source, which is returned as
             it is; field of a .jsonl or .parquet that holds the text (default: "text").
    Returns: a Source; only the sizes of its files have been looked at.
    Raises:  UserError if there is nothing there.
    """
    if isinstance(spec, Source):
        return spec
    path, field = Path(spec), field or "text"
    with read_errors(path):
        if os.path.isdir(path):
            names = [f.relative_to(path) for f in path.rglob("*") if f.is_file()]
            names = sorted(filter(_is_wanted, names), key=lambda name: name.parts)
            if not names:
                raise UserError(
                    f"the folder {path} holds no text file "
                    "(.txt, .md, .jsonl or .parquet): give --data one"
                )
            return FileSource(path, {name.as_posix(): path / name for name in names}, field)
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{path} is no file that can be read twice: save its text to one first")
        if not size:
            raise UserError(f"{path} is empty: give --data a text to learn from")
        return FileSource(path, {path.name: path}, field)


@contextlib.contextmanager
def read_errors(path):
    """Turn what goes wrong with a file into a sentence.

    Raises:  UserError in place of OSError, and for a damaged .gz or .xz.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"there is no text at {path}: give --data a file or a folder") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): get it anew") from None
    except OSError as error:
        where = error.filename or path  # in a folder, that which refused
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None


# What the kinds of files hold.


def text_documents(stream, path, longest=LONGEST_DOCUMENT):
    """Read the documents of a text with `<|endoftext|>` between them.

    Args:    stream of bytes; path, for messages; longest document, in bytes.
    Returns: an iterator of bytes; what is between two separators in a row is an empty document.
    Raises:  UserError for what is not UTF-8, with its place in the (unpacked) file.
    """
    for place, run in _runs(stream, longest):
        _decode(run, path, place)  # only to check it: bytes are quicker to split than characters
        for document in run.removeprefix(MARK if place == 0 else b"").split(SEPARATOR):
            yield clean(document)


def json_documents(stream, path, field):
    """Read one field of every line of a .jsonl.

    Args:    stream of bytes; path, for messages; field, whose value is a text, or null.
    Returns: an iterator of bytes; a null is an empty document.
    Raises:  UserError for a line that is not an object with a text in this field.
    """
    place = 0
    for number in itertools.count(1):
        line = stream.readline(LONGEST_LINE)
        if not line:
            return
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"line {number} of {path} is longer than {LONGEST_LINE:,} bytes: "
                "each line must be an object of its own"
            )
        text = _decode(line, path, place)
        place += len(line)
        if text.strip():
            yield clean(_field(text, field, f"line {number} of {path}").encode())


def clean(document):
    """A document in UTF-8 as all sources give it: stripped, its lines ended by LF."""
    if b"\r" in document:
        document = document.replace(b"\r\n", b"\n")
    document = document.strip()
    if document and not (b" " < document[:1] < DEL and b" " < document[-1:] < DEL):
        document = document.decode().strip().encode()  # perhaps a space that ASCII has not
    return document


def _is_wanted(name):
    """Whether a folder's file is read: by its suffix, and hidden ones (.DS_Store) are not."""
    kind, packed = _kind(name)
    known = kind in TEXT_SUFFIXES or kind == ".jsonl" or (kind == ".parquet" and not packed)
    return known and not any(part.startswith(".") for part in name.parts)


def _kind(path):
    """A file's suffix and that of its packing, or None: a.jsonl.gz → (".jsonl", ".gz")."""
    suffix = path.suffix.lower()
    if suffix in UNPACK:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, None


def _file_documents(file, path, field):
    """The documents of an open file, by its kind."""
    kind, packed = _kind(path)
    if kind == ".parquet" and not packed:
        from npgpt.corpus.parquet import parquet_documents

        return parquet_documents(file, path, field)
    stream = UNPACK[packed](file) if packed else file
    return json_documents(stream, path, field) if kind == ".jsonl" else text_documents(stream, path)


def _runs(stream, longest):
    """Cut a stream at separators; yields runs of whole documents, each with its place.

    A document longer than `longest` is cut into several; where, does not depend on how much was
    read at a time.
    """
    rest, place = b"", 0  # what has not been yielded, and where in the stream it begins
    more = True
    while more:
        chunk = stream.read(max(CHUNK, len(rest)))  # doubled, so that a long one costs no n²
        more = bool(chunk)
        rest += chunk
        end = rest.rfind(SEPARATOR) if more else len(rest)
        if end >= 0:
            whole, rest = rest[:end], rest[end + len(SEPARATOR) :]
            for run in [whole] if end <= longest else whole.split(SEPARATOR):
                for part in _cut(run, longest):
                    yield place, part
                    place += len(part)
                place += len(SEPARATOR)
        # The last bytes may be the beginning of a separator: no cut goes through them.
        *parts, rest = _cut(rest, longest, len(SEPARATOR))
        for part in parts:
            yield place, part
            place += len(part)


def _cut(piece, longest, spare=0):
    """Cut a piece of more than `longest + spare` bytes into some of `longest` or fewer.

    Each ends with a line, or else with a word, or else with a character.
    """
    parts = []
    while len(piece) > longest + spare:
        at = piece.rfind(b"\n", 0, longest) + 1 or piece.rfind(b" ", 0, longest) + 1 or longest
        while at > 1 and piece[at] & 0xC0 == 0x80:  # in the middle of a character
            at -= 1
        parts.append(piece[:at])
        piece = piece[at:]
    return [*parts, piece]


def _decode(raw, path, place):
    """Bytes that begin at a place in a file, as a str, without the mark at the file's start."""
    try:
        return raw.decode("utf-8-sig" if place == 0 else "utf-8")
    except UnicodeDecodeError as error:
        marked = len(MARK) if place == 0 and raw.startswith(MARK) else 0
        at = place + marked + error.start
        raise UserError(
            f"{path} is not UTF-8 text: byte {at:,} is 0x{error.object[error.start]:02x}; "
            "convert it first, for instance with iconv -t utf-8"
        ) from None


def _field(line, field, where):
    """The text in one field of a line of JSON."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): each line must be an object") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is no JSON object with a field {field!r}, but {line.strip():.40}")
    if field not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{where} has no field {field!r}; the fields there are: {fields}")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"the field {field!r} of {where} holds no text, but {text!r:.40}")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where} holds half of a character, such as \\ud83d alone: mend the line")
    return text


def digest(*identity):
    """A fingerprint of things that JSON can tell."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
