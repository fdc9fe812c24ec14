"""One gradient for two threads: each adds to a matrix's part of it in turn.

A gradient is as large as the model. A thread with one of its own has to clear it before a step, and
to have it added to the others afterwards: with the 40M model 155 MB for each thread, that are
written, added to and read once more. So two threads share one, where their kernels know how.

Both go through the same layers in the same order, and come to a matrix at about the same time.
Two products wait for them there, as linear.py says: the gradient of what went in, which is a
thread's own, and that of the matrix, which is shared. The first of the two threads makes the
matrix's before the other one, the second after it: while one is at the shared gradient, the other
is not. If one is late nevertheless, the other waits.

The first thread's sum comes before the second one's, always: the same numbers give the same bits.
"""

import math
import threading
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from npgpt.backend import kernels_enabled
from npgpt.parameters import Parameters

MEMBERS = 2
# How large gradients are that two threads share: smaller ones stay in the cache, and to wait for
# one another would take longer than to add them.
SHARED_BYTES = 1 << 25
# The Member that a thread is, while it shares gradients; None where it has them for itself.
sharing = ContextVar("sharing", default=None)


def members_of(size):
    """How many threads share a gradient of so many bytes, in float32 and on a CPU: 1 or 2."""
    return MEMBERS if kernels_enabled() and size >= SHARED_BYTES else 1


class Stopped(Exception):
    """The other thread has met a fault, and will never come."""


class Turns:
    """What two threads know of one another: how often each has added to which gradient."""

    def __init__(self):
        self.moved = threading.Condition()
        self.added = [Counter() for _ in range(MEMBERS)]
        self.left = [False] * MEMBERS  # who adds nothing more
        self.stopped = False

    def leave(self, place):
        """Whoever leaves, or never came, is not waited for."""
        with self.moved:
            self.left[place] = True
            self.moved.notify_all()

    def stop(self):
        """Let nobody wait: they are told with Stopped."""
        with self.moved:
            self.stopped = True
            self.moved.notify_all()


class Member:
    """One of the two threads.

    Args:    turns, a Turns; place, 0 for the thread that goes first, or 1; anew, whether the
             first that is added to a gradient is written over what was there.
    """

    def __init__(self, turns, place, anew):
        self.turns, self.place, self.anew = turns, place, anew
        self.goes_first = place == 0

    @contextmanager
    def turn(self, g):
        """Wait until it is this thread's turn to add to a gradient, and then hand it on.

        Args:    g, the gradient, an array; a view of the same memory is the same gradient.
        Yields:  whether to add to what is there; False where it is to be written over.
        Raises:  Stopped if the other thread has stopped.
        """
        turns, key = self.turns, g.ctypes.data
        mine, others = turns.added[self.place], turns.added[1 - self.place]
        earlier = mine[key] + self.place  # how often the other one has to have added before

        def free():
            return turns.stopped or turns.left[1 - self.place] or others[key] >= earlier

        with turns.moved:
            turns.moved.wait_for(free)
            if turns.stopped:
                raise Stopped
        yield not (self.anew and self.goes_first and mine[key] == 0)
        with turns.moved:
            mine[key] += 1
            turns.moved.notify_all()


class SharedGradient:
    """A gradient that two threads add to.

    Gains, biases and learned places are small and have no product of their own to take turns
    with: the second thread adds to others, which `join` adds to the first one's.

    Args:    grads, Parameters; anew, whether what is in them is forgotten first; members, 2, or 1
             where the second thread has nothing to do.
    """

    def __init__(self, grads, anew, members=MEMBERS):
        small = [name for name, g in grads.items() if g.ndim == 1 or name == "wpe"]
        if anew:
            for name in small:
                grads[name][...] = 0.0
        self.others = {name: np.zeros_like(grads[name]) for name in small}
        second = Parameters(grads.config, grads.flat)
        second.update(self.others)
        self.grads, self.views = grads, (grads, second)
        self.anew, self.turns = anew, Turns()
        for place in range(members, MEMBERS):
            self.turns.leave(place)

    def work(self, place, task):
        """Be one of the two threads.

        Args:    place, 0 or 1; task, a function of the Parameters that it adds gradients to.
        Returns: what task returns; NaN if the other thread has met a fault, which is told there.
        """
        token = sharing.set(Member(self.turns, place, self.anew))
        try:
            return task(self.views[place])
        except Stopped:
            return math.nan
        except BaseException:
            self.turns.stop()
            raise
        finally:
            sharing.reset(token)
            self.turns.leave(place)

    def join(self):
        """Add what the second thread has by itself, when both are done.

        Raises:  RuntimeError if something was added to a large gradient outside of all turns.
        """
        for name, g in self.grads.items():
            if name in self.others:
                g += self.others[name]
            elif not self.turns.added[0][g.ctypes.data]:
                raise RuntimeError(f"the threads did not take turns at the gradient of {name}")
