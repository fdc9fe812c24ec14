"""Train a GPT.

    python train.py                                 a storybook, in three minutes on two cores
    python train.py --data mybook.txt               your own text: a file, or a folder of them
    python train.py --data shakespeare --tokenizer char
    python train.py --data tinystories --preset tinystories-4m
    python train.py --data tinystories --backend cupy
    python train.py --init-from RUN --data mine.txt  go on with a trained model on a text of yours
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
from dataclasses import replace

import numpy as np

from npgpt import plan
from npgpt.backend import kernels_compiled_ahead, select_backend, to_host
from npgpt.cli import main_with_errors, parse
from npgpt.data import get_batch, num_rows
from npgpt.diagnose import first_bad_tensor
from npgpt.errors import UserError
from npgpt.loss_scale import LEAST, unscale
from npgpt.model import Chance
from npgpt.optim import clip_factor, cosine_schedule, gradient_norm
from npgpt.parallel import keep_freed_memory
from npgpt.plot import plot_run
from npgpt.runlog import RunLog
from npgpt.runs import claim, typed
from npgpt.settings import Settings, with_preset
from npgpt.training import new_run, resumed_run, unfinished_run

MOST_UNKNOWN = 100  # steps whose losses nobody has asked for: what is lost if the computer stops


def train(run, log, peak=None):
    """Take the steps that are left. On return the run is saved, finished or not.

    Args:    run, a training.Run; log, a runlog.RunLog; peak, the processor's FLOP/s, or None.
    Returns: True if the run is finished, False if it was interrupted.
    Raises:  UserError if the gradient is not finite.
    """
    s = run.settings
    ledger = Ledger(run, log, peak)
    with contextlib.closing(run.batches()) as batches, Interrupt() as interrupt:
        while run.step < s.steps and not interrupt.asked:
            if run.step % s.eval_every == 0:
                run.validate(log, s.eval_tokens)
                if run.stalled:
                    log.say(f"no better validation since step {run.best_step}: this is the end")
                    break
            if run.step and s.sample_every and run.step % s.sample_every == 0:
                run.write_sample(log)
            if run.step and run.step % s.save_every == 0:
                run.save()

            ledger.start()
            ids, targets = next(batches)  # of this step: run.batches begins with run.step
            lr = cosine_schedule(
                run.step, s.warmup_steps, s.steps, s.lr, s.min_lr, s.restart_steps, s.restart_growth
            )
            if run.gpu is not None:
                run.gpu.take(ids, targets, lr)  # the same as take_step, and waits for nothing
            else:
                ledger.results.append(take_step(run, ids, targets, lr))
            run.step += 1
            ledger.settle(lr)
        ledger.settle()
        finished = run.step == s.steps or run.stalled
        if finished:
            run.validate(log)
        run.save()
    return finished


def take_step(run, ids, targets, lr):
    """Forward, backward, clipping, AdamW: one step of training.

    Args:    run; ids, targets (batch_size · accumulate, T) int, on the host; lr.
    Returns: loss; norm of the gradient; the scale of the loss, 1 but for fp16. If the norm is
             not finite, weights and optimizer are as before.
    """
    s, xp = run.settings, run.xp
    scale = run.loss_scale.scale if run.loss_scale else 1.0
    loss = 0.0
    for first in range(0, len(ids), s.batch_size):
        part = slice(first, first + s.batch_size)
        loss += run.workers.loss_and_gradients(
            run.params, run.grads, xp.asarray(ids[part]), xp.asarray(targets[part]),
            run.config, scale=scale / s.accumulate,
            chance=Chance(s.seed, run.step, first), smoothing=s.label_smoothing, anew=first == 0,
        )  # fmt: skip
    if scale != 1.0:
        unscale(run.grads.flat, scale, run.workers.map)
    norm = gradient_norm(run.grads.flat, run.workers.map)
    if math.isfinite(norm):
        clip = clip_factor(norm, s.clip)
        run.optimizer.update(run.params.flat, run.grads.flat, lr, run.workers.map, clip)
    if run.loss_scale:
        run.loss_scale = run.loss_scale.after(math.isfinite(norm))
    return float(to_host(loss)) / s.accumulate, norm, scale


class Ledger:
    """Losses, norms and times: what was taken, and not yet told.

    On a GPU a step is only asked for, and its loss is known later: so it is looked up when it is
    wanted, for all steps since the last time together.

    Attributes: results, a list of (loss, norm, scale) of the steps since they were last logged.
    """

    def __init__(self, run, log, peak):
        self.run, self.log, self.peak = run, log, peak
        self.results, self.rates = [], []  # of the steps that are not logged yet
        self.losses, self.seconds, self.skipped = [], [], 0  # of those since the last line
        self.started = None

    def start(self):
        """A step begins: its time counts from here, if that of the one before does not go on."""
        if self.started is None:
            self.started = time.perf_counter()

    def settle(self, lr=None):
        """Log the steps up to now, if their results are here, or wanted.

        Args:    lr, of the step that was just taken; None if the loop has ended.
        Raises:  UserError if a gradient was not finite.
        """
        run, s = self.run, self.run.settings
        if lr is not None:
            self.rates.append(lr)
            self.log.advance()
            every = (s.log_every, s.eval_every, s.sample_every, s.save_every, MOST_UNKNOWN)
            wanted = run.step == s.steps or any(n and run.step % n == 0 for n in every)
            if run.gpu is not None and not wanted:
                return
        if not self.rates:
            return
        if run.gpu is not None:
            self.results, run.loss_scale = run.gpu.results(), run.gpu.loss_scale
        each = (time.perf_counter() - self.started) / len(self.results)
        first = run.step - len(self.results)
        for step, (rate, result) in enumerate(zip(self.rates, self.results), first + 1):
            loss, norm, scale = result
            skipped = not math.isfinite(norm)  # and the weights are those from before that step
            if skipped and scale <= LEAST:
                run.step = step - 1
                run.save()
                raise UserError(
                    f"the gradient of step {step} is not finite; the weights before it "
                    f"are saved in {run.dir}: start a new run with a smaller --lr than {s.lr}"
                    f"{what_went_bad(run)}"
                )
            self.losses += [] if skipped else [loss]
            self.skipped += skipped
            self.seconds.append(each)
            run.seconds += each
            figures = {"scale": scale} if run.loss_scale else {}
            self.log.record(
                step=step, loss=loss, lr=rate, norm=norm, ms=round(1e3 * each, 2), **figures
            )
        self.results, self.rates, self.started = [], [], None
        if lr is not None and (run.step % s.log_every == 0 or run.step == s.steps):
            mean = np.mean(self.losses) if self.losses else math.nan
            self.log.say(
                log_line(run, mean, lr, norm, np.mean(self.seconds), self.peak, self.skipped)
            )
            self.losses, self.seconds, self.skipped = [], [], 0


def what_went_bad(run):
    """Take the step after run.step again, name its first bad tensor, and keep its batch.

    Returns: the end of a sentence. The batch is kept as bad_batch.npz in the run's folder.
    """
    s = run.settings
    rows = s.batch_size * s.accumulate
    ids, targets = get_batch(run.train_tokens, s.seed, run.step, rows, s.block_size)
    with contextlib.suppress(OSError):
        np.savez(run.dir / "bad_batch.npz", ids=ids, targets=targets, step=run.step)
    for first in range(0, rows, s.batch_size):
        part = slice(first, first + s.batch_size)
        bad = first_bad_tensor(
            run.params, run.xp.asarray(ids[part]), run.xp.asarray(targets[part]), run.config,
            Chance(s.seed, run.step, first), s.label_smoothing,
        )  # fmt: skip
        if bad:
            return f" (the first tensor to go bad: {bad}; the batch is in bad_batch.npz)"
    if run.gpu is not None and run.loss_scale:
        return " (in float32 each tensor would be finite: leave out --dtype fp16)"
    return " (each tensor is finite, but their squares add up to more than a number can hold)"


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


def log_line(run, loss, lr, norm, seconds, peak, skipped):
    """One line for the terminal, the figures since the one before."""
    s = run.settings
    scale = f"scale {run.loss_scale.scale:,.0f} | " if run.loss_scale else ""
    if skipped:
        scale += f"{skipped} skipped | "
    rate = s.batch_size * s.accumulate * s.block_size / seconds  # tokens a second
    line = (
        f"step {run.step:0{len(str(s.steps))}d}/{s.steps} | loss {loss:.3f} | "
        f"val {run.valid_loss:.3f} | lr {lr:.1e} | norm {norm:.2f} | {scale}"
        f"{1e3 * seconds:.0f} ms | {rate:,.0f} tok/s"
    )
    share = rate * plan.flops_per_token(run.config) / peak if peak else math.inf
    # Above 1, other programs were in the way when the peak was measured: it says nothing.
    return line if share > 1.0 else f"{line} | {share:.0%} of peak"


def print_plan(run):
    """Say what the run will take, from two steps that change nothing, of which one is timed."""
    s, config = run.settings, run.config
    rows = s.batch_size * s.accumulate
    tokens, total = len(run.train_tokens), (s.steps - run.step) * rows * s.block_size
    epochs = s.steps * rows / num_rows(run.train_tokens, s.block_size)
    for _ in range(2):  # in the first one kernels are compiled, and memory is found
        started = time.perf_counter()
        rehearse(run)
    step_seconds = (time.perf_counter() - started) * s.accumulate
    memory = plan.training_bytes(
        config,
        s.batch_size,
        s.threads,
        run.workers.most_rows,
        bits=16 if run.gpu is not None and run.gpu.has_shadow else 32,
    )
    disk = plan.checkpoint_bytes(config, s.keep)
    free = shutil.disk_usage(run.dir).free
    threads = f"{s.threads} thread{'s' if s.threads > 1 else ''}"
    print(
        f"\n{run.dir}, preset {s.preset}, seed {s.seed}, {s.backend}, "
        f"{threads if run.gpu is None else run.gpu.how.dtype}\n"
        f"  model    {plan.describe(config)}\n"
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


def rehearse(run):
    """Forward and backward once, for what a step costs: nothing changes."""
    s = run.settings
    ids, targets = get_batch(run.train_tokens, s.seed, run.step, s.batch_size, s.block_size)
    if run.gpu is not None:
        return run.gpu.rehearse(ids, targets)
    loss = run.workers.loss_and_gradients(
        run.params, run.grads, run.xp.asarray(ids), run.xp.asarray(targets), run.config
    )
    float(to_host(loss))  # waits for a GPU to finish


@np.errstate(over="ignore", invalid="ignore")  # train says once, in a sentence, what overflowed
def main(settings, given):
    """Train as the settings say: prepare or resume, tell the plan, loop, and draw the curve.

    Args:    settings, a Settings; given, the names of its fields that were asked for.
    Returns: the exit status: 0 finished, 130 interrupted.
    """
    xp = select_backend(settings.backend)
    keep_freed_memory()
    with kernels_compiled_ahead() if xp is np else contextlib.nullcontext():
        fresh = settings if settings.resume else with_preset(settings, given)
        unfinished = unfinished_run(fresh) if fresh.auto_resume and not settings.resume else None
        if settings.resume or unfinished:
            run = resumed_run(replace(settings, run=settings.run or unfinished), given, xp)
        else:
            run = new_run(fresh, xp)
    with claim(run.dir):
        print_plan(run)
        peak = None if run.gpu is None else run.gpu.measure_matmul_peak()
        if xp is np:
            peak = plan.measure_matmul_peak(run.workers)
        log = RunLog(run.dir, run.step, run.settings.steps, run.settings.tensorboard)
        with contextlib.closing(log):
            finished = train(run, log, peak)
            if finished:
                run.write_sample(log)
    resume = f"python train.py --resume --run {typed(run.dir)}"
    if not finished:
        print(f"stopped and saved at step {run.step} of {run.settings.steps}; go on with: {resume}")
        return 130
    memory = plan.peak_memory_bytes()
    print(
        f"finished {run.step} steps in {plan.human_time(run.seconds)}"
        + (f", {plan.human_bytes(memory)} of memory at most" if memory else "")
        + (f", {plan.human_bytes(run.gpu.memory_bytes())} of the GPU's" if run.gpu else "")
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
