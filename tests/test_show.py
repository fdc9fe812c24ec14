"""python -m npgpt.tokenizer: what it draws, and what it does when asked for something odd."""

import doctest
import io
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import npgpt.tokenizer.show
from npgpt.checkpoint import save_checkpoint
from npgpt.cli import main_with_errors, parse
from npgpt.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from npgpt.tokenizer.__main__ import Settings, main
from npgpt.tokenizer.show import columns, show, visible, ways, wrapped

ROOT = Path(__file__).resolve().parent.parent
SHELLS = "she sells sea shells"


@pytest.fixture(scope="module")
def tok():
    return BPETokenizer.train([SHELLS], 260, ())


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run the program in an empty folder; returns its status, and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        status = main_with_errors(lambda: main(parse(Settings, argv)[0]))
        out, err = capsys.readouterr()
        return status, out, err

    return call


def drawn(tok, text, width=80, colours=False):
    return "\n".join(show(tok, text, width, colours))


# The drawing


def test_the_lectures_example(tok):
    assert drawn(tok, SHELLS) == (
        """\
s│he│ s│e│lls│ s│e│a│ s│he│lls

11 tokens for 20 bytes: 1.82 bytes a token

 id  times  token  bytes
 82      1  s      73
259      2  he     68 65
256      3  ␣s     20 73
 68      2  e      65
258      2  lls    6c 6c 73
 64      1  a      61

The merges of each word, by rank: of those that fit, the earliest first

   she         ␣sells            ␣sea          ␣shells
   s h e       ␣ s e l l s       ␣ s e a       ␣ s h e l l s
3  s he     0  ␣s e l l s     0  ␣s e a     0  ␣s h e l l s
            1  ␣s e l ls                    1  ␣s h e l ls
            2  ␣s e lls                     2  ␣s h e lls
                                            3  ␣s he lls
"""
    )


WILD = f"{SHELLS * 5} {'猫' * 15}\n\t😀{'s' * 100} e\u0301 \x00\x1b[31m\x85 \u202e"


@pytest.mark.parametrize("width", [40, 57, 200])
@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("vocab_size", [260, 285, None])
def test_every_line_fits_the_terminal(vocab_size, colours, width):
    if vocab_size is None:
        tok = CharTokenizer.train([WILD])
    else:
        tok = BPETokenizer.train([SHELLS, WILD.replace("s" * 100, "")], vocab_size, ())
    lines = list(show(tok, WILD, width, colours))
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    sentences = [line for line in plain if re.match(r"The merges of|\d+ tokens for", line)]
    assert len(sentences) == (1 if vocab_size is None else 2)
    assert max(columns(line) for line in plain if line not in sentences) <= width
    assert all(line == line.rstrip(" ") for line in lines)
    assert ("\x1b" in "".join(lines)) == colours
    assert not re.search("[\x00-\x1a\x1c-\x1f\x7f-\x9f\u202e]", "".join(lines))
    # What is shown first is the text, all of it, token by token.
    tokens = "".join(visible(tok.token_bytes(i), space=" ") for i in tok.encode(WILD))
    if colours:
        first = "\n".join(lines[: lines.index("")])
        assert "".join(re.findall(r"\x1b\[38;5;16;48;5;\d+m(.*?)\x1b\[0m", first)) == tokens


def test_a_long_line_goes_on_below_its_second_part():
    line = [("ab: ", None), ("cdefghijkl", "red"), ("mn", None)]
    assert wrapped(line, 8) == [
        [("ab: ", None), ("cdef", "red")],
        [("    ", None), ("ghij", "red")],
        [("    ", None), ("kl", "red"), ("mn", None)],
    ]


def test_a_way_wider_than_the_line_is_shown_all_the_same(tok):
    heading, empty, *lines = ways(tok, "sells", 3)
    assert heading[0][0].startswith("The merges") and empty == [] and all(lines)


def test_neighbours_have_different_colours(tok):
    first = next(show(tok, SHELLS, 200, colours=True))
    found = re.findall(r"\x1b\[([0-9;]+)m([^\x1b]+)\x1b\[0m", first)
    assert [text for _, text in found] == [tok.token_bytes(i).decode() for i in tok.encode(SHELLS)]
    assert all(a != b for (a, _), (b, _) in pairwise(found))


def test_newlines_end_lines_and_special_tokens_are_one(tok):
    tok = BPETokenizer.train([SHELLS], 261)
    lines = list(show(tok, "she\nsea<|endoftext|>\n\n", 80, colours=False))
    assert lines[:4] == ["s│he│↵", "│s│e│a│<|endoftext|>│↵", "│↵", ""]
    assert "260      1  <|endoftext|>  3c 7c 65 6e 64 6f 66 74 65 78 74 7c 3e" in lines
    assert not any("<" in line for line in lines[lines.index("") + 14 :])


def test_each_way_ends_with_the_tokens_that_encode_gives(tok):
    """The pictures are drawn apart from encode, and say the same."""
    for word in (" shells", "hellshe", "sssss", "éé", "lsls"):
        last = drawn(tok, word).rstrip("\n").split("\n")[-1].lstrip(" 0123456789")
        assert last == " ".join(visible(tok.token_bytes(i)) for i in tok.encode(word))


def test_nothing_and_a_single_byte(tok):
    assert "0 tokens for 0 bytes\n" in drawn(tok, "")
    one = drawn(tok, "e")
    assert "1 token for 1 byte: 1.00 bytes a token" in one and "merges" not in one
    assert "1 token for 1 byte" in drawn(CharTokenizer.train(["abc"]), "b")
    assert "merges" not in drawn(CharTokenizer.train(["abc"]), "abc")


@pytest.mark.parametrize(
    "data, shown, width",
    [
        (b" a\tb\n", "␣a⇥b↵", 5),
        (b"\0\x1b\x7f", "␀␛␡", 3),
        (b"\xe2\x80", r"\xe2\x80", 8),
        (b"\x85a", r"\x85a", 5),
        ("\x85".encode(), r"\x85", 4),
        ("\u00a0\u200d\ufeff\u202e".encode(), r"\xa0\u200d\ufeff\u202e", 22),
        ("\ue000\U000e0001".encode(), r"\ue000\U000e0001", 16),
        ("❤\ufe0f".encode(), r"❤\ufe0f", 7),
        ("猫Ａé".encode(), "猫Ａé", 5),
        ("e\u0301".encode(), "e\u0301", 1),
        ("\u0301".encode(), "◌\u0301", 1),
    ],
)
def test_what_a_terminal_can_show(data, shown, width):
    assert visible(data) == shown
    assert columns(shown) == width


def test_the_example_in_the_text():
    result = doctest.testmod(npgpt.tokenizer.show)
    assert result.failed == 0 and result.attempted == 1


# The program


def test_without_a_run_a_small_tokenizer_is_made_and_said_so(call):
    status, out, _ = call("--show", "Once upon a time")
    assert status == 0
    assert out.startswith(
        "a small tokenizer, made just now since there is no run yet: 1,000 tokens\n"
    )
    assert "\nOnce│ upon│ a│ time\n" in out and "\x1b" not in out


def test_the_newest_run(call, tok, tmp_path):
    tok.save(tmp_path / "t")
    files = {f"tokenizer/{p.name}": p.read_bytes() for p in (tmp_path / "t").iterdir()}
    save_checkpoint(tmp_path / "runs" / "a", 1, {}, {}, files)
    status, out, _ = call("--show", SHELLS)
    assert status == 0 and out.startswith(f"tokenizer of {Path('runs/a')}, the newest run: 260 tok")
    assert "s│he│ s│e│lls" in out
    (tmp_path / "runs" / "a" / "tokenizer").mkdir()
    tok.save(tmp_path / "runs" / "a" / "tokenizer")
    assert call("--tokenizer", "runs/a", "--encode", "she") == (
        0,
        "82 259\n",
        "tokenizer of runs/a\n",
    )


def test_encode_and_decode(call, tok, tmp_path, monkeypatch):
    tok.save(tmp_path / "t")
    assert call("--tokenizer", "t", "--encode", SHELLS)[1].startswith("82 259 256 68 258 ")
    assert call("--tokenizer", "t", "--decode", "82", "259")[:2] == (0, "she\n")
    stdin = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfshe"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert call("--tokenizer", "t/tokenizer.json", "--encode", "-")[:2] == (0, "82 259\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"she\xff")))
    status, _, err = call("--tokenizer", "t", "--show", "-")
    assert status == 2 and "error: the text on stdin is not UTF-8: byte 3 is 0xff; convert" in err


def test_train_then_export(call, tmp_path):
    (tmp_path / "book.txt").write_bytes(("\ufeff" + f"{SHELLS}\r\n" * 20).encode())
    status, out, _ = call("--train", "book.txt", "--vocab-size", "265", "--out", "t")
    assert status == 0
    assert "first merges    ␣s  ls  lls  he  ␣se  she  hells  ␣sells\n" in out
    assert "longest tokens  ␣sells  hells  lls  ␣se  she  ␣s\n" in out
    assert (
        "wrote t: vocab.json, merges.txt, tokenizer.json, tokenizer_config.json; 265 tokens" in out
    )
    tok = load_tokenizer(tmp_path / "t")
    assert tok.vocab_size == 265 and b"\r" not in b"".join(tok.tokens[256:])
    status, out, _ = call("--tokenizer", "t", "--export", "others")
    assert status == 0 and out.startswith("wrote others: vocab.json")
    for path in ("others", "others/tokenizer.json"):
        assert load_tokenizer(tmp_path / path).tokens == tok.tokens
    before = (tmp_path / "t" / "vocab.json").read_bytes()
    status, _, err = call("--train", "book.txt", "--vocab-size", "260", "--out", "t")
    assert (status, err) == (2, "error: t holds a tokenizer already: choose another folder\n")
    assert (tmp_path / "t" / "vocab.json").read_bytes() == before


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("", 'say what to do, for instance --show "she sells sea shells"; --help lists it all'),
        ("--show a --encode b", "--show and --encode are too much for one command: choose one"),
        ("--train book.txt", "--train needs --out, where to write, and no other --tokenizer"),
        ("--train b --out c --tokenizer t", "--train needs --out, where to write, and no other"),
        ("--show a --out c", "--vocab-size and --out belong to --train: give a text to learn from"),
        ("--show a --vocab-size 5", "--vocab-size and --out belong to --train"),
        ("--train nowhere.txt --out t", "nowhere.txt cannot be read: No such file or directory"),
        ("--train bad.txt --out t", "bad.txt is not UTF-8: byte 0 is 0xff; convert it first"),
        ("--train book.txt --out book.txt", "book.txt is a file, and a tokenizer needs a folder"),
        ("--train empty.txt --out t", "empty.txt is empty: give a text to learn from"),
        ("--train book.txt --vocab-size 10 --out t", "vocab_size 10 is too small: bytes and spec"),
        ("--train book.txt --out t", "vocab_size 1000 is larger than this text supports: after 2"),
        ("--tokenizer nowhere --show a", "there is no tokenizer folder nowhere: check the"),
        ("--tokenizer book.txt --show a", "book.txt is damaged: what it holds is not JSON"),
        ("--tokenizer chars --export t", "tokenizer of chars has characters and no merges: no"),
        ("--tokenizer chars --show xyz", "the character 'x' (U+0078) at position 0 was not in"),
        ("--tokenizer chars --decode 0 7", "--decode: id 7 at position 1 is unknown: ids run from"),
        ("--tokenizer chars --decode -1", "--decode: id -1 at position 0 is unknown"),
        ("--decode seven", "--decode: 'seven' is not a whole number"),
    ],
)
def test_mistakes_are_one_sentence(argv, sentence, call, tmp_path):
    (tmp_path / "book.txt").write_text("abc")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "empty.txt").touch()
    CharTokenizer.train(["abc"]).save(tmp_path / "chars")
    status, out, err = call(*argv.split())
    assert status == 2 and out == ""
    assert err.splitlines()[-1].startswith(f"error: {sentence}")


def test_help_teaches_and_colours_are_for_terminals(tmp_path):
    command = [sys.executable, "-m", "npgpt.tokenizer"]
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m npgpt.tokenizer [-h] [--show TEXT]")
    assert 'python -m npgpt.tokenizer --show "she sells sea shells"' in done.stdout


@pytest.mark.parametrize(
    "terminal, env, coloured", [(1, {}, 1), (1, {"NO_COLOR": "1"}, 0), (0, {}, 0)]
)
def test_colours_are_for_terminals(terminal, env, coloured, call, tok, tmp_path, monkeypatch):
    tok.save(tmp_path / "t")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: bool(terminal))
    _, out, _ = call("--tokenizer", "t", "--show", SHELLS)
    assert ("\x1b[" in out) == bool(coloured) and ("│" in out) != bool(coloured)
