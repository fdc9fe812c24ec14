"""A whole training step on a CPU, beside PyTorch's.

    python -m benchmarks.train_step                         the two models that the bars are for
    python -m benchmarks.train_step --preset storybook      the one that train.py learns first
    python -m benchmarks.train_step --preset nanogpt        LayerNorm, GELU, and a context of 1,024
    python -m benchmarks.train_step --dtype bf16            rounded factors, beside torch's autocast
    python -m benchmarks.train_step --profile               where npgpt's time goes, by function

Forward, backward, clipping and AdamW, on random tokens, with the preset's dropout. Contestants are
npgpt, npgpt without its kernels, PyTorch as it is and PyTorch compiled; they begin with the same
weights, see the same batch and use as many threads. Each lives in a process of its own and sleeps
while another is measured, for threads that wait for work can take the processor from those that
do it. They take turns, step by step, and are compared round by round: so a busy machine harms all
alike.

On a machine with more processors than --threads, keep all on the same ones:
taskset -c 0,1 python -m benchmarks.train_step.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict

from benchmarks.report import Report, option_parser, ratio, say

LR = 1e-4  # so small that all contestants stay together: rounding differs, and steps magnify it
# For each preset: rows of a batch, steps a round, and the bars: how many times faster than a peer.
# A batch of 256, as for a GPU, would be 16 times the same.
MODELS = {
    "tinystories-40m": (16, 1, {"torch eager": 1.25, "torch compile": 1.10, "text": None}),
    "storybook": (8, 20, {"torch eager": None, "torch compile": None, "text": 1.4}),
    "shakespeare-char": (8, 1, {"torch eager": None, "torch compile": None, "text": None}),
    "small-gpt": (16, 1, {"torch eager": None, "torch compile": None, "text": None}),
    "nanogpt": (2, 1, {"torch eager": None, "torch compile": None, "text": None}),
}
WITH_BARS = ("tinystories-40m", "storybook")
# In bf16, for the large model only: torch eager is float32, autocast rounds as we do.
BF16_BARS = {"torch autocast": 1.30, "torch autocast compile": 1.12, "torch eager": 2.1}
OF_PEAK = 0.88  # of the matrix product's speed, for the large model
OF_MEMORY = 0.65  # of torch eager's


class Npgpt:
    """npgpt as train.py runs it."""

    def __init__(self, config, smoothing, batch, threads, dtype="float32"):
        if dtype != "float32":
            from npgpt.backend.cpu.linear import round_factors

            round_factors(dtype)
        from npgpt.model import init_parameters
        from npgpt.optim import AdamW
        from npgpt.parallel import Workers, keep_freed_memory
        from npgpt.plan import rows_at_once

        keep_freed_memory()
        self.config, self.smoothing, self.batch, self.taken = config, smoothing, batch, 0
        self.params = init_parameters(config, seed=1)
        self.grads = self.params.zeros_like()
        self.optimizer = AdamW.for_parameters(self.params)
        self.workers = Workers(self.params, threads, rows_at_once(config))

    def step(self):
        from npgpt.chance import Chance
        from npgpt.optim import clip_factor, gradient_norm

        ids, targets = self.batch
        chance = Chance(seed=1, step=self.taken) if self.config.drops else None
        self.taken += 1
        loss = self.workers.loss_and_gradients(
            self.params, self.grads, ids, targets, self.config, 1.0, chance, self.smoothing,
            anew=True,
        )  # fmt: skip
        clip = clip_factor(gradient_norm(self.grads.flat, self.workers.map), 1.0)
        self.optimizer.update(self.params.flat, self.grads.flat, LR, self.workers.map, clip)
        return float(loss)

    def product(self, seconds):
        """The matrix product's speed in FLOP/s, over as many seconds as a step takes."""
        return product_speed(self.workers, seconds)

    def profile(self, steps):
        """Seconds a step in each function, added up over the threads."""
        import npgpt.layers
        from npgpt import block, chance, model

        seconds = defaultdict(float)

        def timed(function):
            def call(*args, **kwargs):
                start = time.perf_counter()
                result = function(*args, **kwargs)
                seconds[function.__name__] += time.perf_counter() - start
                return result

            return call

        # A layer that is chosen by name is in a table; what calls others is not counted twice.
        names = {n for n in (*vars(block), *vars(model)) if n.endswith(("_into", "_onto"))}
        names |= {"loss_and_dlogits", "meet", "split_qkv", "join_qkv", *npgpt.layers.__all__}
        homes = (chance, block, model)
        before = [(home, n, f) for home in homes for n, f in vars(home).items() if n in names]
        tables = [(table, dict(table)) for table in (block.NORMS, block.MLPS)]
        for home, name, function in before:
            setattr(home, name, timed(function))
        for table, pairs in tables:
            table.update({n: tuple(map(timed, pair)) for n, pair in pairs.items() if pair})
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        seconds["the whole step, times threads"] = self.workers.threads * (
            time.perf_counter() - start
        )
        for home, name, function in before:
            setattr(home, name, function)
        for table, pairs in tables:
            table.update(pairs)
        return {name: s / steps for name, s in seconds.items()}


class Torch:
    """PyTorch, as it is or compiled; with autocast it rounds the factors of products to bf16."""

    def __init__(self, config, smoothing, batch, threads, compiled, autocast):
        import torch

        from benchmarks.torch_baseline import BaselineGPT
        from npgpt.model import init_parameters

        torch.set_num_threads(threads)
        self.torch, self.autocast = torch, autocast
        self.model = BaselineGPT(config, init_parameters(config, seed=1), smoothing)
        self.optimizer = self.model.optimizer(LR)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.batch = [torch.from_numpy(part) for part in batch]

    def step(self):
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast):
            loss = self.loss(*self.batch)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def product_speed(workers, seconds, size=1024):
    """The speed of NumPy's matrix product on all threads, in FLOP/s.

    Not at its best, but on average over some seconds: on a machine that others share, the best
    moment of a hundred is not the speed that a step could have had.
    """
    import numpy as np

    squares = [np.ones((3, size, size), np.float32) for _ in range(workers.threads)]

    def multiply(thread):
        a, b, c = squares[thread]
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(8):
                np.matmul(a, b, out=c)
            done += 8
        return 2 * size**3 * done / (time.perf_counter() - start)

    return sum(workers.map(multiply, range(workers.threads)))


def live(connection, name, config, smoothing, batch, threads, dtype):
    """The life of a contestant's process: do as it is told, and sleep in between."""
    from npgpt.plan import peak_memory_bytes

    if name.startswith("torch"):
        how = "compile" in name, "autocast" in name
        contestant = Torch(config, smoothing, batch, threads, *how)
    else:
        contestant = Npgpt(config, smoothing, batch, threads, dtype)
    connection.send("ready")
    while (command := connection.recv()) is not None:
        what, *args = command
        if what == "step":
            start = time.perf_counter()
            losses = [contestant.step() for _ in range(*args)]
            connection.send(((time.perf_counter() - start) / len(losses), losses))
        elif what == "memory":
            connection.send(peak_memory_bytes())
        else:
            connection.send(getattr(contestant, what)(*args))


class Contestant:
    """A process, and a pipe to it."""

    def __init__(self, name, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=live, args=(other, name, *args), daemon=True)
        environment = {"NPGPT_KERNELS": "off" if name == "text" else "on"}
        if not name.startswith("torch"):  # as train.py: the threads are npgpt's own
            environment["OPENBLAS_NUM_THREADS"] = "1"
        before = dict(os.environ)
        os.environ.update(environment)  # a process reads its own when it begins
        self.process.start()
        os.environ.clear()
        os.environ.update(before)
        self.pipe.recv()

    def ask(self, *command):
        self.pipe.send(command)
        return self.pipe.recv()

    def stop(self):
        self.pipe.send(None)
        self.process.join()


def measure(preset, options, report):
    """Race the contestants on one preset's model."""
    import numpy as np

    from benchmarks.preset_model import preset_model
    from npgpt.plan import flops_per_token

    batch_size, steps, bars = MODELS[preset]
    bf16 = options.dtype == "bf16"
    bars = BF16_BARS if bf16 else bars
    batch_size = options.batch or batch_size
    config, smoothing = preset_model(preset)
    shape = batch_size, config.block_size + 1
    ids = np.random.default_rng(1).integers(0, config.num_tokens, shape)
    batch = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    if not importlib.util.find_spec("torch"):
        say("torch is not installed: only the text is compared with")
        bars = {} if bf16 else {"text": bars["text"]}
    names = ["npgpt", *bars]
    tokens = batch_size * config.block_size
    work = tokens * flops_per_token(config)
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name in names:
            say(f"{preset}: {name} gets ready")
            given = config, smoothing, batch, options.threads, options.dtype
            contestants[name] = Contestant(name, *given)
            stack.callback(contestants[name].stop)
            contestants[name].ask("step", 2)  # it compiles, and takes the memory it needs
        seconds, losses = defaultdict(list), defaultdict(list)
        shares, products = [], []
        for turn in range(options.rounds):
            say(f"{preset}: round {turn + 1} of {options.rounds}")
            for name, contestant in contestants.items():
                time.sleep(0.3)  # until the threads of the one before have fallen asleep
                taken, heard = contestant.ask("step", steps)
                seconds[name].append(taken)
                losses[name] += heard
                if name == "npgpt":
                    products.append(contestant.ask("product", min(1.0, steps * taken)))
                    shares.append(work / taken / products[-1])
        memory = {name: contestant.ask("memory") for name, contestant in contestants.items()}
        if options.profile:
            profile = contestants["npgpt"].ask("profile", 2 * steps)

    for name in names:
        median = statistics.median(seconds[name])
        report.add(f"{preset}: {name}", 1e3 * median, "ms")
        report.add(f"{preset}: {name}", tokens / median, "tok/s")
    for name, bar in bars.items():
        report.add(
            f"{preset}: faster than {name}", ratio(seconds, name, "npgpt"), "x", at_least=bar
        )
        apart = max(abs(a / b - 1.0) for a, b in zip(losses[name], losses["npgpt"]))
        # Torch draws masks of its own.
        most = None if config.drops and name != "text" else 1e-2 if bf16 else 1e-3
        report.add(f"{preset}: loss, apart from {name}", apart, at_most=most)
    large = preset == "tinystories-40m" and not bf16
    product = 1e-9 * statistics.median(products)
    report.add(f"{preset}: the matrix product, in turns with it", product, "GFLOP/s")
    reached = statistics.median(shares)
    report.add(f"{preset}: of its speed", reached, at_least=OF_PEAK if large else None)
    for name in names:
        report.add(f"{preset}: memory of {name}", 1e-6 * memory[name], "MB")
    if "torch eager" in memory:
        share = memory["npgpt"] / memory["torch eager"]
        report.add(
            f"{preset}: memory, of torch eager's", share, at_most=OF_MEMORY if large else None
        )
    if options.profile:
        for name, taken in sorted(profile.items(), key=lambda item: -item[1]):
            report.add(f"{preset}: {name}", 1e3 * taken, "ms")


def main():
    parser = option_parser(__doc__)
    parser.add_argument("--preset", choices=tuple(MODELS), help="this model only")
    parser.add_argument("--batch", type=int, help="rows of a batch")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant")
    parser.add_argument("--rounds", type=int, default=7, help="how often each has its turn")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32",
                        help="what the factors of matrix products are rounded to")  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="npgpt's time by function")
    options = parser.parse_args()
    presets = WITH_BARS if options.preset is None else [options.preset]
    if options.dtype == "bf16":
        from npgpt.backend.cpu.linear import round_factors

        if not round_factors("bf16"):
            say("this processor has no AVX512-BF16, or a slow one: there is nothing to measure")
            return 2
        presets = ["tinystories-40m"]
    report = Report("A training step on a CPU")
    for preset in presets:
        measure(preset, options, report)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
