"""A run that was stopped, in any way and at any moment, ends as though it never had been."""

import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_helpers import SMALL, call, fingerprint, quick, start, tree, weights

import train
from npgpt import training
from npgpt.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from npgpt.corpus.token_writer import TokenWriter
from npgpt.runs import claim, read_log
from npgpt.tokenizer import load_tokenizer

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
RUN = [*SMALL, "--run", "a"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick(monkeypatch)


def stop_at(monkeypatch, step, number=signal.SIGINT, times=1):
    """Send this process a signal in the middle of a step."""

    def cosine_schedule(at, *args):
        if at == step:
            for _ in range(times):
                signal.raise_signal(number)
        return original(at, *args)

    original = train.cosine_schedule
    monkeypatch.setattr(train, "cosine_schedule", cosine_schedule)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folders to copy from: `whole`, a run that was never stopped, and `stopped` at step 10."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("whole", "stopped"):
        (root / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root / name)
            patch.setattr(sys, "stdout", open(os.devnull, "w"))
            patch.setattr(sys, "stderr", open(os.devnull, "w"))
            quick(patch)
            if name == "stopped":
                stop_at(patch, 9)
            status = train.main(*train.parse(train.Settings, RUN))
            assert status == {"whole": 0, "stopped": 130}[name]
            sys.stdout.close()
            sys.stderr.close()
    names = [c.name for c in list_checkpoints(root / "stopped/runs/a")]
    assert names == ["step-00000008", "step-00000010"]
    return root


@pytest.fixture
def whole(runs):
    return fingerprint(runs / "whole/runs/a")


@pytest.fixture
def stopped(runs, tmp_path, monkeypatch):
    """A copy of the stopped run, in the current folder."""
    shutil.copytree(runs / "stopped", tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("runs/a")


def test_two_do_not_train_in_one_folder(stopped, capsys, whole):
    before = tree(stopped)
    with claim(stopped):
        for line in (["--resume"], ["--auto-resume", *RUN]):
            status, _, err = call(capsys, *line)
            assert status == 2 and err.startswith("error: another process trains in runs")
        shutil.rmtree(stopped / "checkpoints")  # it has not saved yet
        status, _, err = call(capsys, *RUN)
        assert status == 2 and err.startswith("error: another process trains in runs")
    assert tree(stopped) == {k: v for k, v in before.items() if "checkpoints" not in k}
    assert call(capsys, *RUN)[0] == 0
    assert fingerprint(stopped) == whole


# Stopped politely.


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", [0, 4, 6, 11])
def test_a_signal_saves_and_the_run_goes_on(capfd, tmp_path, monkeypatch, whole, number, step):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(getattr(signal, number))
    stop_at(monkeypatch, step, getattr(signal, number))
    status, out, err = call(capfd, *RUN)
    assert "stopping after this step; once more to stop at once\n" in err
    assert signal.getsignal(getattr(signal, number)) is before
    if step < 11:
        assert status == 130
        said = f"stopped and saved at step {step + 1} of 12; go on with: python train.py "
        command = out.splitlines()[-1].removeprefix(said)
        assert call(capfd, *command.split())[0] == 0
    else:
        assert status == 0  # it was the last step
    assert fingerprint("runs/a") == whole


def test_killed_before_the_first_checkpoint(capsys, tmp_path, monkeypatch, whole):
    """The same command begins anew, whatever a save left behind that was cut short."""
    monkeypatch.chdir(tmp_path)
    Path("runs/a/tokenizer/folder").mkdir(parents=True)
    Path("runs/a/tokenizer/.vocab.json.1.tmp").write_text("{")
    assert call(capsys, *RUN)[0] == 0
    assert fingerprint("runs/a") == whole
    assert sorted(load_checkpoint(list_checkpoints("runs/a")[-1]).files) == [
        f"tokenizer/{name}"
        for name in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")
    ]


def test_the_tokenizer_in_the_folder_of_a_run_is_needed_once(capfd, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch, 5)
    assert call(capfd, *RUN)[0] == 130
    shutil.rmtree("runs/a/tokenizer")
    assert call(capfd, "--resume")[0] == 0
    assert fingerprint("runs/a") == whole


def test_a_run_with_dropout_goes_on_with_the_masks_that_it_would_have_drawn(
    capfd, tmp_path, monkeypatch
):
    drops = [*SMALL, "--dropout", "0.3", "--attention-dropout", "0.2", "--norm", "layernorm"]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert call(capfd, *drops, "--run", "a")[0] == 0
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch, 5)
    assert call(capfd, *drops, "--run", "a")[0] == 130
    assert call(capfd, "--resume", "--run", "a")[0] == 0
    assert fingerprint("runs/a") == fingerprint("whole/runs/a")


def test_twice_means_now(capfd, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)

    stop_at(monkeypatch, 6, times=2)
    status, _, err = call(capfd, *RUN)
    assert status == 130 and "Traceback" not in err
    assert [c.name for c in list_checkpoints("runs/a")] == ["step-00000004"]
    monkeypatch.undo()
    quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert call(capfd, "--resume")[0] == 0
    assert fingerprint("runs/a") == whole


def test_a_signal_during_the_last_validation_loses_nothing(capfd, tmp_path, monkeypatch, whole):
    def evaluate(*args, max_tokens=None, **options):
        if max_tokens is None:
            signal.raise_signal(signal.SIGINT)
        return original(*args, max_tokens=max_tokens, **options)

    original = training.evaluate
    monkeypatch.setattr(training, "evaluate", evaluate)
    monkeypatch.chdir(tmp_path)
    assert call(capfd, *RUN)[0] == 0
    assert fingerprint("runs/a") == whole


def test_stopped_at_every_step(capfd, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch, 0)
    call(capfd, *RUN)
    for step in range(1, 12):
        stop_at(monkeypatch, step)
        assert call(capfd, "--resume")[0] == (130 if step < 11 else 0)
    assert fingerprint("runs/a") == whole


@pytest.mark.parametrize("name", [["--run", "a"], []])
def test_auto_resume_is_one_command_for_all(capfd, tmp_path, monkeypatch, runs, name):
    command = [*SMALL, "--auto-resume", *name]
    folder = "runs/a" if name else "runs/tiny-001"
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch, 3)
    assert call(capfd, *command)[0] == 130
    stop_at(monkeypatch, 7)
    assert call(capfd, *command)[0] == 130
    monkeypatch.undo()
    quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert call(capfd, *command)[0] == 0
    expected = weights(runs / "whole/runs/a")
    assert all(np.array_equal(w, expected[name]) for name, w in weights(folder).items())
    status, _, err = call(capfd, *command)  # it is finished: so a named one is refused,
    assert (status, "has finished its" in err) == ((2, True) if name else (0, False))
    assert name or list_checkpoints("runs/tiny-002")  # and otherwise another one begins


def wait_for(process, beginning):
    """Read what a process says until a line begins so, or it says no more."""
    for line in process.stdout:
        if line.startswith(beginning):
            return


@posix
def test_ctrl_c_in_the_terminal(tmp_path):
    process = start(*RUN, "--steps", "100000", cwd=tmp_path)
    wait_for(process, "step ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err == "\nstopping after this step; once more to stop at once\n"
    assert re.fullmatch(
        r"stopped and saved at step \d+ of 100000; go on with: "
        r"python train.py --resume --run runs/a",
        out.splitlines()[-1],
    )


@posix
def test_ctrl_c_before_the_first_step_leaves_no_run(tmp_path):
    process = start(*RUN, "--words", "2000000", cwd=tmp_path)
    assert process.stdout.readline() == "reading the storybook ...\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "\n")
    assert os.listdir(tmp_path) == []


# Killed.


@posix
def test_killed_again_and_again(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    many = [*RUN, *"--steps 90 --log-every 4 --save-every 1 --sample-every 30".split()]
    whole = start(*many, cwd=tmp_path / "whole")

    moments = random.Random(7)
    run, kills, in_a_save = tmp_path / "killed/runs/a", 0, 0
    argv = many
    while True:
        process = start(*argv, cwd=tmp_path / "killed")
        wait_for(process, "step ")
        if kills < 9:
            time.sleep(moments.uniform(0.0, 0.05))
            deadline = time.monotonic() + 1.0
            while kills % 3 == 0 and time.monotonic() < deadline:  # wait for a save, and kill it
                if any(run.glob("checkpoints/.tmp-*")):
                    break
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            in_a_save += any(run.glob("checkpoints/.tmp-*"))
        _, err = process.communicate()
        assert (process.returncode, err) in [(0, ""), (-signal.SIGKILL, "")]
        if process.returncode == 0:
            break
        argv = ["--resume"]
    whole.communicate()
    assert whole.returncode == 0
    assert kills >= 5
    assert in_a_save >= 2
    assert fingerprint(run) == fingerprint(tmp_path / "whole/runs/a")
    assert not list(run.rglob("*.tmp*"))
    losses = [r["step"] for r in read_log(run) if "loss" in r]
    assert losses == list(range(1, 91))


# What may change when a run goes on, and what may not.


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--n-layer 2", "was trained with --n-layer 1, not 2: leave it out to resume, or start"),
        ("--lr 1e-4", "was trained with --lr 0.003, not 0.0001"),
        ("--data other.txt", "was trained with --data storybook, not other.txt"),
        ("--seed 2", "was trained with --seed 1, not 2"),
        ("--preset storybook", "was trained with --preset tiny, not storybook"),
        ("--no-tie", "was trained with --tie True, not False"),
        ("--n-kv-head 2", "was trained with --n-kv-head None, not 2"),
        ("--valid other.txt", "was trained with --valid None, not other.txt"),
        ("--steps 10", "has finished its 10 steps: give more with --steps, or hear it with"),
        ("--steps 0", "--steps is 0, but it must be 1 or more"),
    ],
)
def test_what_decides_the_weights_may_not_change(stopped, capsys, line, sentence):
    before = tree(".")
    status, out, err = call(capsys, "--resume", *line.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sentence in err
    assert tree(".") == before


def test_the_rest_may_change(stopped, capsys, whole):
    argv = "--resume --run a --log-every 1 --save-every 3 --keep 1 --preset tiny --lr 3e-3".split()
    status, out, err = call(capsys, *argv)
    assert (status, err) == (0, "")
    assert sum(line.startswith("step 1") for line in out.splitlines()) == 2  # 11 and 12
    assert [c.name for c in list_checkpoints("runs/a")] == ["step-00000012"]
    assert fingerprint("runs/a") == whole


def test_the_last_validation_is_shown_again(stopped, capsys):
    """Until the next one, the lines of the steps show the loss of the one before the stop."""
    shutil.rmtree(list_checkpoints(stopped)[-1])  # of step 10, when it validates
    before = [r["valid_loss"] for r in read_log(stopped) if r["step"] == 5 and "valid_loss" in r]
    status, out, _ = call(capsys, "--resume", "--log-every", "1")
    line = next(line for line in out.splitlines() if line.startswith("step 09/12 "))
    assert status == 0 and f" | val {before[0]:.3f} | " in line


def test_the_threads_are_remembered(stopped, capsys, monkeypatch, whole):
    """The order of a sum decides its last bit, so another machine must cut the batch alike."""
    monkeypatch.setattr(training, "available_threads", lambda: 3)
    status, out, _ = call(capsys, "--resume")
    assert status == 0
    assert ", numpy, 2 threads\n" in out
    assert fingerprint("runs/a") == whole


def test_a_finished_run_is_finished(stopped, capsys):
    assert call(capsys, "--resume")[0] == 0
    before = tree(".")
    status, _, err = call(capsys, "--resume")
    assert status == 2
    assert err.startswith("error: ") and "has finished its 12 steps: give more with --steps" in err
    assert tree(".") == before


def test_a_finished_run_goes_on_with_more_steps(stopped, capsys):
    assert call(capsys, "--resume")[0] == 0
    assert call(capsys, "--resume", "--steps", "15")[0] == 0
    assert [r["step"] for r in read_log("runs/a") if "loss" in r] == list(range(1, 16))
    assert load_checkpoint(list_checkpoints("runs/a")[-1]).state["settings"]["steps"] == 15
    samples = Path("runs/a/samples.txt").read_text("utf-8")
    heads = [line for line in samples.splitlines() if line.startswith("--- step ")]
    assert heads == ["--- step 4", "--- step 8", "--- step 12", "--- step 15"]


def test_the_text_is_not_needed_any_more(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("she sells sea shells on the sea shore\n" * 50)
    argv = [*RUN, "--data", "book.txt", "--tokenizer", "char"]
    stop_at(monkeypatch, 5)
    assert call(capfd, *argv)[0] == 130
    Path("book.txt").unlink()
    assert call(capfd, "--resume", "--data", "book.txt")[0] == 0


def test_a_run_may_move(stopped, capsys, whole):
    Path("elsewhere").mkdir()
    os.rename("runs/a", "elsewhere/a")
    assert call(capsys, "--resume", "--run", "elsewhere/a")[0] == 0
    assert fingerprint("elsewhere/a")["model"] == whole["model"]
    assert not any(Path("runs").iterdir())


# Damage.


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["cut", "flip", "missing", "empty"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_passed_over(stopped, capsys, whole, name, how):
    damage(stopped / "checkpoints/step-00000010" / name, how)
    status, out, err = call(capsys, "--resume")
    assert status == 0
    assert err.startswith("warning: passed over step-00000010: ") and err.count("\n") == 1
    assert name in err
    assert "steps    8 to 12" in out
    assert fingerprint("runs/a") == whole


def refused(capsys):
    before = tree(".")
    status, _, err = call(capsys, "--resume")
    assert status == 2
    *warnings, error = err.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert error.startswith("error: ")
    assert tree(".") == before
    return error


def test_all_checkpoints_damaged(stopped, capsys):
    for folder in list_checkpoints(stopped):
        damage(folder / "model.safetensors", "flip")
    assert re.search(r"none of the checkpoints of runs.a is whole: .*model.saf", refused(capsys))


@pytest.mark.parametrize("how", ["cut", "flip", "turned round", "missing", "empty"])
@pytest.mark.parametrize("name", ["train", "valid"])
def test_other_tokens(stopped, capsys, name, how):
    path = stopped / f"tokens/{name}.bin"
    whole = path.read_bytes()
    path.unlink()  # it is another name of a file that all runs share
    path.write_bytes(whole)
    damage(path, how)
    if how == "turned round":
        np.fromfile(path, "<u2")[::-1].tofile(path)
    error = refused(capsys)
    assert f"{name}.bin cannot be used (" in error and error.endswith("): start a new run")
    if how in ("flip", "turned round"):
        assert "it has changed since it was saved" in error


def test_tokens_of_another_run(stopped, capsys):
    path = stopped / "tokens/train.bin"
    with TokenWriter(path, load_tokenizer(stopped / "tokenizer"), "another") as writer:
        writer.append(np.fromfile(path, "<u2")[::-1])
        writer.finish()
    assert "tokens has changed since the checkpoint: start a new run" in refused(capsys)


@pytest.mark.parametrize("change", ["shape", "less", "more", "moments"])
def test_a_checkpoint_of_another_configuration(stopped, capsys, change):
    c = load_checkpoint(list_checkpoints(stopped)[-1])
    state, model, optimizer = dict(c.state), dict(c.arrays["model"]), dict(c.arrays["optimizer"])
    if change == "shape":
        state["config"] = {**state["config"], "n_embd": 32}
    elif change == "less":
        del model["norm"]
    elif change == "more":
        model["lm_head"] = np.zeros((16, 280), np.float32)
    else:
        optimizer["m"] = optimizer["m"][:1]
    arrays = {"model": model, "optimizer": optimizer}
    save_checkpoint(stopped, 11, arrays, state, c.files)
    error = refused(capsys)
    assert "step-00000011 belongs to another configuration: " in error
    assert "choose another checkpoint" in error


def test_the_floats_are_those_that_were_saved(stopped):
    s = train.Settings(run="a", resume=True)
    run = training.resumed_run(s, {"run", "resume"}, np)
    saved = weights(stopped)
    assert run.step == run.optimizer.step == 10
    assert np.array_equal(run.optimizer.m, saved["optimizer", "m"])
    assert np.array_equal(run.optimizer.v, saved["optimizer", "v"])
    for name, w in run.params.items():
        assert w.dtype == np.float32 and np.array_equal(w, saved["model", name])
