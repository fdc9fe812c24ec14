"""What every step of the ladder does alike: read a text, train on it, and write.

There is little here that a step could teach. The optimizer is that of npgpt/optim.py, one array at
a time; the rest is bookkeeping.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgpt.cli import main_with_errors, option, parse
from npgpt.errors import UserError
from npgpt.folders import data_folder
from npgpt.layers import cross_entropy_backward, cross_entropy_forward
from npgpt.optim import adamw_update
from npgpt.sampling import softmax
from npgpt.tokenizer import CharTokenizer

BATCH = 32  # pieces of text in a step
REPORTS = 10  # lines on the way


@dataclass(frozen=True)
class Settings:
    """The command line of every step."""

    data: Path | None = option(None, "a .txt in UTF-8 (default: Shakespeare's plays, fetched)")
    steps: int | None = option(None, "steps of training (default: as many as take a minute or two)")
    seed: int = option(1, "decides the first weights, the batches and the sample")
    letters: int = option(300, "length of the text that it writes")

    def __post_init__(self):
        for name, least in (("steps", 1), ("seed", 0), ("letters", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}, but it must be {least} or more")


def run(about, init, forward, backward, block_size, steps, lr=3e-3, training_forward=None):
    """Run one step of the ladder as a program.

    Args:    about, its docstring; init, from a random generator and V to a dict of parameters;
             forward, from the parameters and ids (B, T) to logits (B, T, V) and a cache; backward,
             from dlogits and the cache to a dict of gradients; block_size, the largest T; steps and
             lr, how it is trained; training_forward, from parameters, ids and the step, if
             forward does something else in training.
    Returns: the exit status.
    """
    training_forward = training_forward or (lambda p, ids, step: forward(p, ids))

    def main():
        program = f"python -m lectures.{Path(sys.argv[0]).stem}"
        settings, _ = parse(Settings, sys.argv[1:], about.strip(), program=program)
        train_ids, valid_ids, tok = read_text(settings.data, block_size)
        rng = np.random.default_rng(settings.seed)
        p = init(rng, tok.vocab_size)
        size = sum(w.size for w in p.values())
        print(f"{size:,} parameters, {len(train_ids):,} letters, {tok.vocab_size} different ones")
        seconds = train(
            p, train_ids, valid_ids, forward, training_forward, backward, block_size,
            settings.steps or steps, lr, rng,
        )  # fmt: skip
        loss = evaluate(p, valid_ids, forward, block_size)
        print(f"validation loss {loss:.3f} nats a letter, after {seconds:.0f} s\n")
        print(tok.decode(write(p, train_ids[:1], forward, block_size, settings.letters, rng)))

    return main_with_errors(main)


def read_text(path, block_size):
    """A text as ids: nine tenths to learn from, and the last tenth to be asked about.

    Args:    path of a text in UTF-8, or None for Shakespeare's; block_size.
    Returns: train_ids, valid_ids (N,) int; tok, the tokenizer.
    Raises:  UserError if it can't be read, or is too short.
    """
    if path is None:
        from data import RECIPES

        sources = RECIPES["shakespeare"].sources(data_folder("shakespeare"))
        text = b"".join(document for s in sources for document in s.documents()).decode()
    else:
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise UserError(f"--data {path}: {error.strerror}; name a text file") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"--data {path} is not UTF-8 text: look at byte {error.start:,}"
            ) from None
    tok = CharTokenizer.train([text])
    ids = np.array(tok.encode(text))  # (N,)
    cut = len(ids) * 9 // 10
    if len(ids) - cut < 2 * block_size:
        raise UserError(
            f"--data {path} has {len(ids):,} letters, and {20 * block_size:,} are the least: "
            "give a longer text"
        )
    return ids[:cut], ids[cut:], tok


def get_batch(ids, block_size, rng):
    """Pieces of the text from random places on, and the same a letter later."""
    starts = rng.integers(len(ids) - block_size, size=(BATCH, 1))  # (B, 1)
    windows = ids[starts + np.arange(block_size + 1)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def train(
    p, ids, valid_ids, forward, training_forward, backward, block_size, steps, lr, rng
):  # fmt: skip
    """Forward, backward, AdamW, as often as steps says; p changes in place.

    Returns: the seconds that the steps took.
    """
    m = {name: np.zeros_like(w) for name, w in p.items()}
    v = {name: np.zeros_like(w) for name, w in p.items()}
    seconds, losses = 0.0, []
    for step in range(1, steps + 1):
        started = time.perf_counter()
        batch, targets = get_batch(ids, block_size, rng)
        logits, cache = training_forward(p, batch, step)
        loss, loss_cache = cross_entropy_forward(logits, targets)
        grads = backward(cross_entropy_backward(1.0, loss_cache), cache)
        rate = lr if step <= 0.7 * steps else lr / 10  # settle at the end
        for name in p:
            adamw_update(p[name], grads[name], m[name], v[name], step, rate, 0.9, 0.99, 1e-8, 0.0)
        seconds += time.perf_counter() - started
        losses.append(float(loss))
        if step % max(1, steps // REPORTS) == 0:
            valid = evaluate(p, valid_ids, forward, block_size, windows=64)
            print(f"step {step:5d} | loss {np.mean(losses):.3f} | validation {valid:.3f}")
            losses = []
    return seconds


def evaluate(p, ids, forward, block_size, windows=1024):
    """The mean loss over windows that lie evenly in a text.

    Args:    p; ids (N,); forward; block_size; windows, at most.
    Returns: nats a letter.
    """
    count = min(windows, (len(ids) - 1) // block_size)
    starts = np.linspace(0, len(ids) - block_size - 1, count).astype(int)  # (n,)
    losses = []
    for some in np.array_split(starts, -(-count // 64)):
        text = ids[some[:, None] + np.arange(block_size + 1)]  # (b, T + 1)
        logits, _ = forward(p, text[:, :-1])
        losses.append(float(cross_entropy_forward(logits, text[:, 1:])[0]) * len(some))
    return sum(losses) / count


def write(p, ids, forward, block_size, count, rng):
    """Draw letter after letter, each from what the model says of those before it."""
    ids = list(ids)
    for _ in range(count):
        logits, _ = forward(p, np.array([ids[-block_size:]]))
        probs = softmax(logits[0, -1].astype(np.float64))  # (V,)
        ids.append(int(rng.choice(len(probs), p=probs / probs.sum())))
    return ids
