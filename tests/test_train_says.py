"""What train.py tells on the way: each figure and each sample, worked out again."""

import itertools
import re
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
from training_helpers import SMALL, call, quick

import train
from npgpt.checkpoint import list_checkpoints
from npgpt.cli import harmless
from npgpt.data import num_rows
from npgpt.model import GPTConfig, init_parameters
from npgpt.parameters import parameter_shapes
from npgpt.plan import flops_per_token
from npgpt.runs import load_run, read_log
from npgpt.sampling import generate, sample_rngs
from npgpt.settings import Settings
from npgpt.tokenizer import load_tokenizer
from npgpt.training import new_optimizer, restored_parameters

STEP = (
    "step {step:02d}/12 | loss {loss:.3f} | val {val:.3f} | lr {lr:.1e} | norm {norm:.2f} | {rest}"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)


@pytest.fixture
def half_seconds(monkeypatch):
    """A clock that goes on by half a second whenever it is looked at, as at both ends of a step."""
    clock = itertools.count(0.0, 0.5)
    slow = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(train, "time", slow)


def test_every_figure_of_a_run(capsys, monkeypatch, half_seconds):
    """12 steps of half a second, each of 2 · 4 rows of 16 tokens: 256 tokens a second."""

    def peak(workers):
        """The processor's: at first one that can't be, then four times what the run takes of it."""
        if not list_checkpoints("runs/a"):
            return 1.0
        return 4 * 256 * flops_per_token(GPTConfig(**load_run("runs/a").state["config"]))

    monkeypatch.setattr(train.plan, "measure_matmul_peak", peak)
    words = "--accumulate 2 --log-every 5 --min-lr 1e-4 --run a".split()
    status, out, _ = call(capsys, *SMALL, *words)
    assert status == 0 and "finished 12 steps in 6 s" in out

    tokens = {name: np.fromfile(f"runs/a/tokens/{name}.bin", "<u2") for name in ("train", "valid")}
    assert (
        f"  data     {len(tokens['train']):,} tokens to train on, "
        f"{len(tokens['valid']):,} to validate, "
    ) in out
    epochs = 12 * 8 / num_rows(tokens["train"], 16)
    assert (
        f"  steps    0 to 12, 8 x 16 tokens each: 1,536 tokens, {epochs:.1f} epochs in all\n" in out
    )
    assert "  time     about 12 s, from one timed step of 1000 ms\n" in out  # of 4 rows, not of 8

    log = read_log("runs/a")
    steps = {r["step"]: r for r in log if "loss" in r}
    valid = {r["step"]: r["valid_loss"] for r in log if "valid_loss" in r}
    assert set(valid) == {0, 5, 10, 12}
    assert {r["ms"] for r in steps.values()} == {500.0}
    assert steps[12]["lr"] == train.cosine_schedule(11, 3, 12, 3e-3, 1e-4)
    told = [line for line in out.splitlines() if line.startswith("step ")]
    for line, last, before, validated in zip(told, (5, 10, 12), (0, 5, 10), (0, 5, 10)):
        loss = np.mean([steps[i]["loss"] for i in range(before + 1, last + 1)])
        figures = {**steps[last], "loss": loss, "val": valid[validated]}
        assert line == STEP.format(**figures, rest="500 ms | 256 tok/s")
    assert len(told) == 3

    status, out, _ = call(capsys, *"--resume --steps 20 --log-every 4 --tensorboard".split())
    assert status == 0 and "finished 20 steps in 10 s" in out
    assert "  steps    12 to 20, 8 x 16 tokens each: 1,024 tokens, " in out
    assert "  time     about 8 s, from one timed step of 1000 ms\n" in out
    assert list(Path("runs/a").glob("events.out.tfevents.*"))
    assert out.count(" | 500 ms | 256 tok/s | 25% of peak\n") == 2


def test_a_sample_is_decided_by_the_seed_and_the_step(capsys):
    """And by the weights: those of the last checkpoint write what the run wrote at its end."""
    words = "--seed 5 --sample-every 0 --sample-tokens 2000 --run a".split()
    status, out, _ = call(capsys, *SMALL, *words)
    assert status == 0
    checkpoint = load_run("runs/a")
    params, tok = restored_parameters(checkpoint), load_tokenizer(checkpoint.path / "tokenizer")
    end = tok.end_of_text
    rngs = sample_rngs(5, [12])
    steps = generate(params, params.config, np.array([[end]]), 2000, rngs, 0.8, end_of_text=end)
    ids = [int(i[0]) for i in steps]
    text = tok.decode(ids[:-1]).strip()
    assert ids[-1] == end, "a text of a model that knows little ends by chance, and soon"
    with open("runs/a/samples.txt", encoding="utf-8", newline="") as file:
        assert file.read() == f"--- step 12\n{text}\n\n"
    assert textwrap.indent(harmless(text), " " * 4) in out
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", out), "a terminal would obey this"


@pytest.mark.parametrize("decayed", [True, False])
def test_the_optimizer_is_the_one_that_was_asked_for(decayed):
    """With no gradient what is pulled on shrinks by lr · λ, and nothing else moves."""
    config = GPTConfig(
        vocab_size=11, block_size=4, n_layer=1, n_head=2, n_embd=8, n_hidden=6, position="learned"
    )
    params = init_parameters(config, 0)
    before = {name: w.copy() for name, w in params.items()}
    s = Settings(beta1=0.7, beta2=0.8, weight_decay=0.3, decay_embeddings=decayed)
    optimizer = new_optimizer(params, s)
    assert (optimizer.beta1, optimizer.beta2) == (0.7, 0.8)
    optimizer.update(params.flat, np.zeros_like(params.flat), 0.1)
    matrices, _ = parameter_shapes(config)
    pulled = set(matrices) - (set() if decayed else {"wte", "wpe"})
    for name, w in params.items():
        shrunk = before[name] * np.float32(1.0 - 0.1 * 0.3) if name in pulled else before[name]
        np.testing.assert_allclose(w, shrunk, rtol=1e-6, err_msg=name)
