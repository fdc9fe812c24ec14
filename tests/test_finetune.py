"""train.py --init-from: a trained model goes on learning, on another text."""

import numpy as np
import pytest
from interchange_helpers import CONFIGS, folder_of, model_of
from training_helpers import call, quick

from npgpt import load
from npgpt.checkpoint import list_checkpoints, load_checkpoint
from npgpt.finetune import with_context
from npgpt.model import forward
from npgpt.runs import read_log

STORY = "she sells sea shells by the sea shore; the shells she sells are sea shells. " * 40
QUICK = (
    "--data story.txt --steps 8 --warmup-steps 2 --lr 3e-3 --batch-size 4 --eval-every 4 "
    "--eval-tokens 300 --save-every 4 --sample-every 0 --sample-tokens 8 --threads 2"
).split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPGPT_DATA", str(tmp_path / "cache"))
    (tmp_path / "story.txt").write_text(STORY)
    quick(monkeypatch)
    return tmp_path


@pytest.mark.parametrize("name", ["rich llama", "gpt2"])
def test_a_folder_from_elsewhere_learns(folder, capsys, name):
    folder_of(folder / "hf", CONFIGS[name])
    how = "--dropout 0.01 --attention-dropout 0.02 --checkpoint-activations".split()
    status, out, err = call(capsys, "--init-from", "hf", "--run", "it", *how, *QUICK)
    assert status == 0, err
    losses = [r["valid_loss"] for r in read_log("runs/it") if "valid_loss" in r]
    assert losses[-1] < losses[0] - 0.1
    state = load_checkpoint(list_checkpoints("runs/it")[-1]).state
    assert state["config"]["n_head"] == CONFIGS[name].n_head
    assert state["settings"]["n_head"] == CONFIGS[name].n_head
    assert state["config"]["dropout"] == state["settings"]["dropout"] == 0.01
    assert state["config"]["attention_dropout"] == 0.02 and state["config"]["recompute"]
    assert state["config"]["block_size"] == 16  # all that the model has; the preset asks for more


def test_a_run_of_ours_goes_on_and_is_resumed(folder, capsys):
    folder_of(folder / "hf", CONFIGS["llama"])
    load.main(load.Settings("hf", run="start"))
    line = ["--init-from", "start", "--run", "it", "--block-size", "8", *QUICK]
    assert call(capsys, *line)[0] == 0
    assert load_checkpoint(list_checkpoints("runs/it")[-1]).state["config"]["block_size"] == 8
    status, out, err = call(capsys, "--resume", "--run", "it", "--steps", "10", "--threads", "2")
    assert status == 0 and "finished 10 steps" in out, err


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--init-from hf --n-layer 3", "--init-from names a model, which decides --n-layer"),
        ("--init-from hf --vocab-size 300", "which decides --vocab-size: leave out one"),
        ("--init-from hf --tokenizer-from x", "which decides --tokenizer-from: leave out one"),
        ("--init-from nothing --data story.txt", "there is neither a run nor a model nothing: "),
        ("--init-from=", "--init-from is empty"),
        ("--init-from hf", "the preset finetune needs a text"),
        ("--resume --run start", "was trained elsewhere, and holds no training to go on with"),
    ],
)
def test_refusals(folder, capsys, line, sentence):
    folder_of(folder / "hf", CONFIGS["llama"])
    load.main(load.Settings("hf", run="start"))
    status, _, err = call(capsys, *line.split())
    assert status == 2 and sentence in err
    assert [p.name for p in (folder / "runs").iterdir()] == ["start"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_shorter_context_is_the_same_model(name):
    config = CONFIGS[name]
    params = model_of(config)
    shorter, cut = with_context(config, params, 8)
    assert shorter.block_size == 8
    ids = np.arange(8)[None] * 31
    np.testing.assert_array_equal(forward(cut, ids, shorter)[0], forward(params, ids, config)[0])
    assert with_context(config, params, 1000)[0] == config
