"""What the tests of checkpoints share: a small one, whose parts are known to belong together."""

import numpy as np

from npgpt.checkpoint import save_checkpoint


def save_small(run, step, version=0, **options):
    """Save a checkpoint whose whole content can be told from its step and version."""
    arrays = {
        "model": {"w": np.full((2, 3), step, np.float32), "b": np.full(2, version, np.float64)},
        "optimizer": {"m": np.full(3, step, np.float32)},
    }
    state, files = {"step": step, "version": version}, {"tokenizer/vocab.json": b"%d" % step}
    return save_checkpoint(run, step, arrays, state, files, **options)


def version_of(saved):
    """Check that all parts of a checkpoint made by save_small belong together."""
    step, version = saved.step, saved.state["version"]
    assert saved.state == {"step": step, "version": version}
    assert saved.files == {"tokenizer/vocab.json": b"%d" % step}
    model, optimizer = saved.arrays["model"], saved.arrays["optimizer"]
    assert (model["w"] == step).all() and model["w"].shape == (2, 3)
    assert (model["b"] == version).all() and model["b"].shape == (2,)
    assert (optimizer["m"] == step).all() and optimizer["m"].shape == (3,)
    return version


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def fail(sentence):
    raise AssertionError(sentence)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())
