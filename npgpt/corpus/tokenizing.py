"""A text as it goes by: where it is split in two, what a tokenizer learns from it, its tokens.

Documents come in a stream, of which one batch at a time is in memory. So nobody knows how long
the text is before it has ended, and what depends on that, the place where the validation text
begins, takes a reading of its own.
"""

import contextlib
import itertools
import math
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from npgpt.corpus.sources import Source
from npgpt.corpus.token_files import token_dtype
from npgpt.corpus.token_writer import TokenWriter
from npgpt.data import ahead
from npgpt.plan import human_bytes
from npgpt.runlog import byte_bar
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, bpe_class

# Bytes of a text that are kept for validation, however large it is: a million tokens, which tell
# the mean loss to some three thousandths of a nat, and take a while to go through as it is.
VALID_MOST = 4_000_000
BATCH = 8 << 20  # bytes of text that become ids together
LONG_TEXT = 1 << 20  # characters that the readable tokenizer gets at a time


class Part(NamedTuple):
    """The documents of a source between two places, each (number of a document, byte of it).

    A place in mid-document cuts it, where the character begins that the byte belongs to.
    """

    source: Source
    begin: tuple = (0, 0)
    end: tuple = (math.inf, 0)
    most: float = math.inf  # bytes, after which no further document begins
    size: float = math.inf  # bytes, where they have been counted: only for the bar to show

    def documents(self, start=0, read=0):
        """Read the documents, as Source.documents does.

        Args:    start, how many to leave out; read, how many bytes those have.
        Returns: an iterator of bytes.
        """
        first, last = self.begin[0], self.end[0]
        for number, document in enumerate(self.source.documents(first + start), first + start):
            if read >= self.most or (number, 0) >= self.end:
                return
            begin = _character_start(document, self.begin[1]) if number == first else 0
            end = _character_start(document, self.end[1]) if number == last else None
            document = document[begin:end]
            read += len(document)
            yield document


def find_split(documents, fraction):
    """Find the last documents of a text, a fraction of its bytes, to validate on.

    They are not cut, unless there is only one, or they would be far more than VALID_MOST.

    Args:    documents, an iterable of bytes, at least one; fraction of all bytes to keep, in
             (0, 1), though not more than VALID_MOST.
    Returns: the places where the validation text begins and ends, each (number of a document,
             byte of it); and the bytes before and between them.
    """
    total = held = 0
    last = deque()  # number and size of the last documents, which hold VALID_MOST bytes or more
    for number, document in enumerate(documents):
        size = len(document)
        last.append((number, size))
        total, held = total + size, held + size
        while held - last[0][1] >= VALID_MOST:
            held -= last.popleft()[1]
    end = (number + 1, 0)
    wanted, kept = min(fraction * total, VALID_MOST), 0
    while number > 0 and kept < wanted and last[-1][0] > 0:
        number, size = last.pop()
        kept += size
    cut = 0
    if number == 0 or kept > 2 * VALID_MOST:  # this document alone: the only one, or a long one
        kept = max(kept, size)
        cut = min(max(1, round(kept - wanted)), size - 1)
        kept -= cut
    return (number, cut), end, (total - kept, kept)


def _character_start(document, place):
    """The byte where the character begins that has the byte at this place."""
    while 0 < place < len(document) and document[place] & 0xC0 == 0x80:
        place -= 1
    return place


def learn_characters(train, valid):
    """Make a tokenizer of all characters of two parts.

    Args:    train, valid, Parts.
    Returns: CharTokenizer, with an end-of-text token if there are documents to part.
    """
    print("learning the characters ...", flush=True)
    several = len(list(itertools.islice(train.documents(), 2))) > 1
    documents = itertools.chain(watched(train, "learning"), watched(valid, "learning"))
    special = (END_OF_TEXT,) if several else ()
    return CharTokenizer.train((d.decode() for d in documents), special_tokens=special)


def learn_bpe(train, vocab_size, megabytes):
    """Learn tokens from the beginning of a part.

    Args:    train, a Part; vocab_size; megabytes of text to read, at most.
    Returns: a tokenizer, the compiled one where that may run.
    Raises:  UserError if the text is too short for so many tokens.
    """
    print(f"learning {vocab_size:,} tokens ...", flush=True)
    learner, limit, read = bpe_class(), megabytes * 1e6, 0

    def texts():
        nonlocal read
        for document in watched(train._replace(most=min(limit, train.most)), "learning"):
            read += len(document)
            yield document.decode() if learner is BPETokenizer else document

    tokenizer = learner.train(texts(), vocab_size)
    if read >= limit:
        print(f"  from the first {human_bytes(read)} of the text: see --tokenizer-mb", flush=True)
    return tokenizer


def write_tokens(path, part, tokenizer):
    """Write the tokens of all documents of a part into a file, or go on with it.

    Args:    path of a .bin or .npy; part, a Part; tokenizer.
    Raises:  UserError for what can't be read, or can't be written.
    """
    started = time.perf_counter()
    with TokenWriter(path, tokenizer, path.parent.name) as writer:
        if writer.documents:
            print(f"  {path.name}: {_documents(writer.documents)} done already", flush=True)
        if not writer.count and tokenizer.end_of_text is not None:
            writer.append([tokenizer.end_of_text])
        before = writer.text_bytes
        batches = batched(watched(part, path.name, writer.documents, before))

        def read(_):
            return next(batches, None)

        def encode(_):
            batch = next(waiting)
            return batch and (encode_documents(batch, tokenizer), len(batch), sum(map(len, batch)))

        # One batch is read while the one before is encoded, and the one before that written.
        try:
            with (
                contextlib.closing(ahead(read, itertools.count())) as waiting,
                contextlib.closing(ahead(encode, itertools.count())) as encoded,
            ):
                while piece := next(encoded):
                    writer.append(*piece)
        except KeyboardInterrupt:
            print(f"\n  stopped after {_documents(writer.documents)}: the same command goes on")
            raise
        writer.finish()
    seconds = time.perf_counter() - started
    rate = f"; {human_bytes((writer.text_bytes - before) / seconds)}/s" if seconds > 1 else ""
    print(
        f"  {path.name}: {_documents(writer.documents)}, {human_bytes(writer.text_bytes)} of text, "
        f"{writer.count:,} tokens{rate}",
        flush=True,
    )


def _documents(number):
    return "1 document" if number == 1 else f"{number:,} documents"


def encode_documents(documents, tokenizer):
    """Encode documents in a row, with an end-of-text token after each.

    Args:    documents, a list of bytes in UTF-8; tokenizer.
    Returns: ids (N,), uint16 or uint32. What reads like a special token is plain text here.
    """
    if hasattr(tokenizer, "encode_documents"):  # the compiled one
        return tokenizer.encode_documents(documents)
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype)
    pieces = [end[:0]]
    for document in documents:
        for text in short_texts(document.decode()):
            pieces.append(np.array(tokenizer.encode(text, disallowed_special=()), dtype))
        pieces.append(end)
    return np.concatenate(pieces)


def short_texts(text, size=LONG_TEXT):
    """Cut a text where no token reaches across: behind a letter or digit, before a gap.

    Args:    text; size, characters of a piece, or more where such a place is far.
    Returns: an iterator of str; encoded one by one, they give the ids of the whole.
    """
    start = 0
    while len(text) - start > size:
        cut = start + size
        while cut < len(text) and not (text[cut] in " \n" and text[cut - 1].isalnum()):
            cut += 1
        yield text[start:cut]
        start = cut
    yield text[start:]


def batched(documents):
    """Put documents together, until they are BATCH bytes or a little more: a list each time."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def watched(part, what, start=0, read=0):
    """Read the documents of a part, while a bar shows how far it has come, if anybody watches.

    Args:    part, a Part; what, the word before the bar; start and read, as in Part.documents.
    Returns: an iterator of bytes.
    """
    total = min(part.most, part.size)
    by_text = total < math.inf or part.source.size_bytes is None  # or else by the file
    if not by_text:
        total = part.source.size_bytes
    with byte_bar(what, total if total < math.inf else None, read if by_text else 0) as bar:
        for document in part.documents(start, read):
            yield document
            bar.update(len(document) if by_text else part.source.position() - bar.n)
