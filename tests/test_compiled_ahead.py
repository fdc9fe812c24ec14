"""The kernels that train.py compiles beside its first work are those that training calls."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="without Numba there are no kernels to compile")

from npgpt.backend.cpu import ahead

# Prints the names of the functions that steps and validations still have to compile.
STEPS = """
from numba.core import event
class Names(event.Listener):
    def on_start(self, event): print(event.data["dispatcher"].py_func.__qualname__)
    def on_end(self, event): pass
event.register("numba:compile", Names())
import numpy as np
from npgpt.evaluate import evaluate
from npgpt.model import GPTConfig, init_parameters
from npgpt.optim import AdamW, clip_gradient
from npgpt.parallel import Workers
for tie, n_kv_head in ((False, 4), (True, 2)):
    config = GPTConfig(vocab_size=90, block_size=40, n_layer=2, n_head=4, n_embd=64, n_hidden=96,
                       n_kv_head=n_kv_head, tie=tie)
    params = init_parameters(config, seed=1)
    grads, optimizer = params.zeros_like(), AdamW.for_parameters(params)
    workers = Workers(params, 2)
    ids = np.arange(160).reshape(4, 40) % 90
    workers.loss_and_gradients(params, grads, ids, ids, config)
    clip_gradient(grads.flat, 1e-3, workers.map)
    optimizer.update(params.flat, grads.flat, 1e-3, workers.map)
    evaluate(params, config, ids.ravel(), 4.0, batch_size=2)
"""


def test_training_compiles_nothing_afterwards(tmp_path):
    """In a cache of its own: in that of all tests, others have compiled everything by then."""
    environment = {**os.environ, "NPGPT_KERNELS": "on", "NPGPT_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "npgpt.backend.cpu.ahead"], env=environment, check=True)
    assert len(list(tmp_path.rglob(ahead.DONE))) == 1
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def started(monkeypatch):
    """The commands that are started from now on: none is."""
    commands = []

    class Process:
        def __init__(self, command, **_):
            commands.append(command)

        def wait(self):
            return 1  # it failed, and training compiles for itself

        def kill(self):
            pass

    monkeypatch.setattr(ahead.subprocess, "Popen", Process)
    return commands


def test_once_on_a_machine(tmp_path, monkeypatch):
    commands = started(monkeypatch)
    monkeypatch.setattr(ahead, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(ahead, "available_threads", lambda: 2)
    with ahead.compiled_ahead():
        assert len(commands) == 1
    (tmp_path / ahead.DONE).touch()
    with ahead.compiled_ahead():
        assert len(commands) == 1


@pytest.mark.parametrize("writable, threads", [(False, 2), (True, 1)])
def test_not_where_it_would_not_help(tmp_path, monkeypatch, writable, threads):
    commands = started(monkeypatch)
    monkeypatch.setattr(ahead, "cache_folder", lambda: tmp_path if writable else None)
    monkeypatch.setattr(ahead, "available_threads", lambda: threads)
    with ahead.compiled_ahead():
        assert commands == []
