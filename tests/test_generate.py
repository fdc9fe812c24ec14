"""generate.py as a person meets it: texts, turns, and every refusal in one sentence."""

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import generate
from data.storybook_checker import judge
from npgpt.checkpoint import save_checkpoint
from npgpt.cli import main_with_errors, parse
from npgpt.model import GPTConfig, init_parameters
from npgpt.pretrained import STORYBOOK
from npgpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXT = "to be or not to be, that is the question.\n"


def save_run(name, tok, step=10, seed=0, flat=None, **state):
    """A run as training leaves it; its model knows nothing, so it writes noise."""
    config = GPTConfig(tok.vocab_size, 16, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12)
    params = init_parameters(config, seed)
    if flat is not None:
        params.flat[:] = flat
    tok.save("tokenizer")
    files = {f"tokenizer/{path.name}": path.read_bytes() for path in Path("tokenizer").iterdir()}
    state = {"config": asdict(config), "valid_loss": 2.5} | state
    return save_checkpoint(Path("runs") / name, step, {"model": dict(params)}, state, files)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test has a folder of its own, and no one at the keyboard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", piped(b""))


@pytest.fixture
def run_a():
    return save_run("a", CharTokenizer.train([TEXT]))


def piped(data):
    return io.TextIOWrapper(io.BytesIO(data), encoding="ascii")  # its bytes are UTF-8 all the same


def call(capsys, *argv):
    """Run the program within this process: its status, stdout and stderr."""
    argv = [*argv, *(() if "--max-new-tokens" in argv else ("--max-new-tokens", "20"))]
    status = main_with_errors(lambda: generate.main(parse(generate.Settings, argv)[0]))
    return (status, *capsys.readouterr())


# Texts.


def test_a_prompt_is_continued(capsys, run_a):
    status, out, err = call(capsys, "--prompt", "to be")
    assert (status, len(out), out[:5], out[-1]) == (0, 26, "to be", "\n")
    about, speed = err.splitlines()
    place = Path("runs", "a", "checkpoints", "step-00000010")
    assert about == f"{place}, step 10, validation loss 2.5000, 1,128 parameters"
    told = r"20 tokens in \d+\.\d s, [\d,]+ tokens/s(, after \d+ s of compiling)?"
    assert re.fullmatch(told, speed)


def test_compiling_does_not_count_as_writing(capsys, run_a, monkeypatch):
    """The first text on a machine would otherwise look a hundred times as slow as the second."""
    seconds = iter([1.0, 21.5])
    monkeypatch.setattr("npgpt.backend.seconds_compiling", lambda: next(seconds))
    monkeypatch.setattr(generate, "write_samples", lambda *_: (50, 21.5))
    speed = call(capsys, "--prompt", "to be")[2].splitlines()[-1]
    assert speed == "50 tokens in 1.0 s, 50 tokens/s, after 20 s of compiling"


def test_what_the_prompt_compiled_is_part_of_the_time(capsys, run_a, monkeypatch):
    """Letters beyond ASCII may be the first that the tokenizer's kernel is wanted for."""
    compiling, read = [0.0], generate.prompt_ids

    def slow(*args):
        time.sleep(0.6)
        compiling[0] = 0.6
        return read(*args)

    monkeypatch.setattr("npgpt.backend.seconds_compiling", lambda: compiling[0])
    monkeypatch.setattr(generate, "prompt_ids", slow)
    speed = call(capsys, "--prompt", "to be")[2].splitlines()[-1]
    assert re.fullmatch(r"20 tokens in \d+\.\d s, [\d,]+ tokens/s, after 1 s of compiling", speed)


def test_the_same_seed_writes_the_same_and_another_another(capsys, run_a):
    texts = [call(capsys, "--seed", seed, "--prompt", "to")[1] for seed in "001"]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_has_no_chance_in_it(capsys, run_a):
    texts = [call(capsys, "--temperature", "0", "--seed", s, "--prompt", "to")[1] for s in "01"]
    assert texts[0] == texts[1]
    assert call(capsys, "--top-k", "1", "--prompt", "to")[1] == texts[0]
    assert call(capsys, "--top-p", "1e-9", "--prompt", "to")[1] == texts[0]


def test_samples_are_apart_and_the_same_alone(capsys, run_a, monkeypatch):
    monkeypatch.setattr(generate, "BATCH", 2)
    out = call(capsys, "--prompt", "to", "--num-samples", "3")[1]
    header, *samples = out.split("----- sample ")
    assert header == ""
    bodies = [sample.partition("-----\n")[2] for sample in samples]
    assert [sample[:6] for sample in samples] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all(body.startswith("to") and len(body) == 23 for body in bodies)
    assert len(set(bodies)) == 3
    assert call(capsys, "--prompt", "to")[1] == bodies[0]
    monkeypatch.setattr(generate, "BATCH", 16)
    assert call(capsys, "--prompt", "to", "--num-samples", "3")[1] == out


def test_a_file_holds_what_the_terminal_would(capsys, run_a):
    shown = call(capsys, "--prompt", "to", "--num-samples", "2")[1]
    status, out, err = call(capsys, "--prompt", "to", "--num-samples", "2", "--out", "d/two.txt")
    assert (status, out) == (0, "")
    assert "wrote d/two.txt: 2 texts\n" in err
    assert Path("d/two.txt").read_bytes().decode() == shown
    assert os.listdir("d") == ["two.txt"]


def test_nothing_is_left_of_a_file_that_was_interrupted(capsys, run_a, monkeypatch):
    Path("two.txt").write_text("before")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "stream", interrupted)
    assert call(capsys, "--prompt", "to", "--out", "two.txt")[0] == 130
    assert Path("two.txt").read_text() == "before"
    assert not [name for name in os.listdir() if "tmp" in name]


@pytest.mark.parametrize(
    "data, text",
    [(b"to be\n", "to be"), (b"to\r\nbe\r\n", "to\nbe"), (b"\xef\xbb\xbfto", "to"), (b"", "")],
)
def test_a_piped_text_is_the_prompt(capsys, run_a, monkeypatch, data, text):
    monkeypatch.setattr(sys, "stdin", piped(data))
    status, out, _ = call(capsys)
    assert status == 0
    assert out.startswith(text)
    assert len(out) >= len(text) + 20


def test_no_stdin_at_all(capsys, run_a, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert call(capsys)[0] == 0


def test_a_text_ends_at_end_of_text(capsys):
    tok = CharTokenizer.train(["ab"], special_tokens=[END_OF_TEXT])
    save_run("a", tok, flat=0.0)  # all scores are equal, so one in three draws is the end
    status, out, err = call(capsys, "--num-samples", "9", "--max-new-tokens", "99")
    texts = out.splitlines()[1::2]
    assert status == 0
    assert len(texts) == 9
    assert len({len(text) for text in texts}) > 1
    assert max(map(len, texts)) < 60
    assert set("".join(texts)) == {"a", "b"}
    assert f"{sum(map(len, texts))} tokens in" in err


def test_end_of_text_in_a_prompt_is_the_mark(capsys):
    tok = BPETokenizer.train([TEXT * 3], 260)
    save_run("a", tok)
    model = generate.open_model(generate.Settings())
    end = tok.end_of_text
    assert generate.prompt_ids(model, "") == [end]
    assert generate.prompt_ids(model, "to") == [end, *tok.encode("to")]
    assert generate.prompt_ids(model, f"{END_OF_TEXT}to") == [end, *tok.encode("to")]
    assert generate.prompt_ids(model, f"be{END_OF_TEXT}") == [end, *tok.encode("be"), end]
    assert call(capsys, "--prompt", f"be{END_OF_TEXT}to")[0] == 0


def test_where_a_text_begins_without_end_of_text():
    for text, first in ((TEXT, 0), ("ba\n!", 0), ("xyz", 0), ("\t\nab", 1)):
        tok = CharTokenizer.train([text])
        save_run("a", tok, step=20)
        model = generate.open_model(generate.Settings())
        assert generate.prompt_ids(model, "") == [first]
        assert "\n" not in text or tok.decode([first]) == "\n"
        assert generate.prompt_ids(model, text[0]) == tok.encode(text[0])


def test_a_character_is_shown_whole_or_not_at_all(monkeypatch):
    tok = BPETokenizer.train(["é日" * 4], 257)
    save_run("a", tok)
    model = generate.open_model(generate.Settings())
    ids = tok.encode("aé日é")
    steps = [np.array(pair) for pair in pairwise(ids)]  # two texts, out of step
    monkeypatch.setattr("npgpt.sampling.generate", lambda *args: steps)
    pieces = zip(*generate.stream(model, [0], generate.Settings(), [0, 1], False))
    assert next(pieces) == ("a", "", "é", "", "", "日", "")  # the last é lacks its second byte
    assert "".join(next(pieces)) == "é日é"


def test_a_long_prompt_keeps_its_end_and_says_so(capsys, run_a):
    status, out, err = call(capsys, "--prompt", TEXT)
    assert status == 0
    assert out.startswith(TEXT)
    assert "note: the prompt has 42 tokens, of which the model reads the last 16\n" in err
    ending = call(capsys, "--prompt", TEXT[-16:])
    assert ending[1] == out[26:]
    assert "note" not in ending[2]


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_bits_write_nearly_the_same(capsys, run_a, dtype):
    """Not noise: the same draws fall on the same letters, but for a few."""
    pytest.importorskip("numba")
    exact = call(capsys, "--prompt", "to", "--max-new-tokens", "8", "--threads", "2")[1]
    status, out, _ = call(
        capsys, "--prompt", "to", "--max-new-tokens", "8", "--dtype", dtype, "--threads", "2"
    )
    assert status == 0
    assert sum(a == b for a, b in zip(out, exact)) >= len(exact) - 2


def test_fewer_bits_need_the_kernels(capsys, run_a, monkeypatch):
    monkeypatch.setattr("npgpt.sampling.kernels_enabled", lambda: False)
    assert "--dtype bf16 needs the compiled kernels" in refused(capsys, "--dtype", "bf16")
    assert call(capsys, "--prompt", "to")[0] == 0


# Which run.


def test_the_run_that_saved_last(capsys, run_a):
    b = save_run("b", CharTokenizer.train([TEXT]), step=5)
    os.utime(run_a, (1e9, 1e9))
    assert call(capsys, "--prompt", "to")[2].startswith(f"{Path('runs/b/checkpoints')}")
    os.utime(b, (1e8, 1e8))
    assert call(capsys, "--prompt", "to")[2].startswith(f"{Path('runs/a/checkpoints')}")


def test_a_run_by_name_or_path(capsys, run_a, tmp_path):
    save_run("a", CharTokenizer.train([TEXT]), step=20)
    save_run("b", CharTokenizer.train([TEXT]), step=30)
    for run, step in (
        ("a", 20), ("runs/a", 20), (str(tmp_path / "runs" / "b"), 30),
        ("runs/a/checkpoints/step-00000010", 10),
    ):  # fmt: skip
        status, _, err = call(capsys, "--prompt", "to", "--run", run)
        assert status == 0
        assert f"step {step}," in err


def test_a_damaged_checkpoint_is_passed_over_aloud(capsys, run_a):
    newer = save_run("a", CharTokenizer.train([TEXT]), step=20)
    (newer / "model.safetensors").write_bytes(b"")
    status, _, err = call(capsys, "--prompt", "to")
    assert status == 0
    assert "passed over step-00000020" in err
    assert "step 10," in err


# Refusals: one sentence, status 2, nothing on stdout.


def refused(capsys, *argv):
    status, out, err = call(capsys, *argv)
    assert (status, out) == (2, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith("error: ")
    return sentence.removeprefix("error: ")


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--temperature -0.1", "--temperature is -0.1, but it must be 0, which is greedy, or more"),
        ("--temperature nan", "--temperature: 'nan' is not a finite number"),
        ("--top-p 0", "--top-p is 0.0, but it must be above 0, and at most 1, which means all"),
        ("--top-p 1.01", "--top-p is 1.01, but it must be above 0"),
        ("--top-k -1", "--top-k is -1, but it must be 0, which means all tokens, or more"),
        ("--max-new-tokens 0", "--max-new-tokens is 0, but it must be at least 1"),
        ("--num-samples 0", "--num-samples is 0, but it must be at least 1"),
        ("--seed -1", "--seed is -1, but it must be 0 or more"),
        ("--threads 0", "--threads is 0, but it must be at least 1"),
        ("--dtype fp4", "--dtype: 'fp4' is not one of float32, bf16, int8"),
        ("--model m.bin", "there is no file m.bin: check the spelling"),
        ("--run=", "--run is empty: give it a value, or leave it out"),
        ("--model=", "--model is empty: give it a value, or leave it out"),
        ("--tokenizer-file t.bin", "--tokenizer-file belongs to a --model"),
        ("--model m --tokenizer-file t --run a", "--model and --run each choose a model"),
        ("--model m --tokenizer-file t", "there is no file m: check the spelling"),
        ("--out runs", "--out 'runs' is a folder: give the name of a file in it"),
        ("--out=", "--out '' is a folder"),
        ("--backend gpu", "--backend: 'gpu' is not one of numpy, cupy"),
        ("--temprature 1", "there is no option --temprature: did you mean --temperature?"),
        ("--run b", f"there is no trained model in {Path('runs/b')}: choose one of a"),
        ("--run tokenizer", f"there is no trained model in {Path('runs/tokenizer')}: choose one"),
        ("--prompt tö", "the character 'ö' (U+00F6) at position 1 was not in the training text"),
        ("--prompt tö --out o.txt", "the character 'ö' (U+00F6) at position 1"),
    ],
)
def test_refusals(capsys, run_a, argv, sentence):
    assert refused(capsys, *argv.split()).startswith(sentence)
    assert not Path("o.txt").exists()


def test_no_model_yet(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("npgpt.pretrained.STORYBOOK", tmp_path / "left out of the installation")
    sentence = "there is no trained model under runs/ yet: run python train.py first"
    assert refused(capsys) == sentence
    Path("runs/a/checkpoints").mkdir(parents=True)
    Path("runs/notes.txt").write_text("a file among the runs")
    assert refused(capsys) == sentence
    assert refused(capsys, "--run", "x").endswith("run python train.py first")
    assert refused(capsys, "--run", "a").startswith("there is no trained model in")


def test_a_strangers_first_command_tells_a_story(capsys):
    status, out, err = call(capsys, "--prompt", "", "--num-samples", "20", "--temperature", "0.7")
    assert status == 0
    assert err.startswith("no run of yours yet, so here is the model that comes with npgpt")
    stories = [text.partition("\n")[2] for text in out.split("----- sample")[1:]]
    assert len(stories) == 20
    # 98 of 100 are consistent throughout: that five of twenty are not is one chance in 10^5.
    good = sum(judge(story.strip()).consistent for story in stories)
    assert good >= 16
    assert sum(file.stat().st_size for file in STORYBOOK.iterdir()) <= 6e6


def test_a_run_of_ones_own_comes_first(capsys, run_a):
    assert "comes with npgpt" not in call(capsys, "--prompt", "a", "--max-new-tokens", "1")[2]


def test_a_run_misspelled(capsys, run_a):
    save_run("shakespeare", CharTokenizer.train([TEXT]))
    assert refused(capsys, "--run", "shakespear").endswith("did you mean shakespeare?")


def test_every_checkpoint_damaged(capsys, run_a):
    (run_a / "model.safetensors").write_bytes(b"")
    assert refused(capsys).startswith(f"none of the checkpoints of {Path('runs/a')} is whole")
    assert "model.safetensors has 0 bytes" in refused(capsys, "--run", str(run_a))


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"colour": "red"}, "was written by another version of npgpt: use that, or train again"),
        (None, "was written by another version of npgpt"),
        ({"n_layer": 3}, "belongs to another configuration"),
        ({"n_layer": 1}, "belongs to another configuration"),
        ({"n_layer": -1}, "n_layer is -1, but it must be at least 1"),
    ],
)
def test_a_checkpoint_of_another_kind(capsys, config, sentence):
    tok = CharTokenizer.train([TEXT])
    ours = asdict(GPTConfig(tok.vocab_size, 16, 2, 2, 1, 8, 12))
    save_run("a", tok, config=config and ours | config)
    assert sentence in refused(capsys)


def test_a_tokenizer_of_another_model(capsys, run_a):
    tok = CharTokenizer.train([TEXT + "!"])
    config = asdict(GPTConfig(tok.vocab_size - 1, 16, 2, 2, 1, 8, 12))
    params = init_parameters(GPTConfig(**config), 0)
    tok.save("other")
    files = {f"tokenizer/{p.name}": p.read_bytes() for p in Path("other").iterdir()}
    save_checkpoint("runs/a", 20, {"model": dict(params)}, {"config": config}, files)
    assert "they do not belong together" in refused(capsys)


def test_a_model_gone_wrong(capsys):
    save_run("a", CharTokenizer.train([TEXT]), flat=np.nan)
    status, _, err = call(capsys, "--prompt", "to")
    assert status == 2
    assert "error: the model's scores are not finite numbers" in err


def test_a_pipe_that_is_not_text(capsys, run_a, monkeypatch):
    monkeypatch.setattr(sys, "stdin", piped(b"to \xff"))
    assert refused(capsys).startswith("the piped text is not UTF-8: byte 3 is 0xff")


def test_cupy_is_not_here(capsys, run_a):
    try:
        import cupy  # noqa: F401
    except ImportError:
        assert refused(capsys, "--backend", "cupy").startswith("--backend cupy needs CuPy")


# In turns.


class Keyboard:
    """Someone who types these lines; an exception is a key pressed at the prompt."""

    def __init__(self, monkeypatch, *lines):
        self.lines = iter(lines)
        monkeypatch.setattr("builtins.input", self)

    def __call__(self, prompt):
        print(prompt, end="")
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def converse(capsys, **settings):
    settings = generate.Settings(**{"max_new_tokens": 5, **settings})
    tokens, _ = generate.converse(generate.open_model(settings), settings)
    return (tokens, *capsys.readouterr())


def test_turns_continue_one_story(capsys, run_a, monkeypatch):
    seen = []
    original = generate.prompt_ids
    monkeypatch.setattr(
        generate,
        "prompt_ids",
        lambda m, story, typed: seen.append(story) or original(m, story, typed),
    )
    Keyboard(monkeypatch, "to be", "or not", ", that", "", "exit", "never read")
    tokens, out, err = converse(capsys)
    assert tokens == 20
    answers = out.split("> ")[1:]
    assert answers[-1] == ""
    first = seen[0] + answers[0][:-1]
    assert seen[0] == "to be"
    assert seen[1] in (f"{first} or not", f"{first}or not")
    second = seen[1] + answers[1][:-1]
    assert seen[2] == f"{second}, that"  # no space before a comma
    assert seen[3] == ""  # an empty line: a new story
    assert "goes on with it" in err and '"exit" or Ctrl-' in err


def test_keys_at_the_prompt(capsys, run_a, monkeypatch):
    Keyboard(monkeypatch, KeyboardInterrupt(), "to", EOFError())
    tokens, out, err = converse(capsys)
    assert tokens == 5
    assert err.rstrip().endswith("ends)")


def test_an_unknown_character_does_not_end_the_turns(capsys, run_a, monkeypatch):
    Keyboard(monkeypatch, "tö", "to", "exit")
    tokens, _, err = converse(capsys)
    assert tokens == 5
    assert "error: the character 'ö'" in err


def test_an_interrupt_stops_the_answer_only(capsys, run_a, monkeypatch):
    def interrupted(model, ids, *args, **kwargs):
        yield ["be"]
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "stream", interrupted)
    Keyboard(monkeypatch, "to ", "or", "exit")
    tokens, out, _ = converse(capsys)
    assert (tokens, out) == (2, "> be\n> be\n> ")


def test_the_end_begins_a_new_story(capsys, monkeypatch):
    tok = CharTokenizer.train(["ab"], special_tokens=[END_OF_TEXT])
    save_run("a", tok, flat=0.0)
    Keyboard(monkeypatch, "a", "exit")
    _, out, _ = converse(capsys, max_new_tokens=100)
    assert "(the end: what you type next begins a new story)" in out


# As a program of its own.


def program(*argv, **kwargs):
    command = [sys.executable, str(ROOT / "generate.py"), *argv]
    return subprocess.run(command, capture_output=True, timeout=60, **kwargs)


def test_the_program(run_a):
    done = program("--max-new-tokens", "9", input=b"to be\n")
    assert (done.returncode, done.stdout[:5], len(done.stdout.decode().strip("\r\n")) >= 5) == (
        0, b"to be", True,
    )  # fmt: skip
    done = program("--prompt", "ö", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert b"error: the character" in done.stderr


def test_a_terminal_that_knows_only_ascii():
    save_run("a", CharTokenizer.train(["éö日"]))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = program("--max-new-tokens", "9", input="é".encode(), env=environment)
    assert done.returncode == 0
    assert done.stdout.strip() == b"?" * 10


def test_help_is_quick_and_loads_no_numpy():
    code = "import sys, generate; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, check=True
    )
    assert done.stdout.strip() == "False"
    start = time.perf_counter()
    done = program("--help", env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "ascii"})
    assert time.perf_counter() - start < 5  # 0.1 s on a quiet machine
    assert done.returncode == 0
    for field in generate.Settings.__dataclass_fields__:
        assert f"--{field.replace('_', '-')} ".encode() in done.stdout
    assert b"examples:" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_conversation_in_a_terminal(run_a):
    """The real thing: a terminal, an interrupt in the middle of an answer, Ctrl-D at the end."""
    person, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "generate.py"), "--max-new-tokens", "1000000"],
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + 30

    def wait_for(text):
        nonlocal shown
        while text not in shown:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([person], [], [], left)
            new = os.read(person, 4096) if ready else b""
            assert new, shown
            shown += new

    try:
        for line in (b"to be", b"or not"):
            wait_for(b"> ")
            shown = b""
            os.write(person, line + b"\n")
            wait_for(line + b"\r\n")
            wait_for(b"e")
            shown = b""
            wait_for(b"e")  # a letter of the answer: it is under way
            process.send_signal(signal.SIGINT)
        wait_for(b"> ")
        os.write(person, b"\x04")
        wait_for(b" tokens/s")
        assert process.wait(10) == 0
        assert b"Traceback" not in shown
    finally:
        process.kill()
        process.wait()
        os.close(person)
