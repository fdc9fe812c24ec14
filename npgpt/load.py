"""Make a run of a model that was trained elsewhere.

    python -m npgpt.load SmolLM2-135M-Instruct.gguf
    python generate.py --prompt "Once upon a time"

PATH is a folder of Hugging Face's (a Llama or a GPT-2), a .gguf file of llama.cpp's, or a .bin file
of llama2.c's. generate.py then writes with the run, train.py --init-from trains it further,
npgpt.export writes it in another format.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from npgpt.cli import main_with_errors, option, parse
from npgpt.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What npgpt.load can be told."""

    path: str | None = option(None, "the model: a folder or a file", metavar="PATH", by_place=True)
    run: str | None = option(None, "name of the run, or its folder (default: runs/NAME-001)")
    tokenizer_file: str | None = option(
        None, "the tokenizer of a model of llama2.c (default: the tokenizer.bin beside it)",
        metavar="FILE",
    )  # fmt: skip

    def __post_init__(self):
        if not self.path:
            raise UserError("name the model: python -m npgpt.load PATH; --help says what it may be")


def main(settings):
    """Read the model, and write the run.

    Args:    settings, a Settings.
    Raises:  UserError for what the user can mend.
    """
    from npgpt.interchange import read_model
    from npgpt.model import count_parameters
    from npgpt.runs import check_new_run, make_run_dir, typed

    check_new_run(settings.run)
    config, params, tok = read_model(settings.path, settings.tokenizer_file)
    path = Path(settings.path).resolve()
    run_dir = make_run_dir(settings.run, path.name if path.is_dir() else path.stem)
    save_run(run_dir, config, params, tok, settings.path)
    print(
        f"{run_dir}: {count_parameters(config):,} parameters, {config.n_layer} layers, "
        f"{config.n_embd} channels, vocabulary {config.vocab_size:,}, context {config.block_size:,}"
        f"\nnow hear it: python generate.py --run {typed(run_dir)}"
    )


def save_run(run_dir, config, params, tok, origin):
    """Write a run with one checkpoint, of step 0: a model, and no training to go on with.

    Args:    run_dir, its folder; config; params on the host; tok; origin, where it came from.
    Raises:  UserError if it can't be written.
    """
    from npgpt.checkpoint import save_checkpoint
    from npgpt.tokenizer.files import saved_tokenizer

    tok.save(run_dir / "tokenizer")
    files = saved_tokenizer(run_dir / "tokenizer")
    state = {"config": asdict(config), "origin": str(origin)}
    save_checkpoint(run_dir, 0, {"model": dict(params)}, state, files)


if __name__ == "__main__":
    program, description = "python -m npgpt.load", __doc__.strip()
    sys.exit(
        main_with_errors(lambda: main(parse(Settings, sys.argv[1:], description, None, program)[0]))
    )
