"""Text to tokens, and tokens to batches.

A text is a list of documents, with `<|endoftext|>` between them. Each document becomes its
tokens, with an end-of-text token before and after it; all of them in a row are the training
data, one long array of ids. The model reads rows of T tokens, and the target at each place is
the token that follows.

Batches are a pure function of (seed, step). Nothing is remembered between steps, so
resuming at step 1200 gives the batch that step 1200 would have had, and k micro-batches of
B rows are the rows of one batch of k·B.

    One epoch cuts the array, from a random phase on, into windows of T + 1 tokens that
    overlap by one (the last target of a window is the first input of the next), and goes
    through them in a random order: every token is read once an epoch. The next epoch has
    another phase and another order.

    Where nearly all documents fit into the context, a row begins with a document instead,
    and runs on into the next ones: an epoch is every document in a random order. A window
    that begins in mid-story asks who "she" is when the answer was cut off, and a model
    that is often asked such questions is slow to learn to look back.
"""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT

TEXT_SUFFIXES = {"", ".txt", ".md", ".text"}


def read_text(path):
    """Read a UTF-8 text file, or all text files of a folder, sorted by name.

    Args:    path of a file, or of a folder that is searched through.
    Returns: the text; files of a folder are separate documents.
    Raises:  UserError if there is nothing there, it is empty, or it is not UTF-8.
    """
    path = Path(path)
    if os.path.isdir(path):
        files = sorted(f for f in path.rglob("*") if _is_text(f.relative_to(path)) and f.is_file())
        if not files:
            raise UserError(f"the folder {path} holds no text file (.txt or .md): give --data one")
        return f"\n{END_OF_TEXT}\n".join(read_text(f) for f in files)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no text at {path}: give --data a file or a folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}; "
            "convert it first, for instance with iconv -t utf-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty: give --data a text to learn from")
    return text.replace("\r\n", "\n")


def _is_text(path):
    """Whether a folder's file is to be read: by its suffix, and hidden ones (.DS_Store) are not."""
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in TEXT_SUFFIXES and not hidden


def split_documents(text):
    """Cut a text at `<|endoftext|>`, strip each document, and drop the empty ones."""
    return [d for d in (part.strip() for part in text.split(END_OF_TEXT)) if d]


def split_validation(documents, fraction):
    """Keep the last documents for validation; of a single document, its last part.

    Args:    documents, a list of str; fraction of the characters to keep, in (0, 1).
    Returns: (training documents, validation documents), neither empty if there are two
             documents, or two characters.
    """
    if len(documents) == 1:
        cut = round(len(documents[0]) * (1.0 - fraction))
        cut = max(1, min(cut, len(documents[0]) - 1))
        return [documents[0][:cut]], [documents[0][cut:]]
    wanted, kept = fraction * sum(map(len, documents)), 0
    for first in range(len(documents) - 1, 0, -1):
        kept += len(documents[first])
        if kept >= wanted:
            break
    return documents[:first], documents[first:]


def encode_documents(documents, tokenizer, progress=None):
    """Encode all documents in a row, end-of-text between, before and after them.

    Args:    documents, an iterable of str; tokenizer; progress, called with 1 after each.
    Returns: tokens (N,) uint16, or uint32 for a vocabulary of more than 65,536. Without an
             end-of-text token in the vocabulary, nothing stands between.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    pieces = [np.array(end, dtype)]
    for document in documents:
        pieces.append(np.array(tokenizer.encode(document) + end, dtype))
        if progress is not None:
            progress(1)
    return np.concatenate(pieces)


def save_tokens(path, tokens):
    """Write a token array as .npy, under its final name only once it is whole.

    Raises:  UserError if it can't be written.
    """
    temporary = Path(path).with_suffix(f".tmp{os.getpid()}.npy")
    try:
        np.save(temporary, tokens)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not save {path} ({error.strerror or error}): "
            f"it takes {tokens.nbytes:,} bytes, so make room or choose another --run"
        ) from None


def load_tokens(path, vocab_size):
    """Map a token file into memory: pages are read when a batch needs them.

    Args:    path of a .npy; vocab_size, which every id must be below.
    Raises:  UserError if the file is missing or damaged, or an id is too large.
    """
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
        if tokens.ndim != 1 or tokens.dtype.kind != "u":
            raise ValueError("it holds something else than token ids")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the token file {path} cannot be read ({error}): start a new run"
        ) from None
    if tokens.size and int(tokens.max()) >= vocab_size:
        raise UserError(
            f"the token file {path} holds the id {int(tokens.max())}, but the vocabulary ends "
            f"at {vocab_size - 1}: it was made with another tokenizer"
        )
    return tokens


def tokens_sha256(*arrays):
    """A fingerprint of the data, so that a resumed run can tell that it is the same."""
    digest = hashlib.sha256()
    for tokens in arrays:
        digest.update(np.ascontiguousarray(tokens).view(np.uint8))
    return digest.hexdigest()


def check_length(tokens, block_size, what):
    """Refuse data too short to cut a single window from.

    Args:    tokens; block_size; what, "training" or "validation".
    Raises:  UserError if there are fewer than block_size + 1 tokens.
    """
    if len(tokens) < block_size + 1:
        raise UserError(
            f"the {what} text has {len(tokens):,} tokens, but one context needs "
            f"{block_size + 1:,}: give more text, or a smaller --block-size"
        )


def document_starts(tokens, end_of_text, block_size):
    """Where documents begin, if they are worth beginning a row with.

    Args:    tokens (N,); end_of_text, its id, or None; block_size T.
    Returns: the places of the end-of-text tokens before each document (M,), or None if more
             than one document in a hundred is longer than T, or their ends are not marked.
    """
    if end_of_text is None:
        return None
    ends = np.flatnonzero(tokens == end_of_text)  # (M + 1,)
    if len(ends) < 3 or np.mean(np.diff(ends) > block_size) > 0.01:
        return None
    return ends[:-1]


def full_rows(starts, num_tokens, block_size):
    """Those of the starts that have a whole row of T + 1 tokens before the end."""
    return None if starts is None else starts[starts + block_size < num_tokens]


def num_rows(tokens, block_size, starts=None):
    """How many rows an epoch has, 1 or more: windows of T tokens, or documents."""
    return max(1, (len(tokens) - block_size) // block_size) if starts is None else len(starts)


@functools.lru_cache(maxsize=2)
def _epoch(seed, epoch, rows, slack):
    """An epoch's phase, at most slack, and the order of its rows (rows,)."""
    rng = np.random.default_rng([seed, 1, epoch])
    phase = int(rng.integers(0, slack + 1))
    return phase, rng.permutation(rows)


def get_batch(tokens, seed, step, batch_size, block_size, starts=None):
    """Cut the batch of a step from the data: a pure function of its arguments.

    Args:    tokens (N,), N > block_size; seed; step, from 0; batch_size, all rows of the step;
             block_size T; starts, None or where rows begin (M,), from full_rows.
    Returns: ids, targets (batch_size, T) int64; targets are the ids one place later.
    """
    n = num_rows(tokens, block_size, starts)
    slack = max(0, len(tokens) - 1 - n * block_size)  # what windows leave over, at either end
    batch = np.empty((batch_size, block_size + 1), np.int64)
    for r in range(batch_size):
        epoch, place = divmod(step * batch_size + r, n)
        phase, order = _epoch(seed, epoch, n, slack)
        row = order[place]
        start = phase + block_size * row if starts is None else starts[row]
        batch[r] = tokens[start : start + block_size + 1]
    return batch[:, :-1], batch[:, 1:]
