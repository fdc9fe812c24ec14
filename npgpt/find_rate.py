"""How long may a step be? A learning-rate finder, before a run that takes days.

    python -m npgpt.find_rate --preset small-gpt --data mine.txt

A run is begun as train.py would begin it, with the same options, and each step is a little longer
than the one before, from 1e-6 up. At first nothing happens; then the loss falls, faster and
faster; then more slowly, as steps get too long, and in the end it rises. What is proposed is the
rate at which the smoothed loss fell fastest: short of the edge, by a good way. It is where to
begin to try, and no more: of a hundred steps, a run of many thousands is not known. Nothing is
written.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
"""

import math
import sys
from dataclasses import dataclass, fields

import numpy as np

from npgpt.cli import main_with_errors, option, parse
from npgpt.data import get_batch
from npgpt.errors import UserError
from npgpt.model import Chance
from npgpt.optim import clip_gradient
from npgpt.parallel import Workers, available_threads
from npgpt.plan import rows_at_once
from npgpt.settings import Settings, with_preset
from npgpt.training import begin, choose_dtype, new_optimizer

LOWEST, HIGHEST = 1e-6, 1.0
MEMORY = 0.9  # of the smoothed loss: about ten steps
TOO_HIGH = 1.3  # times the least loss: from there on it is lost
LINES = 20


@dataclass(frozen=True)
class FinderSettings(Settings):
    """Those of train.py, and how many steps to try."""

    trials: int = option(100, "steps to try, each longer than the one before")


def try_rates(params, optimizer, workers, tokens, s, config, trials):
    """Take steps of rising length until the loss is lost.

    Args:    params, changed on the way; optimizer; workers; tokens (N,); s, settings; config;
             trials, steps from LOWEST to HIGHEST.
    Returns: rates, losses and smoothed losses, lists of one length.
    """
    grads, mean, rows = params.zeros_like(), 0.0, s.batch_size * s.accumulate
    rates, losses, smoothed = [], [], []
    for step in range(trials):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (trials - 1))
        ids, targets = get_batch(tokens, s.seed, step, rows, s.block_size)
        loss = 0.0
        for first in range(0, rows, s.batch_size):
            part = slice(first, first + s.batch_size)
            loss += float(workers.loss_and_gradients(
                params, grads, ids[part], targets[part], config, 1.0 / s.accumulate,
                Chance(s.seed, step, first), s.label_smoothing, anew=first == 0,
            )) / s.accumulate  # fmt: skip
        mean = MEMORY * mean + (1.0 - MEMORY) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(mean / (1.0 - MEMORY ** (step + 1)))  # it began at 0: see optim.py
        norm = clip_gradient(grads.flat, s.clip, workers.map)
        if not math.isfinite(norm) or not smoothed[-1] <= TOO_HIGH * min(smoothed):
            break
        optimizer.update(params.flat, grads.flat, rate, workers.map)
    return rates, losses, smoothed


def propose(rates, smoothed):
    """The rate at which the smoothed loss fell fastest, over equal factors, in one digit."""
    slopes = np.gradient(np.array(smoothed), np.log(rates))
    return float(f"{rates[int(np.nanargmin(slopes))]:.0e}")


@np.errstate(over="ignore", invalid="ignore")
def main(settings, given):
    """Try rates, print what came of each, and propose one.

    Args:    settings, a FinderSettings; given, the names of the fields that were given.
    Raises:  UserError for data or settings that don't fit.
    """
    if settings.trials < 10:
        raise UserError(f"--trials is {settings.trials}, but it must be 10 or more")
    names = [f.name for f in fields(Settings)]
    plain = Settings(**{name: getattr(settings, name) for name in names})
    s = with_preset(plain, given - {"trials"})
    if s.backend != "numpy" or s.dtype == "fp16":  # fp16 has a scale that takes steps to settle
        what = "--dtype fp16" if s.backend == "numpy" else f"--backend {s.backend}"
        raise UserError(f"rates are tried on a processor, in float32 or bf16: leave out {what}")
    choose_dtype(s, np)
    s, data, config, params = begin(s)
    workers = Workers(params, s.threads or available_threads(), rows_at_once(config))
    optimizer = new_optimizer(params, s)
    tokens = data.train.tokens
    rates, _, smoothed = try_rates(params, optimizer, workers, tokens, s, config, settings.trials)
    least = min(smoothed)
    for i in range(0, len(rates), -(-len(rates) // LINES)):
        bar = "#" * round(40 * min(1.0, smoothed[i] / (TOO_HIGH * least)))
        print(f"lr {rates[i]:.1e}   loss {smoothed[i]:7.3f}   {bar}")
    print(f"\n--lr {propose(rates, smoothed):.0e} is a good beginning")


if __name__ == "__main__":
    program, description = "python -m npgpt.find_rate", __doc__.strip()
    sys.exit(
        main_with_errors(
            lambda: main(*parse(FinderSettings, sys.argv[1:], description, None, program))
        )
    )
