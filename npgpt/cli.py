"""The command line, made from the settings: one dataclass says it all, once.

    @dataclass(frozen=True)
    class Settings:
        steps: int = option(5000, "how many batches to learn from")
        tie: bool = option(True, "one table for wte and lm_head")
        out: Path | None = option(None, "write here, and not to the terminal")

    settings, given = parse(Settings, sys.argv[1:], "Train a GPT.")

reads `--steps 300 --no-tie --out x.txt`. The annotation says what a value must be, the
default what happens without one, and the text explains it, in the source and in --help alike.
"""

import argparse
import dataclasses
import difflib
import errno
import math
import os
import re
import sys
import types
import typing
from pathlib import Path

from npgpt.errors import UserError

KINDS = {int: "a whole number", float: "a finite number", Path: "a path"}
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def option(default, text, choices=None, flag=None, metavar=None, by_place=False):
    """Give a field of a settings dataclass its default, and its line in --help.

    Args:    default; text, what it does; choices, the only values it may have; flag, a second
             spelling such as "-p"; metavar, what --help calls its value; by_place, for a value
             that is given without a name, as in `cp FROM TO`.
    Returns: a dataclasses.field; the dataclass must be frozen, or the default hashable.
    """
    metadata = {"help": text, "choices": choices, "flag": flag, "metavar": metavar}
    metadata["by_place"] = by_place
    return dataclasses.field(default=default, metadata=metadata)


def parse(settings_class, argv, description=None, epilog=None, program=None):
    """Read a command line into settings.

    Args:    settings_class, a dataclass of options: bool, int, float, str, Path, a tuple of
             these, each perhaps `| None`; argv, without the program's name; description and
             epilog, printed by --help as they are; program, how it is called, if not by its file.
    Returns: settings; given, the set of names of the fields that the command line named.
    Raises:  UserError, one sentence, for what it can't read; SystemExit after --help.
    """
    parser = _Parser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation breaks on the day that a second option fits it
        argument_default=argparse.SUPPRESS,  # so the result holds only what was given
    )
    hints = typing.get_type_hints(settings_class)
    known = ["--help"]
    for field in dataclasses.fields(settings_class):
        known += _add(parser, field, hints[field.name])
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.5)
        if not name.startswith("-"):
            parser.error(f"{name!r} belongs to no option: quote a text that has spaces in it")
        meant = f"did you mean {close[0]}?" if close else "--help lists all of them"
        parser.error(f"there is no option {name}: {meant}")
    return settings_class(**vars(values)), set(vars(values))


def main_with_errors(main, *args):
    """Run main(*args) as a program: its mistakes become a sentence and an exit status.

    Args:    main, a function that returns None or an exit status; args, for it.
    Returns: 0 or what main returned; 2 after a UserError or on a full disk, 130 after Ctrl-C,
             141 if whoever read the output has gone (as `head` does), with no word about it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, as in `python train.py >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a terminal that can't show é gets a ?, and no crash
            stream.reconfigure(errors="replace")
    try:
        try:
            status = main(*args) or 0
        except SystemExit as stop:  # --help
            status = stop.code or 0
        except UserError as error:
            sys.stdout.flush()  # what came before the error should be seen before it
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except MemoryError as error:
            print(f"error: out of memory, so try a smaller size ({error})", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print(file=sys.stderr)
            status = 130
        sys.stdout.flush()
    except OSError as error:
        gone = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == 22)
        if not gone and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Python flushes once more when it exits, and would fail again: give it a place to.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not gone:
            print(f"error: {error.strerror}: make room, or write elsewhere", file=sys.stderr)
        status = 141 if gone else 2
    return status


def harmless(text):
    """A text without what a terminal obeys: control characters but tab and new line become �.

    A model of bytes may write any byte, and there are some that clear the screen.

    Args:    text, a str that is to be shown.
    Returns: a str of the same length.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        option = message.removeprefix("argument ").partition(":")[0]
        if "ignored explicit argument" in message:
            message = f"{option} takes no value: write it without one"
        elif "expected one argument" in message:
            option = option.rpartition("/")[2]
            message = f"{option} needs a value; one that begins with a dash, as {option}=-VALUE"
        raise UserError(message.removeprefix("argument "))


def _add(parser, field, hint):
    """Add one field's option to the parser; returns its spellings."""
    name = f"--{field.name.replace('_', '-')}"
    meta = field.metadata
    spellings = [meta["flag"], name] if meta.get("flag") else [name]
    kind, optional, count = _read_hint(hint)
    text = meta.get("help", "").replace("%", "%%")  # % means something to argparse
    if field.default not in (None, "", dataclasses.MISSING):
        text += f" (default: {_show(field.default)})"
    if meta.get("by_place"):
        metavar = meta.get("metavar") or METAVARS[kind]
        parser.add_argument(field.name, nargs="?", type=kind, help=text, metavar=metavar)
        return []
    if kind is bool:
        parser.add_argument(*spellings, action=argparse.BooleanOptionalAction, help=text)
        return [*spellings, f"--no-{name[2:]}"]
    choices, metavar = meta.get("choices"), meta.get("metavar")
    if choices:
        metavar = metavar or "{" + ",".join(map(str, choices)) + "}"
    parser.add_argument(
        *spellings,
        dest=field.name,
        type=_reader(kind, optional, choices),
        help=text,
        metavar=metavar or METAVARS[kind],
        **({"nargs": count, "action": _Tuple} if count else {}),
    )
    return spellings


def _read_hint(hint):
    """Take an annotation apart: its plain type, whether None may stand for it, its count."""
    optional, count = False, None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        optional = True
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        count, hint = ("+" if parts[-1] is ... else len(parts)), parts[0]
    return hint, optional, count


def _reader(kind, optional, choices):
    """The function that turns a word of the command line into a value, or into a sentence."""

    def read(word):
        if optional and kind in (int, float) and word.lower() == "none":
            return None
        try:
            value = kind(word)
            # An empty path would be the folder "." to Python, and a slip to whoever typed it.
            if (kind is float and not math.isfinite(value)) or (kind is Path and not word):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not {KINDS[kind]}") from None
        if choices and value not in choices:
            listed = ", ".join(map(str, choices))
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {listed}")
        return value

    return read


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def _show(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
