"""Streams, events, page-locked memory and graphs: what a training step asks of CuPy.

A stream is a queue: what is put into it runs in that order, while the program goes on. The step has
one of its own, and a second one for uploads, which run beside it. An event is a mark in a
queue that another queue, or the program, can wait for. A graph is a queue that was written down
once, and is run again with a single call.
"""

import contextlib
import threading

OUT_OF_MEMORY = 2  # CUDA's number for it, cudaErrorMemoryAllocation
ours = threading.local()  # .streams: of this thread, by the number of a GPU


class Runtime:
    """The streams and the memory of a training run, on the current GPU.

    From now on all that this thread asks of the GPU goes into `stream`, training and validation
    alike: one queue, so that nothing has to wait for anything else. A second Runtime of the same
    thread has the same queue: so two decoders may take turns, or a run and a decoder.
    """

    def __init__(self):
        import cupy

        self.cupy = cupy
        device = cupy.cuda.Device()
        device.synchronize()  # what was made in the stream of before is whole
        streams = vars(ours).setdefault("streams", {})
        if device.id not in streams:
            # Non-blocking: a graph can't be recorded in a stream that waits for the default one.
            streams[device.id] = cupy.cuda.Stream(non_blocking=True)
        self.stream = streams[device.id]
        self.stream.use()
        self.uploads = cupy.cuda.Stream(non_blocking=True)
        # A graph reads and writes the addresses that it was recorded with. This pool is asked by
        # nobody but the step, so that nobody else is ever given one of them.
        self.memory = StepMemory(cupy)
        self.pool = cupy.cuda.MemoryPool(self.memory)

    def pinned(self, shape, dtype):
        """An array of the host that the GPU can read by itself, while the program goes on."""
        import cupyx

        return cupyx.empty_pinned(shape, dtype)

    def event(self):
        return self.cupy.cuda.Event(disable_timing=True)

    def send(self, device, host):
        """Copy an array of the host, page-locked, to the device, in the queue of uploads."""
        device.set(host, stream=self.uploads)

    def step_memory(self):
        """A context in which new arrays come from the step's own pool."""
        return self.cupy.cuda.using_allocator(self.pool.malloc)

    def record(self, function):
        """Write down what a function would have done, instead of doing it.

        Args:    function, of nothing, that only puts things into the stream.
        Returns: a function that does it, as often as it is called.
        """
        others, self.memory.recorded = self.memory.recorded, True
        try:
            graph = self._capture(function)
            graph.upload(self.stream)
        except BaseException:
            self.memory.recorded = others
            raise
        return lambda: graph.launch(self.stream)

    def _capture(self, function):
        """CuPy's graph of what a function puts into the stream."""
        self.stream.begin_capture()
        try:
            function()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self.stream.end_capture()
            raise
        return self.stream.end_capture()

    def wait(self):
        """Wait until all that is in the queue is done."""
        self.stream.synchronize()

    def memory_bytes(self):
        """(in use or kept for the next step, all that the GPU has free and we have) in bytes."""
        held = self.pool.total_bytes() + self.cupy.get_default_memory_pool().total_bytes()
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        return held, free + held


class StepMemory:
    """Where the step's pool gets its memory from: the device.

    Where the device has none left, CuPy's pool gives back to it what lies idle, and asks again. But
    a graph goes on to read and write there: so from the first one on, that is an error.

    Attributes: recorded, whether there is a graph that uses memory of the pool.
    """

    def __init__(self, cupy):
        self.cupy, self.recorded = cupy, False

    def __call__(self, size):
        cuda = self.cupy.cuda
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except cuda.runtime.CUDARuntimeError as error:
            if not self.recorded or error.status != OUT_OF_MEMORY:
                raise
            free, total = cuda.runtime.memGetInfo()
            # Of a kind that the pool does not answer, but hands on.
            raise cuda.memory.OutOfMemoryError(size, total - free) from None
