"""Write text with a trained model: from a prompt, from nothing, or in turns with you.

The model continues what it is given, in the manner of the text that it was trained on. It was
not taught to answer questions: begin a story, and it goes on with it.
"""

import codecs
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npgpt.cli import harmless, main_with_errors, option, parse
from npgpt.errors import UserError

# NumPy and all that needs it is imported where it is used, so that --help answers at once.
# OpenBLAS reads this when it is loaded: its threads then sleep between two matrix products and
# don't spin, which on a machine with other work to do is the difference of 10 and 70 tokens/s.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

BATCH = 16  # samples written side by side: one pass over the weights serves them all
EXAMPLES = """examples:
  python generate.py                                 the newest run, in turns with you
  python generate.py --prompt "Once upon a time"     go on from here
  python generate.py --num-samples 5 --out five.txt  five texts from scratch, into a file
  python generate.py --temperature 0 --prompt "The"  no chance: always the likeliest token
  echo "The king" | python generate.py               a prompt from another program
  python generate.py --run shakespeare --seed 7      a run by its name; another seed, another text
  python generate.py --dtype int8 --num-samples 100  a large model, several times as fast
  python generate.py --model stories260K.bin --tokenizer-file tok512.bin
  python generate.py --model SmolLM2-135M.gguf       a model from elsewhere: docs/interchange.md

Without --prompt, in a terminal, each line you type continues the story, an empty line begins a
new one, Ctrl-C stops the model's turn, and "exit" ends. <|endoftext|> in a prompt is the mark
between two texts: the model takes what follows it as the beginning of a new one.
The text goes to stdout, everything else to stderr."""


@dataclass(frozen=True)
class Settings:
    """What generate.py can be told; the command line is made from it."""

    run: str | None = option(
        None, "a run by its name under runs/, or the folder of a run or of a checkpoint (default: "
        "the run that saved last; before there is one, the model that comes with npgpt)",
        metavar="NAME|PATH",
    )  # fmt: skip
    model: str | None = option(
        None, "a model from elsewhere in place of a run: a folder of Hugging Face's, a .gguf file "
        "of llama.cpp's, a .bin file of llama2.c's", metavar="PATH",
    )  # fmt: skip
    tokenizer_file: str | None = option(
        None, "the tokenizer of a --model of llama2.c (default: the tokenizer.bin beside it)",
        metavar="FILE",
    )  # fmt: skip
    prompt: str | None = option(None, "the text to continue; an empty one is a new text")
    num_samples: int = option(1, "how many texts to write")
    max_new_tokens: int = option(256, "the most tokens to write; a text may end before")
    temperature: float = option(
        0.8, "below 1 plays safe, above 1 takes chances, 0 is always the likeliest token"
    )
    top_k: int = option(0, "draw from the k likeliest tokens only; 0 means from all")
    top_p: float = option(0.95, "draw from the likeliest tokens that together have probability p")
    seed: int = option(0, "the same seed, the same texts")
    out: str | None = option(None, "write the texts into a file, once complete", metavar="FILE")
    backend: str = option("numpy", "numpy on a CPU, cupy on a GPU", choices=("numpy", "cupy"))
    dtype: str = option(
        "float32", "what the weights are rounded to: bf16 and int8 are less exact, and faster",
        choices=("float32", "bf16", "int8"),
    )  # fmt: skip
    threads: int | None = option(None, "how many compute (default: as many as turn out fastest)")

    def __post_init__(self):
        for good, name, rule in (
            (self.num_samples >= 1, "num_samples", "at least 1"),
            (self.max_new_tokens >= 1, "max_new_tokens", "at least 1"),
            (self.temperature >= 0, "temperature", "0, which is greedy, or more"),
            (self.top_k >= 0, "top_k", "0, which means all tokens, or more"),
            (0 < self.top_p <= 1, "top_p", "above 0, and at most 1, which means all tokens"),
            (self.seed >= 0, "seed", "0 or more"),
            (self.threads is None or self.threads >= 1, "threads", "at least 1"),
        ):
            if not good:
                spelling = f"--{name.replace('_', '-')}"
                raise UserError(f"{spelling} is {getattr(self, name)}, but it must be {rule}")
        for name in ("run", "model"):  # --run "$NAME", and no such variable
            if getattr(self, name) == "":
                raise UserError(f"--{name} is empty: give it a value, or leave it out")
        if self.tokenizer_file is not None and self.model is None:
            raise UserError("--tokenizer-file belongs to a --model: name that too")
        if self.model is not None and self.run is not None:
            raise UserError("--model and --run each choose a model: leave one out")
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            raise UserError(f"--out {self.out!r} is a folder: give the name of a file in it")


@dataclass(frozen=True)
class Model:
    """What it takes to write.

    Attributes: config; params, on the chosen device; decoder, who reads them; tok; about, a line
             of text.
    """

    config: Any
    params: Any
    decoder: Any
    tok: Any
    about: str


def main(settings):
    """Write what the settings ask for.

    Args:    settings, a Settings.
    Raises:  UserError for what the user can mend.
    """
    talk = (
        settings.prompt is None
        and settings.num_samples == 1
        and settings.out is None
        and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    )
    if settings.threads is not None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(settings.threads))
    model = open_model(settings)
    from npgpt.backend import seconds_compiling

    say(model.about)
    before = seconds_compiling()
    if talk:
        tokens, seconds = converse(model, settings)
    else:
        prompt = read_prompt() if settings.prompt is None else settings.prompt
        tokens, seconds = write_samples(model, prompt, settings)
    waited = seconds_compiling() - before
    seconds -= waited
    if tokens:
        after = f", after {waited:.0f} s of compiling" if waited > 0.5 else ""
        rate = tokens / max(seconds, 1e-9)
        noun = "token" if tokens == 1 else "tokens"
        say(f"{tokens:,} {noun} in {seconds:.1f} s, {rate:,.0f} tokens/s{after}")


def write_samples(model, prompt, settings):
    """Write num_samples texts that begin with prompt, to stdout or into a file.

    The first of each batch appears as it is written, the others when they are complete.

    Returns: the number of new tokens, and the seconds they took.
    """
    from npgpt.checkpoint import write_atomic

    start = time.perf_counter()
    ids = prompt_ids(model, prompt)
    n, parts, tokens, seconds = settings.num_samples, [], 0, time.perf_counter() - start

    def emit(text):
        if settings.out is None:
            print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)
        else:
            parts.append(text)

    for first in range(0, n, BATCH):
        numbers = range(first, min(first + BATCH, n))
        headers = [f"----- sample {i + 1} of {n} -----\n" if n > 1 else "" for i in numbers]
        begun = headers[0] + prompt  # shown with its first piece: until then kernels may report
        rest = ["" for _ in numbers]
        start = time.perf_counter()
        for pieces in stream(model, ids, settings, numbers, from_scratch=not prompt):
            emit(begun)
            begun = ""
            tokens += sum(piece is not None for piece in pieces)
            emit(pieces[0] or "")
            rest = [text + (piece or "") for text, piece in zip(rest, pieces)]
        seconds += time.perf_counter() - start
        emit(f"{begun}\n")
        for header, text in zip(headers[1:], rest[1:]):
            emit(f"{header}{prompt}{text}\n")
    if settings.out is not None:
        write_atomic(settings.out, "".join(parts).encode("utf-8", errors="replace"))
        say(f"wrote {settings.out}: {n:,} {'text' if n == 1 else 'texts'}")
    return tokens, seconds


def converse(model, settings):
    """Write a story in turns: the person a line, the model what follows it.

    Returns: the number of new tokens, and the seconds they took.
    """
    try:
        import readline  # noqa: F401  (arrow keys and history at the prompt, where there are any)
    except ImportError:
        pass
    bye = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
    say(
        "Type the beginning of a text, and the model goes on with it; type more, and so does it.\n"
        f'An empty line: a new story from scratch. Ctrl-C: stop its turn. "exit" or {bye}: end.'
    )
    story, turn, tokens, seconds = "", 0, 0, 0.0
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            break
        except KeyboardInterrupt:
            say(f'\n("exit" or {bye} ends)')
            continue
        if line.strip() == "exit":
            break
        before, start = story, time.perf_counter()
        try:
            # A word ends where a line does. The whole is encoded anew, as training text was.
            apart = story and line and not story[-1].isspace() and line[0] not in " .,;:!?"
            story = f"{story}{' ' if apart else ''}{line}" if line else ""
            ids, ended = prompt_ids(model, story, typed=line), False
            for (piece,) in stream(model, ids, settings, [turn], from_scratch=not story):
                ended = piece is None
                print(harmless(piece or ""), end="", flush=True)
                story += piece or ""
                tokens += not ended
            print("\n(the end: what you type next begins a new story)" if ended else "")
            story = "" if ended else story
        except KeyboardInterrupt:
            print()
        except UserError as error:  # a character that the model can't read, say
            say(f"error: {error}")
            story = before
        seconds += time.perf_counter() - start
        turn += 1
    return tokens, seconds


def stream(model, ids, settings, numbers, from_scratch):
    """Write samples side by side, as text that can be shown at once.

    A token may end within a character of several bytes: its beginning waits for the rest, and
    if the text stops there, it is dropped.

    Args:    model; ids, the prompt's; settings; numbers, one for each sample, of which its
             chance is made; from_scratch, whether the text begins here.
    Returns: an iterator of lists, for each sample a str, or None once its text has ended.
    """
    import numpy as np

    from npgpt.sampling import generate, sample_rngs

    end = model.tok.end_of_text
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in numbers]
    steps = generate(
        model.params, model.config, np.tile(np.array(ids), (len(numbers), 1)),
        settings.max_new_tokens, sample_rngs(settings.seed, numbers), settings.temperature,
        settings.top_k, settings.top_p, end, model.decoder,
    )  # fmt: skip
    for step in steps:
        pieces = [
            None if i == end else decoder.decode(model.tok.token_bytes(i))
            for i, decoder in zip(step.tolist(), decoders)
        ]
        if from_scratch:  # the first word's token begins with a space, as any word's does
            pieces = [piece and piece.removeprefix(" ") for piece in pieces]
            from_scratch = False
        yield pieces


def prompt_ids(model, prompt, typed=None):
    """Encode a prompt as the beginning of a text, with the mark before it that the model knows.

    That is end-of-text mostly. A model from elsewhere may know none: it reads the prompt as it is,
    and writes from scratch after an end-of-text. A tokenizer without that has no sign for a
    beginning. There an empty prompt is a newline, after which anything may follow, or else the
    first token of all.

    Args:    model; prompt; typed, the part of it whose length may surprise (default: all).
    Returns: a list of int, at least one; only its last block_size will be read.
    """
    tok, size = model.tok, model.config.block_size
    ids = tok.encode(prompt, allowed_special="all") if prompt else []
    new = len(ids) if typed is None else len(tok.encode(typed, allowed_special="all"))
    if new > size:
        say(f"note: the prompt has {new:,} tokens, of which the model reads the last {size:,}")
    begin = tok.begin_of_text if ids else tok.end_of_text
    if begin is not None:
        return ids if ids[:1] == [begin] else [begin, *ids]
    if ids:
        return ids
    try:
        return tok.encode("\n")
    except UserError:
        return [0]


def read_prompt():
    """The text that another program pipes in, or "" if there is none; its last newline is not
    part of it, as in the shell's $(...)."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        raw = sys.stdin.buffer.read()
    except OSError:  # closed, or forbidden as in a test
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the piped text is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}; "
            "convert it first, for instance with iconv -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def open_model(settings):
    """Load the model that the settings name, onto the device that they name.

    Raises:  UserError if there is none, or it is damaged.
    """
    from npgpt.backend import select_backend
    from npgpt.model import GPTConfig, Parameters, count_parameters
    from npgpt.sampling import make_decoder

    xp = select_backend(settings.backend)
    path = settings.model or own_model(settings.run)
    if path is not None:
        from npgpt.interchange import read_model

        config, params, tok = read_model(path, settings.tokenizer_file)
        about = settings.model or (
            "no run of yours yet, so here is the model that comes with npgpt: it has read the "
            "storybook (python train.py trains one of your own)\nstorybook"
        )
    else:
        from npgpt.tokenizer import load_tokenizer
        from npgpt.training import restored_parameters

        checkpoint = find_checkpoint(settings.run)
        try:
            config = GPTConfig(**checkpoint.state["config"])
            params = restored_parameters(checkpoint)
        except (KeyError, TypeError):
            raise UserError(
                f"{checkpoint.path} was written by another version of npgpt: "
                "use that, or train again"
            ) from None
        tok = load_tokenizer(checkpoint.path / "tokenizer")
        about = f"{checkpoint.path}, step {checkpoint.step:,}"
        loss = checkpoint.state.get("valid_loss")
        if isinstance(loss, int | float):
            about += f", validation loss {loss:.4f}"
    if tok.vocab_size != config.num_tokens:
        raise UserError(
            f"the tokenizer has {tok.vocab_size:,} tokens, but the model {config.num_tokens:,}: "
            "they do not belong together"
        )
    about += f", {count_parameters(config):,} parameters"
    params = Parameters(config, xp.asarray(params.flat))
    decoder = make_decoder(params, config, settings.dtype, settings.threads)
    return Model(config, params, decoder, tok, about)


def own_model(run):
    """The folder of the model that comes with npgpt, where no other was asked for, or trained.

    Returns: a Path, or None if there is a run to take.
    """
    from npgpt.checkpoint import list_checkpoints
    from npgpt.pretrained import STORYBOOK
    from npgpt.runs import RUNS

    trained = any(list_checkpoints(folder) for folder in RUNS.glob("*"))
    return STORYBOOK if run is None and not trained and STORYBOOK.is_dir() else None


def find_checkpoint(run):
    """Load the checkpoint that --run means; None means the run that saved last.

    Raises:  UserError if there is none, or none that is whole.
    """
    from npgpt.checkpoint import list_checkpoints, load_checkpoint
    from npgpt.runs import find_run, instead_of, load_run, run_path

    if run is None:
        return load_run(find_run(), groups=("model",))
    path = run_path(run)
    if path.parent.name == "checkpoints" and path.is_dir():
        return load_checkpoint(path, groups=("model",))
    if not list_checkpoints(path):
        raise UserError(f"there is no trained model in {path}: {instead_of(run)}")
    return load_run(path, groups=("model",))


def say(text):
    """Tell the person something that is not part of the text."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(
        main_with_errors(lambda: main(parse(Settings, sys.argv[1:], __doc__.strip(), EXAMPLES)[0]))
    )
