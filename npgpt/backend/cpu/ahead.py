"""Compile the kernels of training in a process of their own, while the text is prepared.

Numba compiles one function at a time, on one processor. The first `python train.py` on a machine
needs half a minute of that, for the tokenizer's kernels and for the model's; but the model's
are not wanted before the text has become tokens. So a second process takes one step of a model
that hardly exists, on another processor, and what it compiles is found on disk when the time comes.
"""

import contextlib
import subprocess
import sys

from npgpt.backend.cpu.compile import cache_folder
from npgpt.parallel import available_threads

DONE = "training-kernels"  # a file beside the kernels, when all of them are there


@contextlib.contextmanager
def compiled_ahead():
    """Around what comes before training: on leaving, the kernels are compiled, or tried to be.

    Nothing happens where they are on disk already, can't be kept, or have no processor to spare.
    """
    folder = cache_folder()
    if folder is None or (folder / DONE).exists() or available_threads() < 2:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "npgpt.backend.cpu.ahead"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
        process.wait()  # if it failed, the kernels are compiled when they are called
    finally:
        process.kill()
        process.wait()


def take_a_step():
    """Call every kernel of a training step and of a validation once, as training does."""
    import numpy as np

    from npgpt.layers import cross_entropy_forward
    from npgpt.model import GPTConfig, forward, init_parameters, loss_and_gradients
    from npgpt.optim import AdamW, gradient_norm

    config = GPTConfig(
        vocab_size=64, block_size=64, n_layer=1, n_head=2, n_embd=64, n_hidden=64, tie=False
    )
    params = init_parameters(config, seed=0)
    grads, optimizer = params.zeros_like(), AdamW.for_parameters(params)
    ids = np.zeros((2, config.block_size), np.int64)
    loss_and_gradients(params, grads, ids, ids, config)
    gradient_norm(grads.flat)
    optimizer.update(params.flat, grads.flat, 1e-3)
    cross_entropy_forward(forward(params, ids, config)[0], ids)


if __name__ == "__main__":
    take_a_step()
    (cache_folder() / DONE).touch()
