"""What `python -m data.NAME` does for a recipe that fetches its text: fetch, check, and tell."""

from dataclasses import dataclass
from pathlib import Path

from npgpt.cli import main_with_errors, option, parse
from npgpt.folders import data_folder


@dataclass(frozen=True)
class Options:
    """The command line of a recipe."""

    folder: Path | None = option(None, "put the files here")


def run(recipe, argv):
    """Run a recipe as a program.

    Args:    recipe, its module; argv, without the program's name.
    Returns: the exit status.
    """
    return main_with_errors(_run, recipe, argv)


def _run(recipe, argv):
    usual = data_folder(recipe.NAME)
    summary, _, rest = recipe.__doc__.partition("\n")
    epilog = f"{rest}\nWithout --folder: {usual}\n(the environment variable NPGPT_DATA moves it)"
    program = f"python -m data.{recipe.NAME.replace('-', '_')}"
    options, _ = parse(Options, argv, summary, epilog, program)
    folder = options.folder or usual
    train, _ = recipe.sources(folder, lambda line: print(line, flush=True))
    print(summary)
    for line in recipe.told(folder):
        print(f"    {line}")
    print(f"    origin   {recipe.ORIGIN}\n    licence  {recipe.LICENCE}\nIt begins:")
    beginning = next(train.documents())[:400].decode(errors="ignore")
    print("\n".join(f"    {line}" for line in beginning.splitlines()[:6]))
    print(f"now learn from it: python train.py --data {recipe.NAME}")
