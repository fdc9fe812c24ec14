"""Streams, events and graphs that only take notes: what a step asks for, and in which order."""

import contextlib

import numpy as np


class FakeRuntime:
    """The part of npgpt.backend.cuda.runtime.Runtime that needs a GPU.

    Everything is done at once. What a GPU would do later could go wrong in two ways, and both
    are refused here: page-locked memory that is written before it was copied, and a device's
    buffer that is overwritten before it was read.

    Args:    records, whether a graph can be recorded.
    Attributes: notes, a list of what happened.
    """

    def __init__(self, records=True):
        self.records, self.notes = records, []
        self.stream, self.uploads = Stream(self, "step"), Stream(self, "uploads")
        self.in_step_memory = False

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def event(self):
        return Event(self)

    def send(self, device, host):
        assert type(host) is np.ndarray and host.dtype == device.dtype
        device._array[...] = host
        self.notes.append("send")

    @contextlib.contextmanager
    def step_memory(self):
        self.in_step_memory = True
        yield
        self.in_step_memory = False

    def record(self, function):
        assert self.in_step_memory, "a graph's memory must be nobody else's"
        if not self.records:
            raise RuntimeError("this stream can not be captured")
        self.notes.append("record")

        def launch():
            self.notes.append("launch")
            function()

        return launch

    def wait(self):
        self.notes.append("wait")


class Stream:
    def __init__(self, runtime, name):
        self.runtime, self.name = runtime, name

    def wait_event(self, event):
        self.runtime.notes.append(("wait", self.name, event.recorded_by))


class Event:
    recorded_by = None

    def __init__(self, runtime):
        self.runtime = runtime

    def record(self, stream):
        self.recorded_by = stream.name
        self.runtime.notes.append(("event", stream.name))

    def synchronize(self):
        self.runtime.notes.append(("host waits", self.recorded_by))
