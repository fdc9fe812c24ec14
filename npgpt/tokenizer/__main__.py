"""Watch a tokenizer at work, train one, or carry it to other programs.

A model reads numbers, not letters: a tokenizer cuts the text into tokens, and each has its id.
--show draws how. First the text, each token on a background of its own; then the tokens, with
ids and bytes; then, for each word, the merges that made its tokens out of single bytes.
npgpt/tokenizer/bpe.py tells the whole story.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..cli import main_with_errors, option, parse
from ..errors import UserError
from . import BPETokenizer, load_tokenizer
from .base import END_OF_TEXT
from .files import CHARACTERS, SETTINGS, VOCABULARIES
from .hugging_face import TOKENIZER_JSON
from .show import show, visible

PROGRAM = "python -m npgpt.tokenizer"
VOCAB_SIZE = 1000  # enough for common words, and quick to learn
STORY_WORDS = 60_000  # of the storybook, for the tokenizer that is made where there is no run
SAMPLE = 1 << 20  # characters of a training text that are encoded, to tell how well it went
EXAMPLES = f"""examples:
  {PROGRAM} --show "she sells sea shells"
  {PROGRAM} --show - < story.txt           a text from a file or another program
  {PROGRAM} --encode "she sells"           ids, with spaces between them
  {PROGRAM} --decode 300 512 299           and back
  {PROGRAM} --train book.txt --vocab-size 5000 --out book-tokens
  {PROGRAM} --tokenizer book-tokens --show "she sells"
  {PROGRAM} --tokenizer gpt2/tokenizer.json --show "she sells"
  {PROGRAM} --export for-others

Without --tokenizer it is that of the run that saved last; and where there is no run yet, a small
one is trained on the spot, on the storybook.

--train and --export write vocab.json and merges.txt, which GPT-2's own program reads, and
tokenizer.json with tokenizer_config.json, which Hugging Face's tokenizers and transformers read.

The text of a special token, such as {END_OF_TEXT}, is taken for that token. Colours need a
terminal; NO_COLOR=1 in the environment puts bars in their place."""


@dataclass(frozen=True)
class Settings:
    """What can be asked for; the command line is made from it."""

    show: str | None = option(None, "draw a text as the tokenizer sees it; - reads it from stdin")
    encode: str | None = option(None, "the ids of a text; - reads it from stdin")
    decode: tuple[int, ...] | None = option(None, "the text of ids", metavar="ID")
    export: Path | None = option(None, "write the tokenizer for other programs", metavar="FOLDER")
    tokenizer: Path | None = option(
        None, "a folder with a tokenizer, the folder of a run, or a tokenizer.json"
    )
    train: Path | None = option(None, "learn a tokenizer from a UTF-8 text", metavar="FILE")
    vocab_size: int | None = option(
        None, f"with --train: how many tokens, of which 256 are the bytes (default: {VOCAB_SIZE})"
    )
    out: Path | None = option(None, "with --train: where to write the tokenizer", metavar="FOLDER")

    def __post_init__(self):
        commands = ("show", "encode", "decode", "export", "train")
        chosen = [f"--{name}" for name in commands if getattr(self, name) is not None]
        if not chosen:
            raise UserError(
                'say what to do, for instance --show "she sells sea shells"; --help lists it all'
            )
        if len(chosen) > 1:
            raise UserError(f"{' and '.join(chosen)} are too much for one command: choose one")
        if self.train is None and (self.out is not None or self.vocab_size is not None):
            raise UserError("--vocab-size and --out belong to --train: give a text to learn from")
        if self.train is not None and (self.out is None or self.tokenizer is not None):
            raise UserError("--train needs --out, where to write, and no other --tokenizer")


def main(settings):
    """Do what the settings ask for.

    Args:    settings, a Settings.
    Raises:  UserError for what the user can mend.
    """
    for folder in (settings.out, settings.export):
        if folder is not None:
            check_folder(folder)
    if settings.train is not None:
        tok = train(settings)
        export(tok, settings.out)
        print(f"look at it: {PROGRAM} --tokenizer {settings.out} --show TEXT")
        return
    tok, origin = find_tokenizer(settings.tokenizer)
    if settings.show is None:
        print(origin, file=sys.stderr)
    if settings.show is not None:
        width = shutil.get_terminal_size().columns
        lines = list(show(tok, given_text(settings.show), width, has_colours()))
        print(f"{origin}: {tok.vocab_size:,} tokens\n", *lines, sep="\n")
    elif settings.encode is not None:
        print(*tok.encode(given_text(settings.encode), allowed_special="all"))
    elif settings.decode is not None:
        try:
            print(tok.decode(settings.decode))
        except ValueError as error:
            raise UserError(f"--decode: {error}") from None
    else:
        if tok.kind != "bpe":
            raise UserError(f"{origin} has characters and no merges: no other program reads that")
        export(tok, settings.export)


def train(settings):
    """Learn a tokenizer, and tell how well it went.

    Returns: BPETokenizer.
    Raises:  UserError if the text cannot be read, or has too few pairs for the vocabulary.
    """
    from tqdm import tqdm

    text = read_text(settings.train)
    if not text:
        raise UserError(f"{settings.train} is empty: give a text to learn from")
    with tqdm(desc="merges", leave=False, disable=None) as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        size = VOCAB_SIZE if settings.vocab_size is None else settings.vocab_size
        tok = BPETokenizer.train([text], size, progress=progress)
    sample = text[:SAMPLE]
    ids = tok.encode(sample, allowed_special="all")
    merged = [left + right for left, right in tok.merges]
    longest = sorted(merged, key=len, reverse=True)
    print(f"first merges    {'  '.join(map(visible, merged[:12]))}")
    print(f"longest tokens  {'  '.join(map(visible, longest[:6]))}")
    print(f"bytes a token   {len(sample.encode('utf-8')) / len(ids):.2f}")
    return tok


def export(tok, folder):
    """Write a tokenizer, and say what was written."""
    tok.save(folder)
    print(
        f"wrote {folder}: vocab.json, merges.txt, {TOKENIZER_JSON}, {SETTINGS}; "
        f"{tok.vocab_size:,} tokens, {len(tok.merges):,} of them merged"
    )


def find_tokenizer(path):
    """The tokenizer at a path, or that of the newest run, or one that is made here and now.

    Args:    path, or None.
    Returns: tok; origin, a few words on where it comes from.
    Raises:  UserError if there is none, or it is damaged.
    """
    from ..runs import find_run, load_run

    if path is not None:
        within = path / "tokenizer"
        return load_tokenizer(within if within.is_dir() else path), f"tokenizer of {path}"
    try:
        run_dir = find_run()
    except UserError:
        return small_tokenizer(), "a small tokenizer, made just now since there is no run yet"
    folder = load_run(run_dir, groups=()).path / "tokenizer"
    return load_tokenizer(folder), f"tokenizer of {run_dir}, the newest run"


def small_tokenizer():
    """A tokenizer trained on the storybook, which comes with the repository."""
    try:
        from data import storybook
    except ImportError:
        raise UserError(
            "there is no trained run here: choose a tokenizer with --tokenizer"
        ) from None
    stories = storybook.generate(STORY_WORDS, seed=0)
    return BPETokenizer.train([story.text for story in stories], VOCAB_SIZE)


def check_folder(folder):
    """Raise UserError if a tokenizer cannot be written there without the loss of another."""
    taken = {
        SETTINGS,
        TOKENIZER_JSON,
        CHARACTERS,
        *(name for pair in VOCABULARIES for name in pair),
    }
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a tokenizer needs a folder: choose another")
    if any((folder / name).exists() for name in taken):
        raise UserError(f"{folder} holds a tokenizer already: choose another folder")


def given_text(text):
    """The text itself, or where it is -, what stdin holds."""
    return text if text != "-" else decoded(sys.stdin.buffer.read(), "the text on stdin")


def read_text(path):
    """A text file as training reads it; UserError if there is none, or it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return decoded(data, str(path)).replace("\r\n", "\n")


def decoded(data, name):
    """Bytes as text; UserError with the place of the first that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; "
            "convert it first, for instance with iconv -t utf-8"
        ) from None


def has_colours():
    """Whether stdout is a terminal with colours, and nobody objects (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return False
    if os.name == "nt":
        os.system("")  # an empty command makes a Windows console understand colours
    return True


if __name__ == "__main__":
    sys.exit(
        main_with_errors(
            lambda: main(parse(Settings, sys.argv[1:], __doc__.strip(), EXAMPLES, PROGRAM)[0])
        )
    )
