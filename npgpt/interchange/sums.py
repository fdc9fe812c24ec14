"""SHA256SUMS, a checksum of each file of an exported model, as sha256sum writes and reads it.

No format of models notices a flipped bit: a weight is then 10³⁰ or has another sign, and what
loads it goes on with that. `sha256sum --check SHA256SUMS` tells, and read_model looks by itself.
"""

import hashlib
import re
from pathlib import Path

from npgpt.checkpoint import write_atomic
from npgpt.errors import UserError

SUMS = "SHA256SUMS"


def write_sums(folder):
    """Write the checksums of all files of a folder and those below.

    Args:    folder.
    Raises:  UserError if it can't be written.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{file_sum(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    write_atomic(folder / SUMS, "".join(lines).encode())


def check_sums(folder):
    """Compare a folder with its checksums, if it has any.

    Args:    folder.
    Raises:  UserError naming the first file that is missing or has changed.
    """
    path = Path(folder) / SUMS
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} can't be read: delete it to do without checksums") from None
    for line in lines:
        found = re.fullmatch(r"([0-9a-f]{64})  (\w[\w.-]*(?:/\w[\w.-]*)*)", line)
        if not found:
            raise UserError(f"{path} is damaged: delete it to do without checksums")
        file = path.parent / found[2]
        if not file.is_file():
            raise UserError(f"{file} is missing, and {SUMS} lists it: copy the folder again")
        if file_sum(file) != found[1]:
            raise UserError(
                f"{file} has changed since it was written (its sha256 differs): copy it again, or "
                f"delete {SUMS} if you changed it yourself"
            )


def file_sum(path):
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
