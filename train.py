"""Train a GPT.

    python train.py                                 a storybook, in about three minutes on two cores
    python train.py --data mybook.txt               your own text: a file, or a folder of them
    python train.py --data shakespeare --tokenizer char
    python train.py --data tinystories --preset tinystories-4m
    python train.py --data tinystories --backend cupy
    python train.py --resume                        go on with the run that was stopped last
    python generate.py                              hear what it has learned

A text that is fetched, and the tokens that a text becomes, are kept for the next run: in the user's
cache, or in the folder that the environment variable NPGPT_DATA names.

The loop is `train`, and fits on one screen. What it works on is made in npgpt/training.py.
"""

import os

# The threads are ours: each takes some rows of the batch through the whole model, so the BLAS
# library's own would only stand in their way. It is told before NumPy is imported, or never.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")

import contextlib
import math
import shutil
import signal
import sys
import time

import numpy as np

from npgpt import plan
from npgpt.backend import select_backend, to_host
from npgpt.cli import main_with_errors, parse
from npgpt.data import get_batch, num_rows
from npgpt.errors import UserError
from npgpt.model import count_parameters
from npgpt.optim import clip_gradient, cosine_schedule
from npgpt.parallel import keep_freed_memory
from npgpt.plot import plot_run
from npgpt.runlog import RunLog
from npgpt.runs import typed
from npgpt.settings import Settings, with_preset
from npgpt.training import new_run, resumed_run


def train(run, log, peak=None):
    """Take the steps that are left. On return the run is saved, finished or not.

    Args:    run, a training.Run; log, a runlog.RunLog; peak, the processor's FLOP/s, or None.
    Returns: True if the run is finished, False if it was interrupted.
    Raises:  UserError if the gradient is not finite.
    """
    s, xp = run.settings, run.xp
    rows = s.batch_size * s.accumulate
    losses, seconds = [], []  # since the last log line
    with contextlib.closing(run.batches()) as batches, Interrupt() as interrupt:
        while run.step < s.steps and not interrupt.asked:
            if run.step % s.eval_every == 0:
                run.validate(log, s.eval_tokens)
            if run.step and s.sample_every and run.step % s.sample_every == 0:
                run.write_sample(log)
            if run.step and run.step % s.save_every == 0:
                run.save()

            started = time.perf_counter()
            ids, targets = next(batches)  # of this step: run.batches begins with run.step
            run.grads.flat[...] = 0.0
            loss = 0.0
            for first in range(0, rows, s.batch_size):
                part = slice(first, first + s.batch_size)
                loss += run.workers.loss_and_gradients(
                    run.params, run.grads, xp.asarray(ids[part]), xp.asarray(targets[part]),
                    run.config, scale=1.0 / s.accumulate,
                )  # fmt: skip
            norm = clip_gradient(run.grads.flat, s.clip, run.workers.map)
            if not math.isfinite(norm):  # before the update: the weights are still whole
                run.save()
                raise UserError(
                    f"the gradient of step {run.step + 1} is not finite; the weights before it "
                    f"are saved in {run.dir}: start a new run with a smaller --lr than {s.lr}"
                )
            lr = cosine_schedule(run.step, s.warmup_steps, s.steps, s.lr, s.min_lr)
            run.optimizer.update(run.params.flat, run.grads.flat, lr, run.workers.map)
            run.step += 1

            losses.append(float(to_host(loss)) / s.accumulate)
            seconds.append(time.perf_counter() - started)
            run.seconds += seconds[-1]
            ms = round(1e3 * seconds[-1], 2)
            log.record(step=run.step, loss=losses[-1], lr=lr, norm=norm, ms=ms)
            log.advance()
            if run.step % s.log_every == 0 or run.step == s.steps:
                log.say(log_line(run, np.mean(losses), lr, norm, np.mean(seconds), peak))
                losses, seconds = [], []
        finished = run.step == s.steps
        if finished:
            run.validate(log)
        run.save()
    return finished


class Interrupt:
    """Ctrl-C asks for a stop after the current step, so that nothing is lost; twice means now."""

    asked = False

    def __enter__(self):
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: nobody to ask
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not print: the signal may have come in the middle of one, and it can't be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step; once more to stop at once\n")


def log_line(run, loss, lr, norm, seconds, peak):
    """One line for the terminal, the figures since the one before."""
    s = run.settings
    rate = s.batch_size * s.accumulate * s.block_size / seconds  # tokens a second
    line = (
        f"step {run.step:0{len(str(s.steps))}d}/{s.steps} | loss {loss:.3f} | "
        f"val {run.valid_loss:.3f} | lr {lr:.1e} | norm {norm:.2f} | "
        f"{1e3 * seconds:.0f} ms | {rate:,.0f} tok/s"
    )
    share = rate * plan.flops_per_token(run.config) / peak if peak else None
    return line if share is None else f"{line} | {share:.0%} of peak"


def print_plan(run):
    """Say what the run will take, from two steps that change nothing, of which one is timed."""
    s, config = run.settings, run.config
    rows = s.batch_size * s.accumulate
    tokens, total = len(run.train_tokens), (s.steps - run.step) * rows * s.block_size
    epochs = s.steps * rows / num_rows(run.train_tokens, s.block_size)
    for _ in range(2):  # in the first one kernels are compiled, and memory is found
        started = time.perf_counter()
        ids, targets = get_batch(run.train_tokens, s.seed, run.step, s.batch_size, s.block_size)
        loss = run.workers.loss_and_gradients(
            run.params, run.grads, run.xp.asarray(ids), run.xp.asarray(targets), config
        )
        float(to_host(loss))  # waits for a GPU to finish
    step_seconds = (time.perf_counter() - started) * s.accumulate
    memory = plan.training_bytes(config, s.batch_size, s.threads, run.workers.most_rows)
    disk = plan.checkpoint_bytes(config, s.keep)
    free = shutil.disk_usage(run.dir).free
    print(
        f"\n{run.dir}, preset {s.preset}, seed {s.seed}, {s.backend}, "
        f"{s.threads} thread{'s' if s.threads > 1 else ''}\n"
        f"  model    {count_parameters(config):,} parameters: {config.n_layer} layers, "
        f"{config.n_head} heads, {config.n_embd} channels, {config.n_hidden} hidden, "
        f"vocabulary {config.vocab_size:,}, context {config.block_size}\n"
        f"  data     {tokens:,} tokens to train on, {len(run.valid_tokens):,} to validate, "
        f"{run.bytes_per_token:.2f} bytes a token\n"
        f"  steps    {run.step:,} to {s.steps:,}, {rows} x {s.block_size} tokens each: "
        f"{total:,} tokens, {epochs:.1f} epochs in all\n"
        f"  memory   about {plan.human_bytes(memory)} of arrays, beside Python and the text\n"
        f"  disk     {plan.human_bytes(disk)} for {s.keep} checkpoints and one in the making; "
        f"{plan.human_bytes(free)} are free\n"
        f"  time     about {plan.human_time(step_seconds * (s.steps - run.step))}, "
        f"from one timed step of {1e3 * step_seconds:.0f} ms\n",
        flush=True,
    )
    if disk > free:
        raise UserError(
            f"the checkpoints need {plan.human_bytes(disk)} and {run.dir} has "
            f"{plan.human_bytes(free)} free: make room, or lower --keep"
        )


@np.errstate(over="ignore", invalid="ignore")  # train says once, in a sentence, what overflowed
def main(settings, given):
    """Train as the settings say: prepare or resume, tell the plan, loop, and draw the curve.

    Args:    settings, a Settings; given, the names of its fields that were asked for.
    Returns: the exit status: 0 finished, 130 interrupted.
    """
    xp = select_backend(settings.backend)
    keep_freed_memory()
    if settings.resume:
        run = resumed_run(settings, given, xp)
    else:
        run = new_run(with_preset(settings, given), xp)
    print_plan(run)
    log = RunLog(run.dir, run.step, run.settings.steps)
    peak = plan.measure_matmul_peak(run.workers) if xp is np else None
    try:
        finished = train(run, log, peak)
        if finished:
            run.write_sample(log)
    finally:
        log.close()
    resume = f"python train.py --resume --run {typed(run.dir)}"
    if not finished:
        print(f"stopped and saved at step {run.step} of {run.settings.steps}; go on with: {resume}")
        return 130
    memory = plan.peak_memory_bytes()
    print(
        f"finished {run.settings.steps} steps in {plan.human_time(run.seconds)}"
        + (f", {plan.human_bytes(memory)} of memory at most" if memory else "")
        + f"\ncheckpoint {run.dir / 'checkpoints'}"
    )
    try:
        print(f"loss curve {plot_run(run.dir)}")
    except UserError as error:  # the picture is a courtesy, and the run is safe
        print(error)
    print(f"now hear it: python generate.py --run {typed(run.dir)}")
    return 0


if __name__ == "__main__":
    summary, _, epilog = __doc__.partition("\n")
    sys.exit(main_with_errors(lambda: main(*parse(Settings, sys.argv[1:], summary, epilog))))
