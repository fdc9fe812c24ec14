"""How a batch gets to the GPU while the one before is still computed."""

from npgpt.backend.cuda.compile import empty

SLOTS = 3  # batches on their way to the GPU


class Uploads:
    """The way of a step's inputs to the GPU: a queue of its own, and memory for several at once.

    A batch is copied into page-locked memory, from there to the device while the step before is
    still computed, and when that is done, into `inputs`, whose addresses never change: so a graph
    finds it there.

    Args:    runtime; shapes, a list of (shape, dtype).
    Attributes: inputs, arrays on the device.
    """

    def __init__(self, runtime, shapes):
        self.runtime, self.count = runtime, 0
        self.inputs = [empty(*shape) for shape in shapes]
        self.slots = [Slot(runtime, shapes) for _ in range(SLOTS)]

    def put(self, arrays):
        """Put arrays of the host into the inputs, for the steps that are queued from now on."""
        slot = self.slots[self.count % SLOTS]
        self.count += 1
        slot.sent.synchronize()  # the batch that was here before has left the host
        for pinned, array in zip(slot.pinned, arrays):
            pinned[...] = array
        self.runtime.uploads.wait_event(slot.read)  # and has been read on the device
        for device, pinned in zip(slot.device, slot.pinned):
            self.runtime.send(device, pinned)
        slot.sent.record(self.runtime.uploads)
        self.runtime.stream.wait_event(slot.sent)
        for entrance, device in zip(self.inputs, slot.device):
            entrance[...] = device
        slot.read.record(self.runtime.stream)


class Slot:
    """A place for one batch on its way: on the host, on the device, and the marks in between."""

    def __init__(self, runtime, shapes):
        self.pinned = [runtime.pinned(*shape) for shape in shapes]
        self.device = [empty(*shape) for shape in shapes]
        self.sent, self.read = runtime.event(), runtime.event()
