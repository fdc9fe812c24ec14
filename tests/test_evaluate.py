"""python -m npgpt.evaluate: a loss, what it means, and how far it may be off."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_helpers import SMALL, call, quick

from npgpt import evaluate
from npgpt.checkpoint import save_checkpoint
from npgpt.cli import main_with_errors, parse
from npgpt.errors import UserError
from npgpt.evaluate import Evaluation, Settings, main, ratio_error
from npgpt.runs import load_run, read_log
from npgpt.tokenizer import CharTokenizer, load_tokenizer
from npgpt.training import restored_parameters, run_tokens

ROOT = Path(__file__).resolve().parents[1]


def test_the_error_is_how_far_the_ratios_of_many_samples_lie_apart():
    rng = np.random.default_rng(1)
    ratios, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(50, 150, 40)
        sums = sizes * (3.0 + 0.5 * rng.standard_normal(40))  # a hard page is hard throughout
        ratios.append(sums.sum() / sizes.sum())
        errors.append(ratio_error(sums, sizes, ratios[-1]))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05)
    covered = np.abs(np.array(ratios) - 3.0) <= 1.96 * np.array(errors)
    assert 0.92 <= np.mean(covered) <= 0.97


def test_the_error_by_hand():
    # gaps −1 and 1 of two units of 2 and 4 tokens at a loss of 2: √(2/1 · 2) / 6
    assert ratio_error([3.0, 9.0], [2, 4], 2.0) == pytest.approx(2.0 / 6)
    assert math.isnan(ratio_error([3.0], [2], 1.5))
    assert Evaluation(2.0, 10, 20.0, 0.5).interval == pytest.approx((1.02, 2.98))


def test_a_perplexity_beyond_all_numbers_is_a_number():
    assert Evaluation(3.0, 10, 20.0).perplexity == pytest.approx(math.exp(3.0))
    assert 1e300 < Evaluation(1e6, 10, 20.0).perplexity < math.inf


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick(patch)

        class Silent:
            readouterr = staticmethod(lambda: ("", ""))

        assert call(Silent, *SMALL, "--run", "a")[0] == 0
    return folder / "runs" / "a"


def evaluated(capsys, *argv):
    status = main_with_errors(lambda: main(parse(Settings, [str(a) for a in argv])[0]))
    return (status, *capsys.readouterr())


def test_a_run_is_evaluated_over_its_validation_text(run, capsys):
    status, out, err = evaluated(capsys, run, "--batch-size", 2)
    assert status == 0, err
    last = [r for r in read_log(run) if "valid_loss" in r][-1]
    head, nats, perplexity, bits = out.splitlines()
    assert f"{last['valid_tokens']:,} tokens predicted" in head
    assert float(nats.split()[0]) == pytest.approx(last["valid_loss"], abs=1e-4)
    assert float(perplexity.split()[0]) == pytest.approx(last["perplexity"], rel=1e-4)
    assert float(bits.split()[0]) == pytest.approx(last["bits_per_byte"], abs=1e-4)
    for line in (nats, perplexity, bits):
        low, high = float(line.split()[-3]), float(line.split()[-1])
        assert low < float(line.split()[0]) < high


def test_short_documents_are_texts_of_their_own_in_training_and_here(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    words = ("owl", "fox", "cat", "hen", "dog", "ant")
    texts = [f"The {a} saw a {b}." for a in words for b in words]
    Path("it.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = "--data it.jsonl --valid-fraction 0.3 --vocab-size 270".split()
    status, _, err = call(capsys, *SMALL, *options)
    assert status == 0, err
    last = [r for r in read_log("runs/tiny-001") if "valid_loss" in r][-1]["valid_loss"]

    checkpoint = load_run("runs/tiny-001")
    params, tok = restored_parameters(checkpoint), load_tokenizer(checkpoint.path / "tokenizer")
    tokens = run_tokens(Path("runs/tiny-001"), "valid", tok).tokens
    starts = np.flatnonzero(tokens == tok.end_of_text)[:-1]
    apart, joined = (
        evaluate.evaluate(params, params.config, tokens, 1.0, starts=each).loss
        for each in (starts, None)
    )
    assert last == pytest.approx(apart, abs=1e-5) and abs(apart - joined) > 1e-3
    _, out, _ = evaluated(capsys, "runs/tiny-001")
    assert float(out.splitlines()[1].split()[0]) == pytest.approx(apart, abs=1e-4)


def test_another_text_has_an_end_around_each_document(run, tmp_path):
    texts = {"a.txt": "The dog saw a bird.", "b.txt": "¡Olé!"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tok = load_tokenizer(load_run(run).path / "tokenizer")
    ids, bytes_per_token = evaluate._other_text(tmp_path, tok)
    a, b = map(tok.encode, texts.values())
    assert ids.tolist() == [tok.end_of_text, *a, tok.end_of_text, *b, tok.end_of_text]
    assert bytes_per_token * (len(ids) - 1) == pytest.approx(19 + 7)


def test_what_is_not_predicted_is_not_counted(tmp_path):
    """Without an end-of-text the first character is given, and no loss tells of its bytes."""
    (tmp_path / "a.txt").write_text("éaé", encoding="utf-8")
    (tmp_path / "b.txt").write_text("a")
    tok = CharTokenizer.train(["éa"])
    ids, bytes_per_token = evaluate._other_text(tmp_path / "a.txt", tok)
    assert len(ids) == 3 and bytes_per_token == 1.5
    with pytest.raises(UserError, match="has 1 tokens, and two are the least"):
        evaluate._other_text(tmp_path / "b.txt", tok)


def test_a_model_from_elsewhere_needs_a_text(run, capsys, tmp_path):
    c = load_run(run)
    save_checkpoint(tmp_path, 0, c.arrays, {"config": c.state["config"]}, c.files)
    status, _, err = evaluated(capsys, tmp_path)
    assert status == 2 and "was trained elsewhere, on a text unknown: give --data a text" in err
    (tmp_path / "other.txt").write_text("The dog saw a bird. " * 30)
    assert evaluated(capsys, tmp_path, "--data", tmp_path / "other.txt")[0] == 0


def test_another_text_is_read_with_the_runs_tokenizer(run, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("The dog saw a bird. " * 30)
    status, out, err = evaluated(capsys, run, "--data", tmp_path / "other.txt", "--tokens", 50)
    assert status == 0 and "49 tokens predicted" in out, err


@pytest.mark.parametrize(
    "argv, says",
    [
        (["nowhere"], "there is no checkpoint in"),
        (["--data="], "--data is empty: give it a value, or leave it out"),
        (["--tokens", "1"], "--tokens is 1, but it must be 2 or more"),
        (["--data", "none.txt"], "none.txt"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, capsys, argv, says):
    given = argv if argv[0] == "nowhere" else [run, *argv]
    status, _, err = evaluated(capsys, *given)
    assert status == 2 and says in err and "Traceback" not in err and err.count("\n") == 1


def test_it_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "npgpt.evaluate", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "python -m npgpt.evaluate" in done.stdout
