"""Tokens to batches: which rows a step reads.

The training data is one long array of ids: the tokens of all documents in a row, with an
end-of-text token before the first and after each. The model reads rows of T tokens, and the
target at each place is the token that follows.

Batches are a pure function of (seed, step). Nothing is remembered between steps, so
resuming at step 1200 gives the batch that step 1200 would have had, k micro-batches of B rows
are the rows of one batch of k·B, and each of several processes can cut its own share of the
rows without asking the others.

    One epoch cuts the array, from a random phase on, into windows of T + 1 tokens that
    overlap by one (the last target of a window is the first input of the next), and goes
    through them in a random order: every token is read once an epoch, but for fewer than 2T at
    the two ends. The next epoch has another phase and another order.

    Rows that begin with a document, where documents are short enough for it, look like a better
    idea, for no window then asks who "she" is when the answer was cut off. They are not: such
    rows show the beginnings of documents more often than their ends, and the storybook's model
    was slower to learn from them.

An order without a table
    Ten billion tokens are 80 million rows of 128, and their order as a table would take 640 MB
    and seconds to make, at the start of each epoch. A rule takes neither. Write a row's number
    in b bits, 2^b ≥ n, and stir it: multiply by an odd number and add another, modulo 2^b; then
    xor the lower half with the upper one. Each of these can be undone. An odd number has an
    inverse modulo 2^b; the xor leaves the upper half standing, and doing it twice is doing
    nothing. So no two numbers become the same: every stir shuffles 0 … 2^b − 1, and so do
    six of them in a row, with odd numbers drawn anew for each epoch.

    Of these numbers, those from n on are no rows. A number that lands there is stirred again,
    until it is below n. It gets there, for a shuffle goes round in cycles, and the number began
    below n; and no two get to the same place, for each took the first one on its own way
    along the cycle. As 2^b < 2n, that takes two attempts on average at most.

    Source of the second idea: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", who
    call it a cycle-walking cipher.

Tokens lie on the disk and are mapped into memory: the system reads a page when a row needs it. So
that a step need not wait for the disk, `ahead` prepares the next batches meanwhile: several, as a
disk answers many questions in the time of one.
"""

import functools
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from npgpt.errors import UserError

STIRS = 6  # fewer leave patterns that a chi-squared test finds in orders of ten rows


def check_length(tokens, block_size, what):
    """Refuse data too short to cut a single window from.

    Args:    tokens; block_size; what, "training" or "validation".
    Raises:  UserError if there are fewer than block_size + 1 tokens.
    """
    if len(tokens) < block_size + 1:
        raise UserError(
            f"the {what} text has {len(tokens):,} tokens, but one context needs "
            f"{block_size + 1:,}: give more text, or a smaller --block-size"
        )


def num_rows(tokens, block_size):
    """How many rows an epoch has, 1 or more."""
    return max(1, (len(tokens) - block_size) // block_size)


def shuffled(numbers, n, stirs):
    """Look numbers up in a shuffled order of 0 … n − 1, of which no table exists.

    Args:    numbers (K,) int, each in 0 … n − 1; stirs (R, 2) uint64: an odd factor, a summand.
    Returns: (K,) int64; all n numbers together give all n numbers, each once.
    """
    bits = max(1, (n - 1).bit_length())
    mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    result = np.array(numbers, np.uint64)
    walking = np.arange(len(result))  # those that have not arrived below n
    while len(walking):
        x = result[walking]
        for factor, summand in stirs:
            x = (x * factor + summand) & mask  # modulo 2^64 at first, which 2^bits divides
            x ^= x >> half
        result[walking] = x
        walking = walking[x >= n]
    return result.astype(np.int64)


@functools.lru_cache(maxsize=4)
def _epoch(seed, epoch, slack):
    """An epoch's phase, at most slack, and its way of stirring row numbers (STIRS, 2)."""
    rng = np.random.default_rng([seed, 1, epoch])
    phase = int(rng.integers(0, slack + 1))
    stirs = rng.integers(0, 1 << 64, (STIRS, 2), np.uint64)
    stirs[:, 0] |= np.uint64(1)
    return phase, stirs


def get_batch(tokens, seed, step, batch_size, block_size, rank=0, world=1):
    """Cut the batch of a step from the data: a pure function of its arguments.

    Args:    tokens (N,), N > block_size; seed; step, from 0; batch_size, all rows of the step;
             block_size T; rank, which of world processes asks: the shares of all ranks, one
             after the other, are the batch.
    Returns: ids, targets (batch_size / world, T) int64; targets are the ids one place later.
    """
    n = num_rows(tokens, block_size)
    slack = len(tokens) - 1 - n * block_size  # what windows leave over, at either end
    first = step * batch_size + rank * batch_size // world
    stop = step * batch_size + (rank + 1) * batch_size // world
    begins = []
    while first < stop:  # once, or more often where the batch goes on into the next epoch
        epoch, place = divmod(first, n)
        count = min(stop - first, n - place)
        phase, stirs = _epoch(seed, epoch, slack)
        rows = shuffled(range(place, place + count), n, stirs)  # (count,)
        begins.append(phase + block_size * rows)
        first += count
    places = np.concatenate(begins)[:, None] + np.arange(block_size + 1)  # (B, T + 1)
    batch = tokens[places].astype(np.int64)  # (B, T + 1)
    return batch[:, :-1], batch[:, 1:]


def ahead(function, items, threads=1):
    """Call a function of the next items in threads, while the caller works on this one's result.

    Args:    function; items, an iterable; threads, how many of the next are under way.
    Returns: an iterator of the results, in order, to be closed where not all are taken. What
             the function raises is raised when its result would have come.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures = deque(pool.submit(function, item) for item in itertools.islice(items, threads))
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
