"""How good is the model? Its loss over text that it was not trained on.

Every token but the first is predicted once, with at least half a context before it (or all
that there is): windows of T tokens move on by T/2, and only their second half counts. A cut
into T tokens side by side would ask for the first token of each window out of nothing,
and the loss would say more about the cutting than about the model. Where documents fit into the
context, each is a text of its own, and every token has all of its document before it.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from npgpt.backend import to_host
from npgpt.layers import cross_entropy_forward
from npgpt.model import forward


@dataclass(frozen=True)
class Evaluation:
    """A loss and what it means.

    Attributes: loss, nats a token; num_tokens predicted; num_bytes of text they stand for.
    """

    loss: float
    num_tokens: int
    num_bytes: float

    @property
    def perplexity(self):
        """The number of equally likely tokens that would be as surprising."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self):
        """The loss in a unit that no tokenizer can change: bits for each byte of text."""
        return self.loss * self.num_tokens / (math.log(2.0) * self.num_bytes)


def document_starts(tokens, end_of_text, block_size):
    """Where documents begin, if they are worth a window of their own.

    Args:    tokens (N,); end_of_text, its id, or None; block_size T.
    Returns: the places of the end-of-text tokens before each document (M,), or None if more
             than one document in ten is longer than T, or their ends are not marked.
    """
    if end_of_text is None:
        return None
    ends = np.flatnonzero(tokens == end_of_text)  # (M + 1,)
    if len(ends) < 3 or np.mean(np.diff(ends) > block_size) > 0.1:
        return None
    return ends[:-1]


def evaluation_windows(num_tokens, block_size, starts=None):
    """Cut a text of num_tokens so that each token but the first is a counted target once.

    Args:    num_tokens; block_size; starts, None or where documents begin, 0 the first: no
             window then reaches back beyond the start of its document.
    Returns: a list of (start, stop, counted): the inputs are tokens[start:stop], the targets
             the tokens one later, of which the last `counted` count.
    """
    stride, windows = max(1, block_size // 2), []
    bounds = [0, num_tokens - 1] if starts is None else [*starts, num_tokens - 1]
    for first, last in itertools.pairwise(bounds):
        done = first  # up to where the targets, tokens first + 1 … last, have been counted
        while done < last:
            stop = min(done + (block_size if done == first else stride), last)
            windows.append((max(first, stop - block_size), stop, stop - done))
            done = stop
    return windows


def evaluate(
    params, config, tokens, bytes_per_token, batch_size=16, max_tokens=None, starts=None,
    xp=np, map=map,
):  # fmt: skip
    """Mean loss over a text, every token with at least half a context before it.

    Args:    params, config; tokens (N,), N ≥ 2; bytes_per_token of this text, for bits per
             byte; batch_size, windows at a time; max_tokens, None for the whole text or how
             much of its beginning; starts, as in evaluation_windows; xp, the array module of
             the params; map, how to go through the batches: parallel.Workers.map does it on
             several threads.
    Returns: Evaluation.
    """
    tokens = tokens[:max_tokens]

    def nats(batch):
        """The loss of all counted targets of some windows of one shape, added up."""
        counted = batch[0][2]
        text = np.stack([tokens[a : b + 1] for a, b, _ in batch]).astype(np.int64)  # (B, T + 1)
        ids, targets = xp.asarray(text[:, :-1]), xp.asarray(text[:, -counted:])  # (B, T), (B, n)
        logits, _ = forward(params, ids, config)  # (B, T, V)
        loss, _ = cross_entropy_forward(logits[:, -counted:], targets)  # ()
        return float(to_host(loss)) * counted * len(batch)

    if starts is not None:
        starts = starts[starts < len(tokens) - 1]
    windows = evaluation_windows(len(tokens), config.block_size, starts)
    n = len(tokens) - 1
    return Evaluation(sum(map(nats, _batches(windows, batch_size))) / n, n, n * bytes_per_token)


def _batches(windows, batch_size):
    """Lists of up to batch_size windows that have the same length and count, so that they stack."""
    shapes = {}
    for a, b, counted in windows:
        shapes.setdefault((b - a, counted), []).append((a, b, counted))
    return [
        group[i : i + batch_size]
        for group in shapes.values()
        for i in range(0, len(group), batch_size)
    ]
