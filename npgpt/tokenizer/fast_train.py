"""Learning merges without a dict: the merges of bpe.learn_merges, hundreds of times faster.

(word_counts.py counts the words, this file learns from the counts, pair_heap.py says which pair
is next.) The lecture keeps words as lists of bytes, and two dicts: from a pair to its count, and
from a pair to the words that have it. Here words are numbers in a row, and of dicts there is none.

Slots: a number for every gap
    Write down the different words, one after the other. Between two neighbouring tokens is a
    gap, and a pair stands around it. Number the pairs, and give each gap the number of its
    pair: in the slot under the letter that is left of the gap. The last letter of a word has no
    gap (·). With two words, hello (5 times) and held (twice):

        letters   h e l l o h e l d      pair    0      1      2      3      4
        slots     0 1 2 3 · 0 1 4 ·            (h, e) (e, l) (l, l) (l, o) (l, d)
                                         count   7      7      5      5      2

    To merge a pair is to close its gaps. Let pair 0 become the token he. Its neighbours change:
    after each he stands now a new pair, (he, l), which gets number 5; and of (e, l) none is left.

        letters   he  l l o he  l d      pair    0      1      2      3      4      5
        slots     · 5 2 3 · · 5 4 ·                                               (he, l)
                                         count   0      0      5      5      2      7

    But where are the neighbours, when some gaps between are closed? All gaps of a pair (x, y)
    lie between an x and a y. So the gap before is as many slots back as x has bytes, and the gap
    after as many slots on as y has. No links are needed, and if a · is there, the word ends.

Where a pair stands
    The new pairs of a step contain the new token. So all their places come into being in this
    one step, and later steps can only take some away. Therefore the places of a pair are
    written down once, side by side, when it is born; nothing is ever added or deleted. Where a
    slot on the list has another number by now, it is passed over. For the same reason a
    count can only fall, and that is what pair_heap.py lives on.

What number a pair has
    is asked only of neighbours of the new token: has (x, new) a number yet? An array with a
    place for each token x answers. Numbers are given in order, so one that is smaller than the
    first of this step is of an earlier token, and means no: the array is not even cleared.

What it costs
    A gap is closed once, and with it two neighbours change. So all lists together have at most
    three places for each letter, however many merges are learned, and each is looked at once.
    Memory: at most some 20 bytes for each letter of the different words, and 48 for each pair.

Why the merges are the lecture's
    Places are listed, and so gaps are closed, from left to right: "aaa" becomes aa, a. Ties are
    broken alike. Pairs are pairs of bytes there, and of numbers here; that is the same, for no
    two tokens have equal bytes. If they had, look at those bytes in two places where they are
    about to become one token, in two ways. No merge has reached across their ends, so all merges
    within were the same; and so is the last.
"""

from typing import NamedTuple

import numpy as np

from ..backend.cpu.bits import pointer
from ..backend.cpu.compile import kernel
from ..errors import UserError
from .pair_heap import COUNT, END, LEFT, RIGHT, SIZE, START, put_in, take_best

BYTES = 256  # the first tokens
NONE = -1  # in place of a pair's number
AT_ONCE = 1 << 22  # places to look at before Python has its turn: some tenths of a second
MOST_LETTERS = 1_000_000_000  # so many letters have at most 2³¹ pairs: numbers fit into an int32

PAIR, WORD = range(2)  # the columns of slots
MERGES, PAIRS, PLACES, WAITING = range(4)  # the numbers in used


class State(NamedTuple):
    """All that training knows, of W words with N letters, P pairs and V tokens."""

    letters: np.ndarray  # (N,) uint8: the 256 bytes, then all words
    counts: np.ndarray  # (W,) int64: how often each word occurs
    slots: np.ndarray  # (N, 2) int32: PAIR, or NONE; and WORD, in which it is
    pairs: np.ndarray  # (P, 4) int64: COUNT, LEFT, RIGHT; and END, where its places end
    places: np.ndarray  # (3N,) int32: slots that got pair 0, that got pair 1, ...
    fresh: np.ndarray  # (at least N,) int32: slots that got a pair in this step
    tokens: np.ndarray  # (V, 2) int64: START, where in letters it stands once; SIZE, in bytes
    newest: np.ndarray  # (V, 2) int32: the latest pair (token, new), the latest pair (new, token)
    heap: np.ndarray  # (P, 2) int64: the pairs that wait
    used: np.ndarray  # (4,) int64: how many merges, pairs, places, and pairs waiting there are


def learn_merges(words, n_merges, progress=None):
    """Find n_merges merges, or all there are: bpe.learn_merges.

    Args:    words, WordCounts; n_merges; progress(done, total), called some times a second.
    Returns: a list of pairs of bytes; of equally frequent pairs the greatest comes first.
    Raises:  UserError if the different words have more than MOST_LETTERS letters together.
    """
    most = min(n_merges, len(words.letters))  # as each merge closes a gap
    state = before_the_first_merge(words, most)
    merges, used = np.empty((most, 2), np.int64), state.used
    while used[MERGES] < most and used[WAITING] > 0:
        if not has_room(state):
            state = state._replace(pairs=doubled(state.pairs), heap=doubled(state.heap))
        learn_some(state, merges)
        if progress:
            progress(int(used[MERGES]), n_merges)
    done = int(used[MERGES])
    spelled = state.tokens[: BYTES + done].tolist()
    tokens = [state.letters[start : start + size].tobytes() for start, size in spelled]
    return [(tokens[left], tokens[right]) for left, right in merges[:done].tolist()]


def before_the_first_merge(words, n_merges):
    """The state in which every byte is a token. Arguments as in learn_merges."""
    n_letters, n_tokens = BYTES + len(words.letters), BYTES + n_merges
    if n_letters > MOST_LETTERS:
        raise UserError(
            f"the different words of the text have {n_letters:,} letters together, and training "
            f"takes at most {MOST_LETTERS:,}: train on a part of the text"
        )
    n_pairs = BYTES**2 + 2 * n_tokens
    state = State(
        letters=np.concatenate([np.arange(BYTES, dtype=np.uint8), words.letters]),
        counts=words.counts,
        slots=np.empty((n_letters, 2), np.int32),
        pairs=np.empty((n_pairs, 4), np.int64),
        places=np.empty(3 * n_letters, np.int32),
        fresh=np.empty(n_letters, np.int32),
        tokens=np.ones((n_tokens, 2), np.int64),
        newest=np.full((n_tokens, 2), NONE, np.int32),
        heap=np.empty((n_pairs, 2), np.int64),
        used=np.zeros(4, np.int64),
    )
    state.tokens[:BYTES, START] = np.arange(BYTES)
    state.slots[:BYTES, PAIR] = NONE
    # In the first step every slot is fresh: so many find room in the part of places that is
    # still empty, and fresh itself never needs much memory.
    lay_out(state._replace(fresh=state.places[n_letters:]), BYTES + words.ends)
    return state


def doubled(array):
    """An array of twice the length that begins with this one."""
    larger = np.empty((2 * len(array), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def lay_out(state, ends):
    """Fill the slots of all words, and number the pairs of bytes.

    Args:    state; ends (W,) int64: where in letters each word ends.
    """
    letters, slots, pairs, fresh = state.letters, state.slots, state.pairs, state.fresh
    numbers = np.full((BYTES, BYTES), NONE, np.int32)
    n_pairs = n_fresh = 0
    place = BYTES
    for word in range(len(ends)):
        while place < ends[word] - 1:
            left, right = letters[place], letters[place + 1]
            pair = numbers[left, right]
            if pair == NONE:
                pair = n_pairs
                n_pairs += 1
                numbers[left, right] = pair
                pairs[pair, COUNT], pairs[pair, LEFT], pairs[pair, RIGHT] = 0, left, right
            pairs[pair, COUNT] += state.counts[word]
            slots[place, PAIR], slots[place, WORD] = pair, word
            fresh[n_fresh] = place
            n_fresh += 1
            place += 1
        slots[place, PAIR] = NONE
        place += 1
    enter_pairs(state, n_pairs, n_fresh)


@kernel
def has_room(state):
    """Whether there is room for all pairs that a step can make: two with each token."""
    return state.used[PAIRS] + 2 * len(state.tokens) <= len(state.pairs)


@kernel
def learn_some(state, merges):
    """Learn merges until all are learned, some tenths of a second are over, or room is needed.

    Args:    state; merges (n, 2) int64, to be filled from row used[MERGES] on.
    """
    pairs, tokens, places, used = state.pairs, state.tokens, state.places, state.used
    looked_at = 0
    while used[MERGES] < len(merges) and looked_at < AT_ONCE and has_room(state):
        pair, used[WAITING] = take_best(state.heap, used[WAITING], pairs, tokens, state.letters)
        if pair == NONE:
            return
        left, right = pairs[pair, LEFT], pairs[pair, RIGHT]
        first = pairs[pair - 1, END] if pair > 0 else 0
        new = BYTES + used[MERGES]
        tokens[new, START] = places[first] + 1 - tokens[left, SIZE]
        tokens[new, SIZE] = tokens[left, SIZE] + tokens[right, SIZE]
        n_pairs, n_fresh = close_gaps(state, pair, first, new)
        enter_pairs(state, n_pairs, n_fresh)
        merges[used[MERGES], 0], merges[used[MERGES], 1] = left, right
        used[MERGES] += 1
        looked_at += pairs[pair, END] - first


@kernel
def close_gaps(state, pair, first, new):
    """Merge a pair wherever it stands, and count the new pairs.

    Args:    state; pair; first, where in places its own begin; new, the token it becomes.
    Returns: how many pairs there are now; how many slots got a new one, which are in fresh.
    """
    # As pointers, arrays of two columns are one long row: row r begins at 2r.
    slots, pairs, newest = pointer(state.slots), pointer(state.pairs), pointer(state.newest)
    places, fresh, counts = pointer(state.places), pointer(state.fresh), pointer(state.counts)
    left_size = state.tokens[pairs[4 * pair + LEFT], SIZE]
    right_size = state.tokens[pairs[4 * pair + RIGHT], SIZE]
    born = n_pairs = state.used[PAIRS]
    n_fresh = 0
    for k in range(first, pairs[4 * pair + END]):
        gap = np.int64(places[k])
        if slots[2 * gap + PAIR] != pair:
            continue
        slots[2 * gap + PAIR] = NONE
        count = counts[slots[2 * gap + WORD]]
        for side in (LEFT, RIGHT):
            neighbour = gap - left_size if side == LEFT else gap + right_size
            old = np.int64(slots[2 * neighbour + PAIR])
            if old == NONE:
                continue
            token = pairs[4 * old + side]
            number = np.int64(newest[2 * token + side - LEFT])
            if number < born:
                number = n_pairs
                n_pairs += 1
                newest[2 * token + side - LEFT] = number
                pairs[4 * number + COUNT] = 0
                pairs[4 * number + side] = token
                pairs[4 * number + LEFT + RIGHT - side] = new
            pairs[4 * old + COUNT] -= count
            pairs[4 * number + COUNT] += count
            slots[2 * neighbour + PAIR] = number
            fresh[n_fresh] = neighbour
            n_fresh += 1
    pairs[4 * pair + COUNT] = 0
    return n_pairs, n_fresh


@kernel
def enter_pairs(state, n_pairs, n_fresh):
    """Write down the places of pairs just born, and let the pairs wait in the heap.

    Args:    state; n_pairs, how many there are with them; n_fresh, how many slots have got one.
    """
    slots, pairs = pointer(state.slots), pointer(state.pairs)
    places, fresh, used = pointer(state.places), pointer(state.fresh), state.used
    # Sort by counting: how many places each pair has tells where in the list its own begin;
    # then each place goes to its pair, behind those that are there.
    for pair in range(used[PAIRS], n_pairs):
        pairs[4 * pair + END] = 0
    for k in range(n_fresh):
        pairs[4 * slots[2 * fresh[k] + PAIR] + END] += 1
    begin = used[PLACES]
    for pair in range(used[PAIRS], n_pairs):
        size = pairs[4 * pair + END]
        pairs[4 * pair + END] = begin
        begin += size
    for k in range(n_fresh):
        pair = slots[2 * fresh[k] + PAIR]
        places[pairs[4 * pair + END]] = fresh[k]
        pairs[4 * pair + END] += 1
    used[WAITING] = put_in(
        state.heap, used[WAITING], used[PAIRS], n_pairs, state.pairs, state.tokens, state.letters
    )
    used[PAIRS], used[PLACES] = n_pairs, begin
