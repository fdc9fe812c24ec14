"""Sampling on a GPU: a token is a hundred short calls, so they are recorded and launched as one.

A kernel of a few microseconds takes the host longer to ask for than the GPU to run. A graph asks
for all of them at once, but it is a recording: it reads and writes the same memory every time, and
a token at another place of the text needs another one, as it looks back on more. So the
decoder has keys and values of its own, the same for all texts; and a graph for each place, which
is recorded when the place is met for the second time: one short text needs none of them.
"""

import weakref

import numpy as np

from npgpt.backend import to_host
from npgpt.backend.cuda.compile import empty, say
from npgpt.model import forward
from npgpt.sampling import Decoder, KVCache


class GraphDecoder(Decoder):
    """Reads as npgpt.sampling.Decoder, with a graph for each place of a text.

    Args:    params, on the device; config; runtime, a Runtime.
    """

    def __init__(self, params, config, runtime):
        super().__init__(params, config)
        self.runtime, self.records = runtime, True
        self.desks = {}  # by the number of texts

    def read(self, ids, cache):
        """Read the next tokens of each text, and move the memory on.

        Args:    ids (B, T) int on the host; cache, the KVCache of these texts, of which only
                 `length` is used while the numbers are kept here.
        Returns: (B, V), the scores of the token after the last one, on the host.
        """
        B, T = ids.shape
        if B not in self.desks:
            self.desks[B] = Desk(B, self.params, self.config)
        desk = self.desks[B]
        if cache.length == 0:
            desk.give_to(cache)
        if desk.reader() is not cache:  # two readers take turns: this one has lost its desk
            return super().read(ids, cache)
        desk.past.length = cache.length
        if T == 1:
            self._one_token(desk, ids)
        else:
            new = np.asarray(ids, like=self.params["norm"])  # (B, T)
            desk.scores[...] = self._score(new, desk)  # (B, V)
        cache.length += T
        rows = to_host(desk.scores)  # (B, V)
        return rows if rows.dtype.kind == "f" else rows.astype(np.float32)  # of bfloat16

    def _one_token(self, desk, ids):
        """Fill desk.scores for ids (B, 1), by a graph where there is one."""
        desk.ids[...] = np.asarray(ids, like=self.params["norm"])  # (B, 1)

        def compute():
            desk.scores[...] = self._score(desk.ids, desk)  # (B, V)

        place = desk.past.length
        with self.runtime.step_memory():
            if self.records and place in desk.met and place not in desk.graphs:
                try:
                    desk.graphs[place] = self.runtime.record(compute)
                except Exception as error:  # of CuPy or a driver: each has its own
                    self.records = False
                    say(f"a token can't be recorded as a CUDA graph, so it goes without: {error}")
            desk.met.add(place)
            desk.graphs.get(place, compute)()

    def _score(self, ids, desk):
        """The scores (B, V) of what follows ids (B, T), which are on the device."""
        return forward(self.params, ids, self.config, desk.past, last=1)[0][:, 0]


class Desk:
    """The memory for some texts that are written side by side: always the same, text after text.

    Attributes: past, their keys and values; reader, a weak reference to the KVCache of the texts
                that these belong to; ids (B, 1) and scores (B, V), what goes in and comes out;
                met, the places that were read at; graphs, by place.
    """

    def __init__(self, batch, params, config):
        norm = params["norm"]
        self.past, self.reader = KVCache(config, batch, like=norm), lambda: None
        self.ids = empty((batch, 1), np.int64)
        self.scores = empty((batch, config.vocab_size), norm.dtype)
        self.met, self.graphs = set(), {}

    def give_to(self, cache):
        """Let new texts have the desk; who had it, and is not done, gets back what lies there."""
        before = self.reader()
        if before is not None and before is not cache:
            before.k[...] = self.past.k
            before.v[...] = self.past.v
        self.reader = weakref.ref(cache)
