"""Several threads, one gradient: the batch is cut, and the gradients of its pieces are added.

The loss is a mean over rows, and a derivative is linear: the gradient of a mean is the mean of
the gradients. So the rows of a batch can go through the model in pieces, one after the other
(that is gradient accumulation) or side by side (that is data parallelism), and the sum of
what comes back is the gradient of the whole. Each thread takes its rows through forward and
backward, as many at a time as memory should hold, into a gradient buffer of its own; then the
buffers are added. Where the model is large, two threads share a buffer: see turns.py.

Why threads, in a language that runs one thread at a time? Because NumPy lets go of Python's lock
while it computes. And why not leave it to the BLAS library, which has threads of its own? It
splits only the matrix products, one by one, and between two of them all threads but one wait;
most other layers read and write memory, and do that on one processor. Cut by rows, everything
runs everywhere, and the threads meet once a step. So BLAS should use a single thread: train.py
asks it to.

The pieces and the order of the sum depend on nothing but the number of threads, and of rows that
memory should hold. The same numbers give the same bits; others the same gradient up to rounding.
"""

import contextlib
import ctypes
import itertools
import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context

import numpy as np

from npgpt.model import cut, loss_and_gradients
from npgpt.optim import pieces
from npgpt.turns import SharedGradient, members_of

# The logits that a thread has at a time: more would only need more memory. But the head is a wide
# matrix, and to be worth reading it has to serve some places.
LOGITS_BYTES, LEAST_PLACES = 1 << 24, 512


def available_threads():
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such question
        return os.cpu_count() or 1


def keep_freed_memory():
    """Ask the C library to keep what is freed, for the arrays of the next step.

    By default it gives large pieces back to the system at once, and asks for them anew a moment
    later; the system then clears every page again, while the threads wait for one another. On
    two threads a step of the storybook model takes 60 ms with that, and 43 ms without. Only
    glibc has these switches; elsewhere nothing happens. And all threads take from one store: each
    has its own by default, in pieces of 64 MB that go back to the system as soon as they are idle.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: from how many bytes on memory is the system's
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: how much may lie idle before it is given back
        mallopt(-8, 1)  # M_ARENA_MAX


def head_parts(config, rows):
    """Into how many parts the places of so many rows are cut for the head: see LOGITS_BYTES."""
    places = rows * config.block_size
    wanted = -(-4 * places * config.vocab_size // LOGITS_BYTES)
    return max(1, min(wanted, places // LEAST_PLACES, config.block_size))


class Workers:
    """Threads, and the gradient buffers that they need beside the one that they are given.

    Args:    params, whose shape the buffers take; threads, at least 1; most_rows, how many a
             thread takes through the model at a time, None for all that it has.
    """

    def __init__(self, params, threads, most_rows=None):
        self.params, self.threads, self.most_rows = params, threads, most_rows
        self.buffers = []  # made when they are needed: who only evaluates needs none
        # The thread that calls is one of them: it works too, and no time is lost on waking it.
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def map(self, function, items):
        """Like the built-in map, on all threads: a list of results in the order of the items."""
        items = list(items)
        if self.pool is None or len(items) < 2:
            return [function(item) for item in items]
        results, places = [None] * len(items), itertools.count()

        def work():
            """Take the next item that nobody has taken, until none is left."""
            while (i := next(places)) < len(items):
                results[i] = function(items[i])

        # A thread of the pool has settings of its own, such as np.errstate: give it the caller's.
        helpers = [
            self.pool.submit(copy_context().run, work)
            for _ in range(min(self.threads, len(items)) - 1)
        ]
        try:
            work()
        finally:  # nobody may still be at work when a fault is told
            wait(helpers)
        for helper in helpers:
            helper.result()
        return results

    def loss_and_gradients(
        self, params, grads, ids, targets, config, scale=1.0, chance=None, smoothing=0.0,
        anew=False,
    ):  # fmt: skip
        """As model.loss_and_gradients, each thread taking some of the rows.

        Args:    params; grads, Parameters that the gradients of scale · loss are added to;
                 ids, targets (B, T) int; config; scale; chance; smoothing; anew, whether what
                 is in grads is forgotten first.
        Returns: loss, a scalar, not scaled.
        """
        B = ids.shape[0]
        n = min(B, self.threads)
        on_host = isinstance(grads.flat, np.ndarray) and grads.flat.dtype == np.float32
        members = members_of(grads.flat.nbytes) if on_host else 1
        gradients = [grads, *self._more(-(-n // members) - 1)]
        # The same for all threads, as they take turns at the head's gradient in each part.
        parts = head_parts(config, min(-(-B // n), self.most_rows)) if self.most_rows else 1

        def rows_of(piece, into):
            """The rows of one thread, as many of them at a time as memory should hold."""
            loss = 0.0
            for rows in cut(piece * B // n, (piece + 1) * B // n, self.most_rows or B):
                share = (rows.stop - rows.start) / B  # of the mean over all rows
                draw = chance and chance._replace(row=chance.row + rows.start)
                loss += share * loss_and_gradients(
                    params, into, ids[rows], targets[rows], config, scale * share, draw, smoothing,
                    parts,
                )  # fmt: skip
            return loss

        def alone(piece):
            if piece or anew:
                gradients[piece].flat[...] = 0.0
            return rows_of(piece, gradients[piece])

        def add(piece):
            for more in gradients[1:]:
                grads.flat[piece] += more.flat[piece]

        if members == 1:
            loss = sum(self.map(alone, range(n)))
        else:
            pairs = [
                SharedGradient(g, anew or i > 0, min(members, n - i * members))
                for i, g in enumerate(gradients)
            ]

            def together(piece):
                pair, place = divmod(piece, members)
                return pairs[pair].work(place, lambda into: rows_of(piece, into))

            loss = sum(self.map(together, range(n)))
            for pair in pairs:
                pair.join()
        if len(gradients) > 1:
            self.map(add, pieces(0, grads.flat.size))
        return loss

    def _more(self, count):
        """So many gradients beside the one that was given; those of an earlier call, if any."""
        while len(self.buffers) < count:
            self.buffers.append(self.params.zeros_like())
        return self.buffers[:count]
