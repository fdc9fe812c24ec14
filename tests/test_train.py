"""train.py as a person meets it: what a run leaves, and every refusal in one sentence."""

import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from training_helpers import ROOT, SMALL, call, fingerprint, quick, start, tree, weights

import train
from npgpt import evaluate, training
from npgpt.checkpoint import list_checkpoints, load_checkpoint
from npgpt.cli import parse
from npgpt.data import get_batch
from npgpt.errors import UserError
from npgpt.evaluate import Evaluation
from npgpt.presets import PRESETS
from npgpt.runs import read_log
from npgpt.settings import Settings, dashed, with_preset

COMPILING = "compiling kernels, the first time only ..."
NAMES = ("train", "valid")
BOOK = "The owl sat in the old tree, and the mouse ran home. What did the fox say? Nothing!\n" * 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test has a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fast(monkeypatch):
    quick(monkeypatch)


# What a run leaves.


def test_the_tiny_preset_as_a_program(tmp_path):
    process = start("--preset", "tiny", "--words", "8000", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0 and err in ("", f"{COMPILING}\n")
    run = tmp_path / "runs" / "tiny-001"
    names = {"settings.json", "log.jsonl", "samples.txt", "loss.png", "tokens", "tokenizer"}
    assert {f.name for f in run.iterdir()} >= names - {"loss.png"}  # matplotlib may be missing
    assert [c.name for c in list_checkpoints(run)] == ["step-00000040", "step-00000060"]
    assert not [f for f in run.rglob("*") if ".tmp" in f.name]

    records = read_log(run)
    losses = [r["loss"] for r in records if "loss" in r]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 61))
    assert losses[-1] < losses[0] - 0.5
    valid = [r for r in records if "valid_loss" in r]
    assert [r["step"] for r in valid] == [0, 20, 40, 60]
    assert abs(valid[0]["valid_loss"] - np.log(400) - 0.5) < 0.1  # it begins with a guess
    assert valid[-1]["valid_loss"] > valid[-1]["floor"] > 0
    title = "tiny-001: 33.4k parameters, 2 layers, 32 channels, context 32"
    assert {r["title"] for r in valid} == {title}
    assert "--- step 60\n" in (run / "samples.txt").read_text("utf-8")
    assert json.loads((run / "settings.json").read_text())["words"] == 8000

    lines = out.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 6
    assert lines[-1] == f"now hear it: python generate.py --run {Path('runs', 'tiny-001')}"


def test_the_state_of_a_run_is_complete(fast, capsys):
    assert call(capsys, *SMALL, "--run", "a")[0] == 0
    checkpoint = load_checkpoint(list_checkpoints("runs/a")[-1])
    state = checkpoint.state
    assert state["floor"] > 0 and state["bytes_per_token"] > 1
    assert state["optimizer_step"] == 12
    assert state["random"] == {"seed": 1, "step": 12}
    assert state["settings"]["steps"] == 12
    assert np.any(checkpoint.arrays["optimizer"]["v"])
    assert "tokenizer/vocab.json" in checkpoint.files


def test_the_same_command_makes_the_same_run(fast, capsys, tmp_path, monkeypatch):
    prints = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert call(capsys, *SMALL, "--run", "a")[0] == 0
        prints.append(fingerprint("runs/a"))
    assert prints[0] == prints[1]


@pytest.mark.parametrize("name", ["seed", "lr"])
def test_another_seed_or_rate_makes_another_run(fast, capsys, name):
    value = {"seed": "2", "lr": "1e-3"}[name]
    call(capsys, *SMALL, "--run", "a")
    call(capsys, *SMALL, "--run", "b", dashed(name), value)
    one, two = weights("runs/a"), weights("runs/b")
    assert not np.array_equal(one["model", "wte"], two["model", "wte"])


def test_accumulated_batches_are_one_large_batch(fast, capsys):
    call(capsys, *SMALL, "--run", "a", "--batch-size", "8")
    call(capsys, *SMALL, "--run", "b", "--batch-size", "4", "--accumulate", "2")
    one, two = weights("runs/a"), weights("runs/b")
    for key in one:
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=2e-5, err_msg=str(key))
    for r, s in zip(read_log("runs/a"), read_log("runs/b")):
        assert r["step"] == s["step"]
        for name, rel in (("loss", 1e-5), ("norm", 1e-4), ("valid_loss", 1e-4)):
            assert r.get(name, 0) == pytest.approx(s.get(name, 0), rel=rel)


def test_dropout_does_not_ask_who_takes_which_rows(fast, capsys):
    """One thread or two, one batch or two of half the size: the same masks."""
    drops = [*SMALL, "--dropout", "0.3", "--attention-dropout", "0.3", "--label-smoothing", "0.1"]
    call(capsys, *drops, "--run", "a", "--batch-size", "8", "--threads", "1")
    call(capsys, *drops, "--run", "b", "--batch-size", "4", "--accumulate", "2")
    call(capsys, *SMALL, "--run", "c", "--batch-size", "8")
    one, two, plain = weights("runs/a"), weights("runs/b"), weights("runs/c")
    for key in one:
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=2e-5, err_msg=str(key))
    assert np.max(np.abs(one["model", "wte"] - plain["model", "wte"])) > 1e-3


def test_a_gpt2_with_every_option(fast, capsys):
    options = (
        "--norm layernorm --position learned --mlp gelu --bias --dropout 0.1 --label-smoothing 0.1 "
        "--restart-steps 2 --restart-growth 2 --no-decay-embeddings --tie"
    )
    status, out, err = call(capsys, *SMALL, "--run", "a", *options.split())
    assert status == 0, err
    arrays = weights("runs/a")
    assert {"wpe", "norm_bias", "blocks.0.bqkv"} <= {n for g, n in arrays if g == "model"}
    rates = [r["lr"] for r in read_log("runs/a") if "lr" in r]
    assert rates[3] == rates[5] == rates[9] == 3e-3  # 3 of warm-up, 2 falling, 4, and 8
    assert rates[6] > rates[7] > rates[8]
    log = [r["valid_loss"] for r in read_log("runs/a") if "valid_loss" in r]
    assert log[-1] < log[0]


@pytest.mark.parametrize("shape", ["--n-head 4 --n-kv-head 2", "--no-tie", "--n-head 1 --clip 0"])
def test_other_shapes(fast, capsys, shape):
    assert call(capsys, *SMALL, "--run", "a", *shape.split())[0] == 0
    arrays = weights("runs/a")
    assert (("model", "lm_head") in arrays) == (shape == "--no-tie")
    if "kv" in shape:
        assert arrays["model", "blocks.0.wqkv"].shape == (16, (4 + 2 * 2) * 4)


def test_a_book_of_yours(fast, capsys):
    Path("my book.txt").write_text(BOOK)
    status, out, _ = call(capsys, *SMALL, "--data", "my book.txt", "--tokenizer", "char")
    assert status == 0
    assert "is the floor" not in out
    state = load_checkpoint(list_checkpoints("runs/tiny-001")[-1]).state
    assert state["floor"] is None
    assert state["bytes_per_token"] == 1.0
    assert state["config"]["vocab_size"] == len(set(BOOK.strip()))


def test_a_folder_of_yours(fast, capsys):
    for i in range(3):
        Path("été").mkdir(exist_ok=True)
        Path(f"été/{i}.txt").write_text(BOOK[i:])
    assert call(capsys, *SMALL, "--data", "été", "--run", "a")[0] == 0
    training, validation = (np.fromfile(f"runs/a/tokens/{n}.bin", "<u2") for n in NAMES)
    end = 279
    assert np.sum(training == end) == 3 and np.sum(validation == end) == 2
    assert training[0] == training[-1] == validation[0] == validation[-1] == end


def test_a_text_of_its_own_for_validation(fast, capsys):
    Path("a.txt").write_text(BOOK)
    Path("b.txt").write_text("The fox: home? No!\n" * 9)
    argv = [*SMALL, "--run", "a", "--data", "a.txt", "--tokenizer", "char"]
    assert call(capsys, *argv, "--valid", "b.txt")[0] == 0
    assert len(np.fromfile("runs/a/tokens/train.bin", "<u2")) == len(BOOK.strip())


def test_tokens_that_are_ready(fast, capsys):
    """Those of another run, whose validation loss at the first step is then the same."""
    assert call(capsys, *SMALL, "--run", "a")[0] == 0
    ready = ["--data", "runs/a/tokens", "--tokenizer-from", "runs/a"]
    small = [word for word in SMALL if word not in ("--vocab-size", "280")]
    status, out, err = call(capsys, *small, "--run", "b", *ready)
    assert (status, err) == (0, "") and "learning" not in out and "reading" not in out
    losses = [[r.get("valid_loss") for r in read_log(f"runs/{name}")] for name in "ab"]
    assert losses[0] == losses[1]
    assert np.array_equal(weights("runs/a")["model", "wte"], weights("runs/b")["model", "wte"])
    assert os.path.samefile("runs/a/tokens/train.bin", "runs/b/tokens/train.bin")


def test_without_matplotlib_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(train.plan, "measure_matmul_peak", lambda workers: 1e12)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    status, out, err = call(capsys, *SMALL, "--run", "a")
    assert (status, err) == (0, "")
    assert sum("matplotlib" in line for line in out.splitlines()) == 1
    assert "then python -m npgpt.plot" in out
    assert not Path("runs/a/loss.png").exists()


def test_a_name_that_must_be_quoted(fast, capsys):
    status, out, _ = call(capsys, *SMALL, "--run", "my runs/naïve 日本")
    assert status == 0
    assert list_checkpoints("my runs/naïve 日本")
    quoted = out.splitlines()[-1].removeprefix("now hear it: python generate.py --run ")
    assert quoted[0] == quoted[-1] and quoted[0] in "'\""


def test_a_name_is_not_a_folder_that_happens_to_be_here(fast, capsys):
    Path("notes").mkdir()
    assert call(capsys, *SMALL, "--run", "notes")[0] == 0
    assert os.listdir("notes") == []
    assert list_checkpoints("runs/notes")


def test_head_closes_the_pipe(tmp_path):
    process = start(*SMALL, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, "")


# The settings.


def test_the_command_line_wins_over_the_preset():
    settings, given = parse(Settings, ["--preset", "tiny", "--steps", "800", "--words", "9"])
    s = with_preset(settings, given)
    assert (s.steps, s.words, s.n_embd, s.preset) == (800, 9, PRESETS["tiny"]["n_embd"], "tiny")
    assert with_preset(Settings(), set()).n_embd == Settings().n_embd  # given, not different


def test_the_preset_of_each_backend():
    assert with_preset(*parse(Settings, [])).preset == "storybook"
    s = with_preset(*parse(Settings, ["--backend", "cupy"]))
    assert (s.preset, s.data) == ("tinystories-40m", None)
    assert with_preset(*parse(Settings, ["--backend", "cupy", "--preset", "tiny"])).words == 20_000


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name):
    s = with_preset(*parse(Settings, ["--preset", name]))
    assert set(PRESETS[name]) <= set(Settings.__dataclass_fields__)
    assert s.n_embd % s.n_head == 0


def test_a_rate_is_judged_together_with_its_preset():
    # --min-lr of one preset is below this --lr, and that of another is above
    assert with_preset(*parse(Settings, ["--lr", "2e-4"])).lr == 2e-4
    with pytest.raises(UserError, match=r"--min-lr 0.0003 is above --lr 0.0002"):
        with_preset(*parse(Settings, ["--preset", "tiny", "--lr", "2e-4"]))


def test_help_explains_every_option(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert all(dashed(name) in out for name in Settings.__dataclass_fields__)


# Refusals.


def refused(capsys, *argv):
    """The one sentence by which a command is refused, with nothing left behind."""
    before = tree(".")
    status, _, err = call(capsys, *argv)
    assert status == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert tree(".") == before
    assert "runs" not in os.listdir() or before
    return err


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--data none.txt", "there is no text at none.txt: give --data a file or a folder"),
        ("--data empty.txt", "empty.txt is empty: give --data a text to learn from"),
        ("--data blank.txt", "blank.txt is empty"),
        ("--data ends.txt", "ends.txt holds nothing but separators"),
        ("--data latin.txt", "latin.txt is not UTF-8 text: byte 2 is 0xe9"),
        ("--data folder", "the folder folder holds no text file"),
        ("--data=", "--data is empty: give it a value"),
        ("--data short.txt --tokenizer char", "training text has 10 tokens, but one context"),
        ("--data book.txt --valid one.txt --tokenizer char", "validation text has 1 tokens, and"),
        ("--data one.txt --tokenizer char", "one.txt leaves 0 bytes to train on: give a longer"),
        ("--data short.txt", "vocab_size 280 is larger than this text supports"),
        ("--valid short.txt", "--valid is for a text of yours"),
        ("--vocab-size 256 --data none.txt", "vocab_size 256 is too small"),
        ("--block-size 0", "--block-size is 0, but it must be 1 or more"),
        ("--block-size 999999", "one context needs 1,000,000: give more text, or a smaller --bl"),
        ("--eval-tokens 1", "--eval-tokens is 1, but it must be 2 or more"),
        ("--steps -1", "--steps is -1, but it must be 1 or more"),
        ("--accumulate 0", "--accumulate is 0"),
        ("--keep 0", "--keep is 0"),
        ("--seed -1", "--seed is -1, but it can not be negative"),
        ("--lr=-1e-3", "--lr is -0.001, but a learning rate must be above 0"),
        ("--lr nan", "--lr: 'nan' is not a finite number"),
        ("--lr 1e-9", "--min-lr 0.0003 is above --lr 1e-09"),
        ("--beta2 1", "--beta2 is 1.0, but it must be in [0, 1)"),
        ("--dropout 1", "--dropout is 1.0, but it must be in [0, 1)"),
        ("--attention-dropout 1", "--attention-dropout is 1.0, but it must be in [0, 1)"),
        ("--label-smoothing=-0.1", "--label-smoothing is -0.1, but it must be in [0, 1)"),
        ("--restart-steps 0", "--restart-steps is 0, but it must be 1 or more"),
        ("--patience 0", "--patience is 0, but it must be 1 or more"),
        ("--restart-growth 0", "--restart-growth is 0, but it must be 1 or more"),
        ("--norm batch", "--norm: 'batch' is not one of rmsnorm, layernorm"),
        ("--mlp tanh", "'tanh' is not one of swiglu, gelu, gelu_tanh, relu, none"),
        ("--valid-fraction 1", "--valid-fraction is 1.0, but it must be in (0, 1)"),
        ("--preset huge", "'huge' is not one of storybook, "),
        ("--blocksize 3", "there is no option --blocksize: did you mean --block-size?"),
        ("--steps", "--steps needs a value"),
        ("--n-embd 18 --n-head 4", "n_embd 18 does not split into n_head 4 heads"),
        ("--n-layer 99999999999999999999", "layers and "),
        ("--n-hidden 99999999999999999999", "parameters are more than a computer holds"),
        ("--pad-vocab-to 99999999999999999999", "or --pad-vocab-to"),
        ("--accumulate 999999999", "make a step of 63,999,999,936 tokens, and 1,073,741,824 are"),
        ("--n-head 0", "n_head is 0, but it must be at least 1"),
        ("--n-head 4 --n-kv-head 3", "n_kv_head 3 must divide n_head 4"),
        ("--preset tinystories-40m", "the preset tinystories-40m needs a text: give it one with"),
        ("--run=", "--run is empty"),
        ("--run ./short.txt", "short.txt is a file, and a run needs a folder"),
        ("--run short.txt/a", "can't make the folder short.txt"),
        (f"--run {'x' * 300}", "xxx"),
        ("--resume", "there is no trained model under runs/ yet: run python train.py first"),
        ("--resume --run gone", "there is no checkpoint in runs/gone"),
    ],
)
def test_a_mistake_is_one_sentence(fast, capsys, line, sentence):
    Path("folder").mkdir()
    Path("folder/picture.png").write_bytes(b"x")
    texts = {"empty": b"", "blank": b" \n", "latin": b"ab\xe9", "short": b"hello hello"}
    texts |= {"ends": b"<|endoftext|>\n<|endoftext|>", "book": BOOK.encode(), "one": b"x"}
    for name, content in texts.items():
        Path(f"{name}.txt").write_bytes(content)
    small = [] if "--preset" in line else SMALL
    assert sentence in refused(capsys, *small, *line.split()).replace(os.sep, "/")
    assert not Path("runs").exists()


def test_a_shape_that_can_not_be_is_refused_before_the_long_reading(fast, capsys, monkeypatch):
    monkeypatch.setattr("npgpt.training.prepare", None)
    assert "n_embd 17 does not split" in refused(capsys, *SMALL, "--n-embd", "17")


def test_a_refusal_of_the_program_itself(tmp_path):
    process = start("--data", "none.txt", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == "reading the text none.txt ...\n"
    assert err == (
        "error: there is no text at none.txt: give --data a file or a folder, "
        "or one of storybook, tinystories, shakespeare, fineweb-edu\n"
    )


def test_a_run_is_not_overwritten(fast, capsys):
    call(capsys, *SMALL, "--run", "a")
    assert "runs/a already holds a run: add --resume" in refused(
        capsys, *SMALL, "--run", "a"
    ).replace(os.sep, "/")


def test_too_large_for_the_memory(fast, capsys, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("npgpt.training.init_parameters", too_large)
    assert "out of memory, so try a smaller size" in refused(capsys, *SMALL)


# A GPU that is not there.


def test_no_cupy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    sentence = refused(capsys, *SMALL, "--backend", "cupy")
    assert "--backend cupy needs CuPy, which is not installed" in sentence


@pytest.mark.parametrize("answer", ["count = 0", "raise CUDARuntimeError('no driver: 35')"])
def test_cupy_without_a_gpu(tmp_path, answer):
    (tmp_path / "cupy.py").write_text(
        "import types\n"
        "class CUDARuntimeError(RuntimeError): pass\n"
        f"def getDeviceCount():\n    {answer}\n    return count\n"
        "runtime = types.SimpleNamespace(\n"
        "    CUDARuntimeError=CUDARuntimeError, getDeviceCount=getDeviceCount)\n"
        "cuda = types.SimpleNamespace(runtime=runtime)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    process = start("--backend", "cupy", *SMALL, cwd=tmp_path, env=environment)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    found = "no usable NVIDIA GPU (no driver: 35)" if "raise" in answer else "no NVIDIA GPU"
    assert err.startswith(f"error: --backend cupy found {found}: ")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["cupy.py"]


# A gradient that explodes, and a disk that is full.


@pytest.mark.parametrize("every", ["--eval-every 50 --save-every 1", "--eval-every 1"])
def test_an_exploding_gradient_stops_the_run(fast, capsys, every):
    explode = f"--lr 1e20 --min-lr 0 --clip 0 --run a --save-every 50 {every}".split()
    status, out, err = call(capsys, *SMALL, *explode)
    assert status == 2
    assert err.startswith("error: the gradient of step ") and err.count("\n") == 1, err
    assert "is not finite; the weights before it are saved in runs" in err
    assert "start a new run with a smaller --lr than 1e+20" in err
    assert "the first tensor to go bad" in err or "each tensor is finite" in err
    saved = load_checkpoint(list_checkpoints("runs/a")[-1])
    step = saved.step
    assert saved.state["optimizer_step"] == step, "the step that went wrong was not taken"
    with np.load("runs/a/bad_batch.npz") as kept:
        batch = get_batch(np.fromfile("runs/a/tokens/train.bin", "<u2"), 1, step, 4, 16)
        assert kept["step"] == step
        assert np.array_equal([kept["ids"], kept["targets"]], batch)
    arrays = weights("runs/a")
    assert all(np.all(np.isfinite(a)) for (group, _), a in arrays.items() if group == "model")
    again, _, err2 = call(capsys, "--resume", "--run", "a")
    assert (again, err2) == (2, err)  # no harm done, and no crash over a loss that is no number


def no_better_after(monkeypatch, best):
    """Validations that get better up to the one of this number, and then no better.

    Over the whole text the loss is another one, and says nothing of which of these was the best.
    """
    count = iter(range(1000))

    def evaluate(*args, max_tokens=None, **kwargs):
        loss = 1.0 if max_tokens is None else 2.0 + max(best - next(count), 0)
        return Evaluation(loss, 10, 20.0)

    monkeypatch.setattr(training, "evaluate", evaluate)


def test_training_ends_when_nothing_gets_better(fast, capsys, monkeypatch):
    """Validations at 0, 2, 4, …, the best at 4, and two no better are borne: the end is at 8."""
    no_better_after(monkeypatch, best=2)
    end = "--eval-every 2 --patience 2 --keep-best --run a".split()
    status, out, _ = call(capsys, *SMALL, *end)
    assert status == 0 and "no better validation since step 4: this is the end" in out
    assert "finished 8 steps" in out
    assert [c.name for c in list_checkpoints("runs/a")][-1] == "step-00000008"
    (best,) = list_checkpoints("runs/a/best")
    assert best.name == "step-00000004" and load_checkpoint(best).state["valid_loss"] == 2.0
    evaluate.main(evaluate.Settings("a/best"))
    assert "runs/a/best" in Path(capsys.readouterr().out.split(":")[0]).as_posix()
    status, out, _ = call(capsys, "--resume", "--run", "a", "--patience", "3")
    assert status == 0 and "finished 10 steps" in out


def test_what_ended_for_want_of_patience_is_finished(fast, capsys, monkeypatch):
    """So --auto-resume begins another one, as after a run that took all its steps."""
    command = [*SMALL, *"--eval-every 2 --patience 2 --auto-resume".split()]
    for name in ("tiny-001", "tiny-002"):
        no_better_after(monkeypatch, best=2)
        status, out, _ = call(capsys, *command)
        assert status == 0 and f"runs/{name}, " in out and "finished 8 steps" in out


def test_an_interrupted_run_is_not_taken_for_one_that_ended(fast, capfd, monkeypatch):
    """Whether the step after which it was stopped is the end, only a validation there can tell."""
    patience = [*SMALL, "--eval-every", "2", "--patience", "1"]
    no_better_after(monkeypatch, best=9)
    settle = train.Ledger.settle

    def stop_at_4(ledger, lr=None):
        if lr is not None and ledger.run.step == 4:
            signal.raise_signal(signal.SIGINT)
        settle(ledger, lr)

    with monkeypatch.context() as patch:
        patch.setattr(train.Ledger, "settle", stop_at_4)
        status, out, _ = call(capfd, *patience, "--run", "a")
    assert status == 130 and "stopped and saved at step 4 of 12" in out
    assert call(capfd, "--resume", "--run", "a")[0] == 0
    assert [c.name for c in list_checkpoints("runs/a")][-1] == "step-00000012"


def test_without_patience_it_goes_on_and_keeps_no_best(fast, capsys, monkeypatch):
    no_better_after(monkeypatch, best=0)
    assert call(capsys, *SMALL, "--eval-every", "2", "--run", "a")[0] == 0
    assert [c.name for c in list_checkpoints("runs/a")][-1] == "step-00000012"
    assert not os.path.exists("runs/a/best")


def test_a_validation_takes_no_more_rows_at_once_than_training(fast, capsys, monkeypatch):
    seen, forward = [], evaluate.forward

    def counting(p, ids, config, last):
        seen.append(len(ids))
        return forward(p, ids, config, last=last)

    monkeypatch.setattr(evaluate, "forward", counting)
    assert call(capsys, *SMALL, "--threads", "2")[0] == 0
    assert max(seen) == 2  # of 4 in a batch, which two threads share
    seen.clear()
    monkeypatch.setattr(training.plan, "rows_at_once", lambda config: 3)
    assert call(capsys, *SMALL, "--threads", "1", "--run", "b")[0] == 0
    assert max(seen) == 3


def test_a_validation_that_is_no_number_can_be_saved(fast, capsys, monkeypatch):
    nothing = Evaluation(float("nan"), 10, 20.0)
    monkeypatch.setattr(training, "evaluate", lambda *args, **kwargs: nothing)
    assert call(capsys, *SMALL, "--run", "a")[0] == 0
    assert load_checkpoint(list_checkpoints("runs/a")[-1]).state["valid_loss"] is None
    status, out, err = call(capsys, "--resume", "--steps", "13", "--log-every", "1")
    assert (status, err) == (0, "")
    assert "step 13/13" in out and "val nan" in out


def full_disk(monkeypatch, after):
    """After so many more files, the disk refuses each; returns the way to undo it."""
    count, fsync = [0], os.fsync

    def refuse(handle):
        count[0] += 1
        if count[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    return lambda: monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_the_older_checkpoint(fast, capsys, monkeypatch, tmp_path):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    call(capsys, *SMALL, "--run", "a", "--sample-every", "5")
    monkeypatch.chdir(tmp_path)

    saves = []

    def failing_save(run_dir, step, *rest):
        saves.append(step)
        undo = full_disk(monkeypatch, after=3) if step == 8 else (lambda: None)
        try:
            return original(run_dir, step, *rest)
        finally:
            undo()

    original = training.save_checkpoint
    monkeypatch.setattr(training, "save_checkpoint", failing_save)
    status, _, err = call(capsys, *SMALL, "--run", "a", "--sample-every", "5")
    assert (status, saves) == (2, [4, 8])
    assert err.startswith("error: could not save ") and err.count("\n") == 1
    assert "make room or choose another disk; the checkpoint of step 4 is whole" in err
    command = err.strip().rpartition("go on with ")[2]
    assert [c.name for c in list_checkpoints("runs/a")] == ["step-00000004"]
    assert not [f for f in Path("runs").rglob("*") if ".tmp" in f.name]

    monkeypatch.setattr(training, "save_checkpoint", original)
    assert call(capsys, *command.removeprefix("python train.py ").split())[0] == 0
    assert fingerprint("runs/a") == fingerprint("whole/runs/a")


def test_a_first_checkpoint_that_fails_promises_none(fast, capsys, monkeypatch):
    def refuse(*args):
        raise UserError("could not save it")

    monkeypatch.setattr(training, "save_checkpoint", refuse)
    status, _, err = call(capsys, *SMALL, "--run", "a")
    assert (status, err) == (2, "error: could not save it\n")


def test_no_room_for_the_checkpoints_is_told_at_once(fast, capsys, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(train.shutil, "disk_usage", lambda path: usage)
    status, _, err = call(capsys, *SMALL, "--run", "a")
    assert status == 2
    assert "has 1 kB free: make room, or lower --keep" in err
    assert not list_checkpoints("runs/a")


def test_importing_train_does_nothing(tmp_path):
    code = "import train; print(train.main.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("main\n", "")
    assert os.listdir(tmp_path) == []
