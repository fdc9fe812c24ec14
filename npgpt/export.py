"""Write a trained model as other programs want it.

    python -m npgpt.export RUN --format hf         for Hugging Face's transformers: a folder
    python -m npgpt.export RUN --format gguf       for llama.cpp: a file
    python -m npgpt.export RUN --format npz        for NumPy: every array by its name
    python -m npgpt.export RUN --format llama2c    for llama2.c: a file

RUN is a run by its name, or its folder (default: the run that saved last). A model of RMSNorm, RoPE
and SwiGLU is written as a Llama, one of LayerNorm, learned positions and GELU as a GPT-2.
Beside the model lies SHA256SUMS, with which every later damage is found.
"""

import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.cli import main_with_errors, option, parse
from npgpt.errors import UserError

FORMATS = ("hf", "gguf", "npz", "llama2c")


@dataclass(frozen=True)
class Settings:
    """What npgpt.export can be told."""

    run: str | None = option(
        None, "a run by its name under runs/, or its folder (default: the run that saved last)",
        metavar="RUN", by_place=True,
    )  # fmt: skip
    format: str = option("hf", "for whom", choices=FORMATS)
    dtype: str = option(
        "float32", "what the weights of --format hf are rounded to: bf16 takes half the room",
        choices=("float32", "bf16"),
    )  # fmt: skip
    out: Path | None = option(
        None, "the folder to write, which must be empty or not there (default: export-FORMAT in "
        "the run's own folder)", metavar="DIR",
    )  # fmt: skip


class Model(NamedTuple):
    """What is written: a run's newest checkpoint, and what it holds."""

    run_dir: Path
    checkpoint: Any
    config: Any
    params: Any
    tok: Any


def main(settings):
    """Read the newest checkpoint, and write the folder.

    Args:    settings, a Settings.
    Raises:  UserError for what the user can mend.
    """
    from npgpt.interchange.sums import write_sums
    from npgpt.runs import typed

    if settings.dtype != "float32" and settings.format != "hf":
        raise UserError(f"--dtype {settings.dtype} is for --format hf: leave one of them out")
    model = read_run(settings.run)
    out = settings.out or model.run_dir / f"export-{settings.format}"
    write = {"hf": write_hf, "gguf": write_gguf, "npz": write_npz, "llama2c": write_llama2c}
    with new_folder(out) as folder:
        advice = write[settings.format](folder, out, model, settings.dtype)
        write_sums(folder)
    print(f"wrote {typed(out)}, step {model.checkpoint.step:,}\n{advice}")


def read_run(name):
    """The newest checkpoint of a run, as a Model; UserError if there is none."""
    from npgpt.model import GPTConfig
    from npgpt.runs import find_run, load_run
    from npgpt.tokenizer import load_tokenizer
    from npgpt.training import restored_parameters

    run_dir = find_run(name)
    checkpoint = load_run(run_dir, groups=("model",))
    config = GPTConfig(**checkpoint.state["config"])
    tok = load_tokenizer(checkpoint.path / "tokenizer")
    config, params = without_padding(config, restored_parameters(checkpoint))
    return Model(run_dir, checkpoint, config, params, tok)


def without_padding(config, params):
    """The same model without what stands for no token: nobody else knows not to draw it.

    Args:    config; params on the host.
    Returns: config, params.
    """
    import numpy as np

    from npgpt.model import Parameters, count_parameters

    if not config.padding:
        return config, params
    smaller = replace(config, vocab_size=config.num_tokens, padding=0)
    cut = Parameters(smaller, np.empty(count_parameters(smaller), params.flat.dtype))
    for name, w in cut.items():
        w[...] = params[name][tuple(map(slice, w.shape))]
    return smaller, cut


def write_hf(folder, out, model, dtype):
    """Write for transformers.

    Args:    folder to write into; out, where it will lie; model, a Model; dtype of the weights.
    Returns: a line of advice.
    """
    from npgpt.interchange.card import write_card
    from npgpt.interchange.hugging_face import save_folder

    save_folder(folder, model.config, model.params, model.tok, dtype)
    write_card(folder, model.run_dir, model.checkpoint, model.config, dtype)
    return f'load it: AutoModelForCausalLM.from_pretrained("{out}")'


def write_gguf(folder, out, model, dtype):
    """Write for llama.cpp; arguments and result as for write_hf."""
    from npgpt.interchange.gguf_model import save_gguf
    from npgpt.runs import typed

    name = model.run_dir.name
    save_gguf(folder / f"{name}.gguf", model.config, model.params, model.tok, name)
    return f"run it: llama-cli -m {typed(out / f'{name}.gguf')}"


def write_npz(folder, out, model, dtype):
    """Write all arrays, the configuration and the tokenizer; as for write_hf."""
    import numpy as np

    from npgpt.checkpoint import replacing
    from npgpt.tokenizer.files import write_json

    with replacing(folder / "model.npz") as file:
        np.savez(file, **{name: np.ascontiguousarray(w) for name, w in model.params.items()})
    write_json(folder, "gpt_config.json", asdict(model.config), indent=1)
    model.tok.save(folder / "tokenizer")
    path = out / "model.npz"
    return f'read it: np.load("{path}")["blocks.0.wqkv"]'


def write_llama2c(folder, out, model, dtype):
    """Write for llama2.c, with the tokenizer if it is of that kind; as for write_hf."""
    from npgpt.interchange.llama2c import TOKENIZER, save_llama2c
    from npgpt.runs import typed

    save_llama2c(folder / "model.bin", model.config, model.params)
    run = f"run it: ./run {typed(out / 'model.bin')}"
    if model.tok.kind == "llama2c":
        model.tok.save(folder)
        return f"{run} -z {typed(out / TOKENIZER)}"
    model.tok.save(folder / "tokenizer")
    return (
        f"{run}; but run.c knows SentencePiece alone, and can't cut a text into this model's "
        f"tokens: they are in {typed(out / 'tokenizer')} for a program that can"
    )


@contextmanager
def new_folder(path):
    """Write a folder beside its place, then move it there: wholly, or not at all.

    Args:    path, of a folder that is empty or not there.
    Returns: a context manager; its value is the folder to write into.
    Raises:  UserError if there is something already, or it can't be written.
    """
    given, path = path, Path(path).absolute()
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{given} is there already: choose another --out, or delete it first")
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        if path.is_dir():
            path.rmdir()
        os.rename(beside, path)
    except OSError as error:
        raise UserError(f"can't write {given} ({error.strerror}): choose another --out") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    program, description = "python -m npgpt.export", __doc__.strip()
    sys.exit(
        main_with_errors(lambda: main(parse(Settings, sys.argv[1:], description, None, program)[0]))
    )
