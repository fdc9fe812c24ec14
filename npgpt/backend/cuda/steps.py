"""A training step that never waits: the same as train.py's, in a queue that the GPU works off.

The text in train.py asks for the gradient's norm before it decides how much to clip, and for the
loss before it goes on. On a GPU, asking means waiting until it has worked off its queue, and while
it waits for the next order it does nothing. So here both stay on the device: clipping, and
whether to take the step at all, is decided there (see steps.cu), and the host reads losses and
norms when it wants to show them. Meanwhile it prepares the next batch, which is uploaded while
the step before is computed. Nor does the host know how many steps were skipped, in fp16, because
the scaled gradient was too large: the scale, and AdamW's count of steps, are on the device too.

A graph
    A step is some hundred calls, of some microseconds each on the host. With a large batch the GPU
    takes longer for each than the host; with a small one it waits for the host. So the third
    step is written down as a graph, and from then on a step is one call. The first two are
    taken as they are: in them kernels are compiled, algorithms chosen, and memory found.

Rounding
    In bf16 the weights that forward reads are a copy, rounded to bfloat16, which AdamW renews after
    each step. The weights that it adds its small steps to stay in float32, and so do gradients
    and AdamW's memory: bfloat16 has 8 binary places, and a step of a thousandth would be lost.
    In fp16 it is the same with float16, and a loss that is scaled (see npgpt/loss_scale.py).
"""

import time
from typing import NamedTuple

import numpy as np

from npgpt import plan
from npgpt.backend import bfloat16, kernels_enabled, to_host
from npgpt.backend.cuda.compile import FLOAT32, empty, from_host, say, source
from npgpt.backend.cuda.elementwise import cast
from npgpt.backend.cuda.linear import Products, multiply
from npgpt.backend.cuda.optim import FLOAT64, adamw
from npgpt.backend.cuda.uploads import Uploads
from npgpt.chance import PLACES, Chance, mask_keys
from npgpt.errors import UserError
from npgpt.loss_scale import GROW_AFTER, LossScale
from npgpt.model import Parameters, loss_and_gradients
from npgpt.optim import sum_of_squares

FIRST_STEPS = 2  # taken before a graph is recorded
MOST_WAITING = 1024  # steps whose loss and norm can wait on the device to be read


def storage(dtype):
    """What activations are kept in, where a run's dtype is "float32", "tf32", "bf16" or "fp16"."""
    if dtype == "bf16":
        return bfloat16()
    return np.dtype(np.float16 if dtype == "fp16" else np.float32)


class How(NamedTuple):
    """How steps are taken.

    Attributes: batch_size; accumulate, batches a step; clip, the largest norm of the gradient, 0
                for no limit; dtype, "float32", "tf32", "bf16" or "fp16"; graph, whether to
                record one; smoothing of the targets; seed, of dropout.
    """

    batch_size: int
    accumulate: int = 1
    clip: float = 1.0
    dtype: str = "bf16"
    graph: bool = True
    smoothing: float = 0.0
    seed: int = 0


class DeviceSteps:
    """Takes the steps of a run on a GPU.

    Args:    params, grads, optimizer, as train.py's, in float32 and on the device; config; how,
             a How; runtime, a Runtime; step, of the run, that is taken next; loss_scale, a
             LossScale for it, in fp16, where it has one already.
    Attributes: loss_scale, as of the last call of results(); None but for fp16.
    """

    def __init__(self, params, grads, optimizer, config, how, runtime, step=0, loss_scale=None):
        self.params, self.grads, self.optimizer, self.config = params, grads, optimizer, config
        self.how, self.runtime = how, runtime
        # The text wants the keys of its masks as numbers, which a graph would repeat in every step.
        self.has_keys = config.drops and kernels_enabled("cupy")
        self.wants_graph = how.graph and (self.has_keys or not config.drops)
        self.graph = None
        Products.tf32 = how.dtype == "tf32"
        self.dtype = storage(how.dtype)
        self.has_shadow = self.dtype != np.float32
        self.step = step
        self.loss_scale = (loss_scale or LossScale()) if how.dtype == "fp16" else None
        flat = params.flat
        self.weights = Parameters(config, cast(flat, self.dtype)) if self.has_shadow else params
        rows = how.batch_size * how.accumulate
        inputs = [((rows, config.block_size), np.int64)] * 2 + [((4,), FLOAT64)]
        if self.has_keys:
            inputs.append(((config.n_layer + 1, PLACES), np.uint64))
        self.uploads = Uploads(runtime, inputs)
        self.ids, self.targets, self.wishes, *keys = self.uploads.inputs
        self.keys = keys[0] if keys else None
        # What `judge` works with, see steps.cu.
        scale, good_steps = self.loss_scale or (1.0, 0)
        self.scale = from_host(np.array(scale, np.float32))
        self.counts = from_host(np.array([1, optimizer.step, good_steps], np.int32))
        self.knobs, self.report = empty((4,), FLOAT32), empty((3,), FLOAT64)
        self.history = empty((MOST_WAITING, 3), FLOAT64)
        self.taken = self.waiting = 0

    def rehearse(self, ids, targets):
        """Run forward and backward for one batch, and wait for them; nothing changes.

        Args:    ids, targets (batch_size, T) int, on the host.
        Raises:  UserError if the GPU has too little memory: it names a batch that would fit.
        """
        whole = [np.tile(np.asarray(x), (self.how.accumulate, 1)) for x in (ids, targets)]
        self._upload(*whole, np.zeros(4))
        try:
            with self.runtime.step_memory():
                self._gradients(slice(0, self.how.batch_size))
            self.runtime.wait()
        except MemoryError:
            raise UserError(self._too_large()) from None

    def take(self, ids, targets, lr):
        """Put a step into the queue, and return at once.

        Args:    ids, targets (batch_size · accumulate, T) int, on the host; lr.
        """
        if self.waiting == MOST_WAITING:
            raise RuntimeError(f"results() must be asked for after {MOST_WAITING} steps at most")
        a = self.optimizer
        self._upload(ids, targets, (lr, a.weight_decay, a.beta1, a.beta2))
        with self.runtime.step_memory():
            self._step()
        self.history[self.waiting] = self.report
        self.step += 1
        self.taken += 1
        self.waiting += 1

    def results(self):
        """Wait for all steps in the queue; the optimizer's count is then that of the device.

        Returns: a list of (loss, norm, scale of the loss) for each step since the last call. A
                 step whose norm is not finite has changed nothing, and if its scale was 1, nor
                 has any step after it.
        """
        numbers = to_host(self.history)[: self.waiting].tolist()
        self.waiting = 0
        _, self.optimizer.step, good_steps = to_host(self.counts).tolist()
        if self.loss_scale:
            self.loss_scale = LossScale(float(to_host(self.scale)), good_steps)
        return [(loss / self.how.accumulate, norm, scale) for loss, norm, scale in numbers]

    def memory_bytes(self):
        """The GPU's memory that this process has: what its largest step needed, and all else."""
        return self.runtime.memory_bytes()[0]

    def measure_matmul_peak(self):
        """The GPU's matrix product at its best, in FLOP/s: what a step can't exceed."""
        best, rng = 0.0, np.random.default_rng(0)
        # Not of equal numbers: a GPU that has less to switch runs faster, by more than a tenth.
        noise = cast(from_host(rng.standard_normal((1024, 1024), np.float32)), self.dtype)
        for size in (1024, 2048, 4096, 4096, 8192, 8192):
            a, out = np.tile(noise, (size // 1024, size // 1024)), empty((size, size), self.dtype)
            multiply(out, a, a)  # the first one chooses an algorithm
            self.runtime.wait()
            start = time.perf_counter()
            multiply(out, a, a)
            self.runtime.wait()
            seconds = time.perf_counter() - start
            best = max(best, 2 * size**3 / seconds)
            if seconds > 0.05:  # a larger one would say the same
                break
        return best

    def _upload(self, ids, targets, wishes):
        """Put what a step reads into its inputs, with the keys of its masks."""
        keys = [mask_keys(Chance(self.how.seed, self.step), self.config)] if self.has_keys else []
        self.uploads.put((ids, targets, wishes, *keys))

    def _step(self):
        """Run the step, or the graph of it; and record that, when it is time."""
        if self.graph is None and self.wants_graph and self.taken >= FIRST_STEPS:
            try:
                self.graph = self.runtime.record(self._compute)
            except Exception as error:  # of CuPy or a driver: each has its own; the step goes on
                self.wants_graph = False
                say(f"this step can't be recorded as a CUDA graph, so it goes without: {error}")
        if self.graph is not None:
            self.graph()
        else:
            self._compute()

    def _compute(self):
        """Forward, backward, clipping and AdamW, for the batch in self.ids and self.targets."""
        self.grads.flat[...] = 0.0
        loss = None
        for first in range(0, self.how.batch_size * self.how.accumulate, self.how.batch_size):
            part = self._gradients(slice(first, first + self.how.batch_size))
            loss = part if loss is None else loss + part
        source("steps.cu", np.float32).launch(
            "judge", (1,), (32,),
            (sum_of_squares(self.grads.flat), loss.astype(np.float32), self.wishes, self.scale,
             self.counts, self.knobs, self.report, self.how.clip,
             GROW_AFTER if self.loss_scale else 0),
        )  # fmt: skip
        a, p = self.optimizer, self.params
        first, size = a.first_decayed, p.flat.size
        for part in (slice(0, first), slice(first, size)):
            if part.start < part.stop:
                adamw(
                    p.flat[part], self.grads.flat[part], a.m[part], a.v[part],
                    self.weights.flat[part] if self.has_shadow else None,
                    0 if part.stop == first else a.num_decayed - first,
                    self.knobs, a.beta1, a.beta2, a.eps,
                )  # fmt: skip

    def _gradients(self, rows):
        """Forward and backward for some rows of the inputs: their loss; gradients are added up."""
        how, chance = self.how, None
        if self.config.drops:
            chance = Chance(how.seed, self.step, rows.start, keys=self.keys)
        scale = 1.0 / how.accumulate
        return loss_and_gradients(
            self.weights, self.grads, self.ids[rows], self.targets[rows], self.config,
            self.scale * scale if self.loss_scale else scale, chance, how.smoothing,
        )  # fmt: skip

    def _too_large(self):
        """What to say of a batch that does not fit into the GPU's memory."""
        size, accumulate = self.how.batch_size, self.how.accumulate
        _, there = self.runtime.memory_bytes()
        bits = 16 if self.has_shadow else 32
        need = plan.training_bytes(self.config, size, bits=bits)
        fits = min(plan.rows_that_fit(self.config, there, bits), size - 1)
        said = (
            f"a batch of {size} rows needs about {plan.human_bytes(need)}, and the GPU has "
            f"{plan.human_bytes(there)} free"
        )
        if fits < 1:
            return f"{said}, too little for a single row: choose a smaller model"
        parts = -(-size // fits)
        fits = -(-size // parts)
        return (
            f"{said}: --batch-size {fits} would fit, with --accumulate {parts * accumulate} "
            "for as many rows a step"
        )
