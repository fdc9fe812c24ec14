"""Whole training steps of the 40M preset, beside PyTorch's in its fastest forms, taking turns.

Forward, backward, clipping and AdamW, in bf16 with float32 masters. Each contestant lives in a
process of its own, and sleeps while another is measured. npgpt uploads a batch for every step, as
train.py does; PyTorch has its batch on the GPU already.

PyTorch's forms are made of four things: eager or a mode of torch.compile; the attention kernel;
autocast, or weights in bf16 and masters in float32.
"""

import json
import os
import statistics
import sys
import time
import traceback
from collections import defaultdict

import numpy as np

from benchmarks.gpu.contestant import Contestant
from benchmarks.gpu.part import preset, run

LR = 1e-4
MODES = ("eager", "default", "reduce-overhead", "max-autotune")
FORMS = [
    f"torch {mode} {attention} {rounding}"
    for mode in MODES
    for attention in ("flash", "cudnn")
    for rounding in ("autocast", "masters")
]
LIKELY = {  # to be the fastest, or the best known: for large batches, and for small ones
    True: ["eager flash autocast", "default flash autocast", "default cudnn autocast",
           "default flash masters", "max-autotune flash autocast"],
    False: ["eager flash autocast", "default flash autocast", "reduce-overhead flash autocast",
            "reduce-overhead flash masters", "max-autotune flash autocast"],
}  # fmt: skip
LARGE = 128  # rows from which on launches cost nothing
AT_ONCE = 5  # of PyTorch's forms in one race: each keeps its memory
BARS = {256: ("best", 1.15), 32: ("default", 1.25)}  # rows: beside whom, and how many times as fast
SECONDS, ROUNDS = 1.0, 5  # of a turn, about; and turns
TURNS_TAKE = 50.0  # seconds, of all contestants together, and what is told afterwards


class Npgpt:
    """npgpt as train.py runs it on a GPU."""

    def __init__(self, rows, graph=True):
        import cupy

        from npgpt.backend.cuda.runtime import Runtime
        from npgpt.backend.cuda.steps import DeviceSteps, How
        from npgpt.model import Parameters, init_parameters
        from npgpt.optim import AdamW

        config = preset()
        params = Parameters(config, cupy.asarray(init_parameters(config, seed=1).flat))
        optimizer, how = AdamW.for_parameters(params), How(rows, graph=graph)
        self.steps = DeviceSteps(params, params.zeros_like(), optimizer, config, how, Runtime())
        self.batch = batch(config, rows)

    def run(self, steps):
        """Take some steps: seconds for one, and the last loss."""
        start = time.perf_counter()
        for _ in range(steps):
            self.steps.take(*self.batch, LR)
        losses = self.steps.results()
        return (time.perf_counter() - start) / steps, losses[-1][0]

    def memory(self):
        return self.steps.memory_bytes()


def batch(config, rows):
    """The same random tokens for all."""
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (rows, config.block_size + 1))
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def live():
    """The life of a contestant's process: a line of JSON in, a line out, and sleep in between."""
    name, rows = sys.argv[2], int(sys.argv[3])
    # Libraries may print, from C too, and the line to the other process is for answers alone.
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer):
        print(json.dumps(answer), file=talk, flush=True)

    try:
        if name.startswith("torch"):
            from benchmarks.gpu.torch_forms import TorchSteps

            contestant = TorchSteps(rows, *name.split()[1:])
        else:
            contestant = Npgpt(rows, graph="without" not in name)
        contestant.run(4)  # it compiles, records, and takes the memory it needs
        seconds, loss = contestant.run(4)
        say(seconds=seconds, loss=loss)
        for line in sys.stdin:
            what = json.loads(line)
            if what["do"] == "run":
                seconds, loss = contestant.run(what["steps"])
                say(seconds=seconds, loss=loss)
            else:
                say(memory=contestant.memory())
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:300]}"
        say(error=said, trace="".join(traceback.format_exception(error)))


def race(report, rows, names, seconds):
    """Let contestants take turns on batches of some rows.

    npgpt gets ready first, and alone: it times matrix products, to choose among them.

    Args:    report, for those that fail; rows; names, npgpt the first; seconds that may pass until
             all are ready.
    Returns: dict from name to its figures: seconds of a step, ratio to npgpt's in the same
             round, memory, and loss after the first eight steps.
    """
    peers = [name for name in names if name.startswith("torch")]
    alone = [[name] for name in names if name not in peers]
    contestants, found, deadline = {}, {}, time.monotonic() + seconds
    times = defaultdict(list)

    def tried(name, do):
        try:
            return do()
        except Exception as error:
            report.failed(f"{rows} rows: {name}", error, counts=not name.startswith("torch"))
            contestants[name].stop()
            found.pop(name, None)

    for group in (*alone, peers):
        contestants.update({name: Contestant("steps", name, rows) for name in group})
        for name in group:
            left = max(1.0, deadline - time.monotonic())
            answer = tried(name, lambda n=name, left=left: contestants[n].hear(left))
            if answer is not None:
                found[name] = answer
                print(f"{name}, {rows} rows: ready, {1e3 * answer['seconds']:.2f} ms", flush=True)
    for _ in range(ROUNDS):
        for name in list(found):
            steps = max(1, min(200, round(SECONDS / found[name]["seconds"])))
            answer = tried(name, lambda n=name, k=steps: contestants[n].ask(do="run", steps=k))
            if answer is not None:
                times[name].append(answer["seconds"])
    for name in list(found):
        answer = tried(name, lambda n=name: contestants[n].ask(do="memory"))
        if answer is not None:
            found[name] |= answer
            found[name]["seconds"] = statistics.median(times[name])
            pairs = zip(times[name], times["npgpt"])
            found[name]["ratio"] = statistics.median([p / o for p, o in pairs] or [float("nan")])
    for contestant in contestants.values():
        contestant.stop()
    return found


def tell(report, rows, found):
    """Times, rates and memory of all; and how npgpt compares with the best of PyTorch's."""
    from npgpt.plan import flops_per_token

    config = preset()
    tokens = rows * config.block_size
    for name in sorted(found, key=lambda n: found[n]["seconds"]):
        seconds = found[name]["seconds"]
        report.add(f"{rows} rows: {name}", 1e3 * seconds, "ms")
        report.add(f"{rows} rows: {name}", tokens / seconds, "tok/s")
        report.add(f"{rows} rows: memory of {name}", found[name]["memory"] / 1e9, "GB")
    peers = [name for name in found if name.startswith("torch")]
    if "npgpt" not in found:
        return
    rate = tokens * flops_per_token(config) / found["npgpt"]["seconds"]
    report.add(f"{rows} rows: npgpt's matrix products", rate / 1e12, "TFLOP/s")
    if not peers:
        return
    best = min(peers, key=lambda name: found[name]["ratio"])
    against, bar = BARS.get(rows, (None, None))
    plain = "torch default flash autocast"  # the best without it would be worth nothing
    report.add(f"{rows} rows: faster than {best}, the best of {len(peers)}", found[best]["ratio"],
               "x", at_least=bar if against == "best" and plain in found else None)  # fmt: skip
    if plain in found:
        report.add(f"{rows} rows: faster than {plain}", found[plain]["ratio"], "x",
                   at_least=bar if against == "default" else None)  # fmt: skip
    report.add(f"{rows} rows: memory, of that of {best}",
               found["npgpt"]["memory"] / found[best]["memory"], at_most=1.0)  # fmt: skip
    apart = abs(found[best]["loss"] / found["npgpt"]["loss"] - 1.0)
    report.add(f"{rows} rows: loss, apart from {best}", apart, at_most=3e-2)


def forms_for(rows, all_variants):
    """The names of PyTorch's forms that race with npgpt at some rows."""
    return FORMS if all_variants else [f"torch {form}" for form in LIKELY[rows >= LARGE]]


def compiled_forms(batches, all_variants):
    """Those that need a compiler, as (name, rows), for "256,32" or other such rows."""
    sizes = [int(rows) for rows in batches.split(",")]
    names = [(name, rows) for rows in sizes for name in forms_for(rows, all_variants)]
    return [(name, rows) for name, rows in names if not name.startswith("torch eager")]


def measure(report, wishes):
    end, races = time.monotonic() + wishes.seconds, []
    for rows in map(int, wishes.batches.split(",")):
        forms = forms_for(rows, wishes.all_variants)
        races += [(rows, forms[i : i + AT_ONCE]) for i in range(0, len(forms), AT_ONCE)]
    found = defaultdict(dict)
    for i, (rows, group) in enumerate(races):
        # What a race leaves of its time, those after it have more.
        left = (end - time.monotonic()) / (len(races) - i)
        mine = ["npgpt"] if rows >= LARGE else ["npgpt", "npgpt without graph"]
        try:
            ready = max(20.0, left - TURNS_TAKE)
            found[rows] = race(report, rows, [*mine, *group], ready) | found[rows]
        except Exception as error:
            report.failed(f"{rows} rows", error)
        if rows not in [other for other, _ in races[i + 1 :]]:
            tell(report, rows, found[rows])


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live()
    else:
        run("Training steps beside PyTorch's", measure)
