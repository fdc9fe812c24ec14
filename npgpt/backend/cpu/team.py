"""A team: threads that walk through one compiled function together, and meet inside it.

A token is computed in dozens of short stretches, each of which needs the whole result of the
one before. To wake a sleeping thread takes 50 µs and more, longer than many a stretch. So the
threads are called once a token, and between two stretches each waits at a meeting until all
have come: it counts itself in, and looks at the counter until the others have done so too.
That takes a tenth of a microsecond.

To look again and again is rude where others need the processor, and a disaster where the awaited
thread has none to run on. So after SPINS looks a thread naps between two. (To yield instead is
worse than to do nothing: beside a busy process, sched_yield gives away 4 ms at a time.) Only at
the first meeting it looks longer: there it waits for threads that are still waking up. Who naps
there is late for the second one, where the others then nap, and so on to the last.

And no one may wait for a thread that will never come, because it failed, or because Ctrl-C met
it on its way. Whoever leaves early calls the meeting off: then nobody waits for anybody, what
they compute is thrown away, and all are home soon.
"""

import os
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from npgpt.backend.cpu.compile import kernel

TRIES, LONGEST_STAY = 3, 320  # rounds of work
SPINS = 50_000  # looks, about 0.1 ms: more than threads with equal work come apart
WAKING = 4 * SPINS  # looks at the first meeting
# A meeting is an int64 array, of which two places are used, on cache lines of their own.
MEETING_SIZE, ARRIVED, CALLED_OFF = 16, 0, 8

if os.name == "nt":
    _nap, NAP = types.ExternalFunction("Sleep", types.void(types.uint32)), np.uint32(1)  # ms
else:
    _nap, NAP = types.ExternalFunction("usleep", types.int32(types.uint32)), np.uint32(20)  # µs


class Team:
    """Some threads, of which the caller's is one.

    Args:    most, how many at most.
    """

    def __init__(self, most):
        self.most = most
        self.pool = ThreadPoolExecutor(most - 1) if most > 1 else None

    def run(self, threads, function, *args):
        """Call function(thread, threads, meeting, *args) on each thread, and wait for all.

        Args:    threads, how many, from 1 to most; function, compiled and without Python's lock,
                 whose threads pass the same calls of meet(threads, meeting); args, for all.
        Raises:  whatever a call of it raised.
        """
        meeting = np.zeros(MEETING_SIZE, np.int64)

        def work(thread):
            try:
                function(thread, threads, meeting, *args)
            except BaseException:
                meeting[CALLED_OFF] = 1
                raise

        others = []
        try:
            for thread in range(1, threads):
                others.append(self.pool.submit(work, thread))
            work(0)
        except BaseException:
            meeting[CALLED_OFF] = 1
            wait(others)  # they write to the arrays of args
            raise
        for other in others:
            other.result()


def try_out(guess, least, most):
    """Find out how many threads are fastest for work that is done again and again.

    That depends on the size of the model, on the memory, and on who else is at work: a team
    moves only while all of it do, so beside four busy processes one thread can outrun four. As
    the result is the same for any number, try: half as many, as many and twice as many, a few
    times each, and then stay with the fastest for a while.

    Args:    guess, to begin with; least, most, between which the answer is.
    Returns: a generator of the number to take next, which must be sent the seconds it took.
    """
    power_of_two = 1 << max(0, min(guess, most).bit_length() - 1)
    best, stay = max(least, power_of_two), TRIES
    while True:
        seconds = {}
        for threads in sorted({max(least, best // 2), best, min(2 * best, most)}):
            taken = []
            for _ in range(TRIES):
                taken.append((yield threads))
            seconds[threads] = sorted(taken)[TRIES // 2]
        before, best = best, min(seconds, key=seconds.get)
        stay = min(2 * stay, LONGEST_STAY) if best == before else max(stay // 4, TRIES)
        for _ in range(stay):
            yield best


@kernel
def meet(threads, meeting):
    """Wait until all threads have come here, unless the meeting is called off."""
    if threads == 1:
        return
    arrived = _add_one(meeting, ARRIVED)
    complete = (arrived // threads + 1) * threads
    patience, looks = WAKING if complete == threads else SPINS, 0
    while _look(meeting, ARRIVED) < complete and _look(meeting, CALLED_OFF) == 0:
        looks += 1
        if looks > patience:
            _nap(NAP)


@kernel
def share(n, thread, threads):
    """Which of n things a thread takes: from the first to before the last."""
    return n * thread // threads, n * (thread + 1) // threads


@intrinsic
def _add_one(_, array, place):
    """Add 1 to a number that others add to as well; returns what it was before."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args)
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(array, types.intp), generate


@intrinsic
def _look(_, array, place):
    """Read a number that others write, and everything that they wrote before it."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args)
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), generate


def _pointer(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])
