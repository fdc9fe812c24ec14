"""Encoding of what is too much for one string: many documents, or a stream in pieces.

encoder.py takes any number of texts at once, and knows nothing of where they come from. Here
they are gathered. Documents are put together until there is enough to divide among threads. A
stream is cut at places where nothing can notice: no word reaches across (scan.safe_cut), no
special token, no character. Memory is bounded by BATCH, however long the stream is; only a single
word can make it more, as a word is never cut.
"""

import itertools
import re

import numpy as np

from ..errors import UserError
from .base import check_text
from .scan import as_bytes, invalid_utf8, safe_cut
from .unicode_classes import class_table

BATCH = 1 << 24  # bytes that are encoded together


def encode_documents_fast(documents, tokenizer):
    """Encode documents in a row, with an end-of-text token after each, if there is one.

    What reads like a special token is plain text here, but for those that the tokenizer always
    allows: each document becomes tokenizer.encode(document, disallowed_special=()).

    Args:    documents, an iterable of str, or of bytes in UTF-8; tokenizer, a FastBPETokenizer.
    Returns: ids (N,), uint16, or uint32 for more than 65,536 ids.
    Raises:  UserError if a document is not UTF-8.
    """
    batches = _document_batches(documents, tokenizer)
    empty = np.empty(0, tokenizer.encoder.dtype)
    return np.concatenate([empty, *tokenizer.encoder.encode_batches(batches)])


def _document_batches(documents, tokenizer):
    """Documents as batches for Encoder.encode_batches."""
    end = -1 if tokenizer.end_of_text is None else tokenizer.end_of_text
    special = _Special(tokenizer, tokenizer.always_allowed)
    done = 0
    for batch in _batches(map(_utf8, documents)):
        raw = batch[0] if len(batch) == 1 else b"".join(batch)
        stops = np.cumsum([len(document) for document in batch])
        starts = np.append(0, stops[:-1])
        _check_documents(as_bytes(raw), starts, done)
        if special.pattern is None:
            spans = np.stack([starts, stops, np.full(len(batch), end)], axis=1)
        else:
            spans = []
            for start, stop in zip(starts.tolist(), stops.tolist()):
                rows, rest = special.split(raw, start, stop, stop)
                spans += [*rows, (rest, stop, end)]
        yield as_bytes(raw), spans
        done += len(batch)


def encode_pieces(pieces, tokenizer, allowed_special=(), disallowed_special="all"):
    """Encode a text that comes in pieces, cut anywhere: the ids of tokenizer.encode(the whole).

    Args:    pieces, an iterable of bytes or str, such as what one read of a file gives;
             tokenizer, a FastBPETokenizer; allowed_special, disallowed_special, as in
             Tokenizer.encode.
    Returns: an iterator of ids (n,), uint16, or uint32 for more than 65,536 ids.
    Raises:  UserError for what is not UTF-8, and for a disallowed special token.
    """
    allowed = tokenizer._choose(allowed_special) | tokenizer.always_allowed
    allowed &= tokenizer.special_tokens.keys()
    if disallowed_special == "all":
        disallowed = tokenizer.special_tokens.keys() - allowed
    else:
        disallowed = tokenizer._choose(disallowed_special)
    allowed, refused = _Special(tokenizer, allowed), _Special(tokenizer, disallowed)
    yield from tokenizer.encoder.encode_batches(_stream_batches(pieces, allowed, refused))


def _stream_batches(pieces, allowed, refused):
    """A stream as batches for Encoder.encode_batches.

    Args:    pieces, of bytes or str; allowed, refused, _Special tokens: which become ids, and
             which must not occur.
    """
    held, size, wanted, read = [], 0, BATCH, 0
    for piece in itertools.chain(map(_utf8, pieces), [None]):
        ended = piece is None
        if not ended:
            held.append(piece)
            size += len(piece)
            if size < wanted:
                continue
        raw = b"".join(held)
        data = as_bytes(raw)
        valid = int(invalid_utf8(data, 0, size))
        if valid < size and (ended or size - valid >= 4):  # a character may be cut, till the end
            raise _not_utf8(f"byte {read + valid:,}", raw[valid])
        refused.refuse(raw, read)
        # Special tokens that begin before this place have ended: more text makes them no longer.
        certain = size if ended else max(0, valid - max(allowed.longest, refused.longest) + 1)
        spans, rest = allowed.split(raw, 0, size, certain)
        cut = size if ended else _last_safe_cut(data, rest, certain)
        yield data, [*spans, (rest, cut, -1)]
        held, size, read = [raw[cut:]], size - cut, read + cut
        wanted = max(BATCH, 2 * size)  # of a word without an end, ever more


class _Special:
    """Some special tokens, or other texts to look for, as bytes."""

    def __init__(self, tokenizer, names):
        found = sorted((name.encode("utf-8") for name in names), key=len, reverse=True)
        self.pattern = re.compile(b"|".join(map(re.escape, found))) if found else None
        self.longest = max(map(len, found), default=1)
        self.ids = {name.encode("utf-8"): i for name, i in tokenizer.special_tokens.items()}

    def split(self, raw, start, stop, certain):
        """Find those that begin before a place.

        Args:    raw, bytes; start, stop; certain, the place.
        Returns: spans, a list of (start, stop, id): texts, with the special token after each;
                 and where the rest begins.
        """
        spans = []
        if self.pattern is not None:
            for found in self.pattern.finditer(raw, start, stop):
                if found.start() >= certain:
                    break
                spans.append((start, found.start(), self.ids[found.group()]))
                start = found.end()
        return spans, start

    def refuse(self, raw, read):
        """Raise UserError if one of them is in raw, which begins at byte `read` of the stream."""
        found = self.pattern.search(raw) if self.pattern else None
        if found:
            name = found.group().decode("utf-8")
            raise UserError(
                f"the text contains {name!r} at byte {read + found.start():,}: pass "
                f"allowed_special={{{name!r}}} if it is meant as a special token, "
                "or disallowed_special=() to encode it as plain text"
            )


def _last_safe_cut(data, start, stop):
    """A place in [start, stop] near its end that no word reaches across; start if there is none."""
    back = 64
    while stop > start:
        first = max(start, stop - back)
        cut = int(safe_cut(data, first, stop, class_table()))
        if cut < stop:
            return cut
        if first == start:
            break
        back *= 8
    return start


def _batches(documents):
    """Put documents together until they are BATCH bytes or more: a list each time."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _utf8(text):
    """A str as bytes, and bytes as they are."""
    if isinstance(text, bytes | bytearray | memoryview):
        return text
    try:
        return text.encode("utf-8")
    except (AttributeError, UnicodeEncodeError):
        check_text(text)  # says what is wrong
        raise


def _check_documents(data, starts, done):
    """Raise unless each document is UTF-8: all of them are, and none begins within a character.

    Args:    data, the documents in a row; starts; done, how many documents came before them.
    """
    place = int(invalid_utf8(data, 0, len(data)))
    inside = starts[starts < len(data)]
    inside = inside[data[inside] & 0xC0 == 0x80]
    place = min([place, *inside.tolist()])
    if place < len(data):
        document = int(np.searchsorted(starts, place, side="right")) - 1
        where = f"byte {place - starts[document]:,} of document {done + document:,}"
        raise _not_utf8(where, data[place])


def _not_utf8(where, byte):
    return UserError(
        f"the text is not UTF-8: {where} is 0x{byte:02x}; "
        "convert it first, for instance with iconv -t utf-8"
    )
