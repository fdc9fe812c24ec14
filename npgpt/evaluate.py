"""How good is the model? Its loss over text that it was not trained on.

    python -m npgpt.evaluate RUN                    over all of the run's validation text
    python -m npgpt.evaluate RUN --data other.txt   over another text, by the run's tokenizer

Every token but the first is predicted once, with at least half a context before it (or all
that there is): windows of T tokens move on by T/2, and only their second half counts. A cut
into T tokens side by side would ask for the first token of each window out of nothing,
and the loss would say more about the cutting than about the model. Where documents fit into the
context, each is a text of its own, and every token has all of its document before it.

A loss over some text is an estimate of the loss over all text of its kind, and says how far it may
be off, by its 95 % confidence interval: were other texts of this kind drawn, and each given the
interval that is its own, 19 of 20 of these would hold the loss over all. For that, tokens may not
be counted one by one, as a hard page is hard throughout: the unit is a batch of windows. With n_b
tokens in batch b, whose nats are S_b, and L = Σ S_b / Σ n_b,
    standard error of L = √(k / (k − 1) · Σ (S_b − L · n_b)²) / Σ n_b        of k batches

Source: Cochran 1977, "Sampling Techniques", section 6.4: the error of a ratio.
"""

import itertools
import math
import sys
from dataclasses import dataclass

import numpy as np

from npgpt.backend import to_host
from npgpt.cli import main_with_errors, option, parse
from npgpt.errors import UserError
from npgpt.layers import cross_entropy_forward
from npgpt.model import forward


@dataclass(frozen=True)
class Evaluation:
    """A loss and what it means.

    Attributes: loss, nats a token; num_tokens predicted; num_bytes of text they stand for;
                error, the standard error of the loss, NaN of a single batch.
    """

    loss: float
    num_tokens: int
    num_bytes: float
    error: float = math.nan

    @property
    def interval(self):
        """The 95 % confidence interval of the loss over all text of the same kind."""
        return self.loss - 1.96 * self.error, self.loss + 1.96 * self.error

    @property
    def perplexity(self):
        """The number of equally likely tokens that would be as surprising."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self):
        """The loss in a unit that no tokenizer can change: bits for each byte of text."""
        return self.loss * self.num_tokens / (math.log(2.0) * self.num_bytes)


def perplexity(nats):
    """How many equally likely tokens would be as surprising as a loss says.

    Args:    nats, the loss.
    Returns: e^nats; beyond 700 nats, e^700, or it would be more than a float can hold.
    """
    return math.exp(min(nats, 700.0))


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
        logits, _ = forward(params, ids, config, last=counted)  # (B, n, V)
        loss, _ = cross_entropy_forward(logits, targets)  # ()
        return float(to_host(loss)) * counted * len(batch)

    if starts is not None:
        starts = starts[starts < len(tokens) - 1]
    windows = evaluation_windows(len(tokens), config.block_size, starts)
    n = len(tokens) - 1
    batches = _batches(windows, batch_size)
    sums = list(map(nats, batches))
    loss = sum(sums) / n
    sizes = [sum(counted for _, _, counted in batch) for batch in batches]
    error = ratio_error(sums, sizes, loss)
    return Evaluation(loss, n, n * bytes_per_token, error)


def ratio_error(sums, sizes, ratio):
    """The standard error of Σ sums / Σ sizes, over units that are as good as independent.

    Args:    sums, sizes, a number for each unit; ratio, Σ sums / Σ sizes.
    Returns: a float, NaN for a single unit.
    """
    k = len(sums)
    if k < 2:
        return math.nan
    gaps = np.asarray(sums) - ratio * np.asarray(sizes)  # (k,)
    return math.sqrt(k / (k - 1) * float(np.sum(gaps * gaps))) / sum(sizes)


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


@dataclass(frozen=True)
class Settings:
    """What npgpt.evaluate can be told."""

    run: str | None = option(
        None, "a run, by its name or folder (default: the one that saved last)", metavar="RUN",
        by_place=True,
    )  # fmt: skip
    data: str | None = option(None, "a text, or a folder of texts (default: the validation text)")
    tokens: int | None = option(None, "tokens to read, at most (default: all)")
    batch_size: int = option(8, "windows that go through the model at a time")
    threads: int | None = option(None, "batches side by side (default: all processors)")

    def __post_init__(self):
        if self.data == "":  # --data "$BOOK", and no such variable: that is not the folder "."
            raise UserError("--data is empty: give it a value, or leave it out")
        for name, least in (("tokens", 2), ("batch_size", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                dashed = f"--{name.replace('_', '-')}"
                raise UserError(f"{dashed} is {value}, but it must be {least} or more")


def main(settings):
    """Evaluate a run's newest checkpoint, and tell what came of it.

    Args:    settings, a Settings.
    Raises:  UserError if there is no such run or text.
    """
    from npgpt.parallel import Workers, available_threads
    from npgpt.runs import find_run, load_run
    from npgpt.tokenizer import load_tokenizer
    from npgpt.training import restored_parameters

    run_dir = find_run(settings.run)
    checkpoint = load_run(run_dir, groups=("model",))
    params = restored_parameters(checkpoint)
    tok = load_tokenizer(checkpoint.path / "tokenizer")
    tokens, bytes_per_token = (
        _validation_text(run_dir, checkpoint.state, tok)
        if settings.data is None
        else _other_text(settings.data, tok)
    )
    workers = Workers(params, settings.threads or available_threads())
    result = evaluate(
        params, params.config, tokens, bytes_per_token, settings.batch_size, settings.tokens,
        document_starts(tokens, tok.end_of_text, params.config.block_size), map=workers.map,
    )  # fmt: skip
    print(
        f"{checkpoint.path}: {result.num_tokens:,} tokens predicted, "
        f"which stand for {result.num_bytes:,.0f} bytes"
    )
    bits = result.bits_per_byte / result.loss  # of a nat a token
    for unit, convert in (
        ("nats a token", lambda nats: nats),
        ("perplexity", perplexity),
        ("bits per byte", lambda nats: nats * bits),
    ):
        value, low, high = map(convert, (result.loss, *result.interval))
        interval = "" if math.isnan(low) else f"    95 % interval {low:.4f} to {high:.4f}"
        print(f"{value:12.4f} {unit:13}{interval}")


def _validation_text(run_dir, state, tok):
    """A run's validation tokens, and how many bytes one stands for."""
    from npgpt.training import run_tokens

    if "bytes_per_token" not in state:
        raise UserError(f"{run_dir} was trained elsewhere, on a text unknown: give --data a text")
    # What --keep-best keeps lies in the folder of its run, and has no text of its own.
    kept = run_dir.name == "best" and not (run_dir / "tokens").is_dir()
    home = run_dir.parent if kept else run_dir
    tokens = run_tokens(home, "valid", tok, "give --data a text").tokens
    return tokens, state["bytes_per_token"]


def _other_text(path, tok):
    """The tokens of a text, an end-of-text around each of its documents, and bytes a token."""
    from npgpt.corpus.sources import open_source
    from npgpt.corpus.token_files import token_sizes

    end = [] if tok.end_of_text is None else [tok.end_of_text]
    ids, size = list(end), 0
    for document in open_source(path).documents():
        ids += [*tok.encode(document.decode("utf-8")), *end]
        size += len(document)
    if len(ids) < 2:
        raise UserError(f"{path} has {len(ids)} tokens, and two are the least: give a longer text")
    predicted = size - int(token_sizes(tok)[ids[0]])  # all but the first token
    return np.array(ids), predicted / (len(ids) - 1)


if __name__ == "__main__":
    program, description = "python -m npgpt.evaluate", __doc__.strip()
    sys.exit(
        main_with_errors(lambda: main(parse(Settings, sys.argv[1:], description, None, program)[0]))
    )
