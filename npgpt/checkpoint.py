"""Checkpoints: a run that was stopped goes on as though it never had been.

What
    A checkpoint is one folder. It holds named groups of arrays (the weights, the
    optimizer's moments), one dict of plain values (data position, random state,
    settings) and a few small files (the tokenizer):

        run/checkpoints/step-00001200/
            model.safetensors  optimizer.safetensors  state.json
            tokenizer/vocab.json  ...
            manifest.json      the size and the sha256 of each of the above

    Arrays are safetensors and the rest is JSON. A pickle would be shorter, but a
    pickle is a program: to load one is to run whatever its author wished.

Why so many steps for a few files
    A save can be cut short at any instruction: by a kill, a full disk, a power
    cut. Each step below closes one of the doors through which a run gets lost.

    1. Write into a temporary folder. A file written in place destroys the old one
       before the new one is whole. Here nothing unfinished has a checkpoint's name.
    2. fsync every file. `write` returns when the bytes are in the system's memory,
       not on the disk, and the disk may learn the new name before it gets the
       bytes: after a power cut, a file with the right name, full of zeros.
    3. fsync the folder. The names of the files inside are data as well: the folder's.
    4. Rename it. A rename is the one thing a file system does wholly or not at all,
       so there is no moment at which half a checkpoint can be seen.
    5. fsync the parent, which holds the new name. Only now is the save a fact ...
    6. ... and only now do old checkpoints go: renamed first, then deleted, as a
       folder cannot be deleted in one step either.

    Saving the same step again needs one step more, since a folder can't be renamed
    onto a full one. The old folder is set aside as `step-00001200.replaced`, which
    counts as a checkpoint too, until the new one has its place.

    7. sha256. A rename guards against what happens while saving, not against what
       comes after it: a failing disk, half a copy, a bad download. One flipped
       exponent bit loads without complaint and shows days later as a strange loss.
       So the bytes are compared with the manifest before any parser sees them. This
       finds accidents, not malice: who can change a file can change the manifest.
"""

import errno
import hashlib
import json
import math
import operator
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from npgpt.errors import UserError

FORMAT = 1  # of the folder; a reader refuses every other number
_CODES = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8".split()
# What a safetensors file calls the kinds of numbers, the lowest byte first: "<f4" is F32.
KINDS = {np.dtype(f"<{c}"): f"{c[0].upper()}{8 * int(c[1])}" for c in _CODES}
KINDS[np.dtype(bool)] = "BOOL"

_WINDOWS = os.name == "nt"
# Windows knows no quotas, and not every system has every name.
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_SUCH_CALL = {errno.EINVAL, getattr(errno, "ENOTSUP", errno.EINVAL)}
_CHECKPOINT = re.compile(r"step-([0-9]{8,})(\.replaced)?")
_TEMPORARY = re.compile(r"\.tmp-([0-9]+)-[0-9a-f]+")  # the process that made it, a random part
_FILE_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # relative, inside the folder, on any system


class CheckpointError(UserError):
    """A checkpoint that can't be used; its text names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `arrays[group][name]`, `state`, and `files[relative name]` as bytes."""

    path: Path
    step: int
    arrays: dict[str, dict[str, np.ndarray]]
    state: dict
    files: dict[str, bytes]


def save_checkpoint(run_dir, step, arrays, state, files=None, keep=2) -> Path:
    """Save a checkpoint wholly or not at all, then remove all but the last `keep`.

    One save at a time in a process. Checkpoints of later steps are left alone.

    Args:    run_dir, made if missing; step >= 0; arrays {group: {name: array}};
             state, a dict of JSON's own types, finite floats, integers of any size;
             files {relative name: bytes}; keep >= 1.
    Returns: the checkpoint's folder, by now safe on disk.
    Raises:  UserError if the disk is full or can't be written (older checkpoints stay);
             ValueError for what would not come back exactly as it was given.
    """
    step = operator.index(step)
    if step < 0 or keep < 1:
        raise ValueError(f"need step >= 0 and keep >= 1, not step={step} and keep={keep}")
    _check_state(state)
    root = Path(run_dir) / "checkpoints"
    final = root / f"step-{step:08d}"
    aside = root / f"{final.name}.replaced"
    temporary = _temporary(root)
    entries = {}
    with _all_or_nothing(final, temporary):
        _make_folder(root)
        _sweep(root)
        _make_folder(temporary)
        for name, pieces in _contents(arrays, state, files or {}):
            if name in (*entries, "manifest.json") or not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} can't be the name of a file in a checkpoint")
            path = temporary / name
            _make_folder(path.parent)
            entries[name] = _write(path, pieces)
        body = {"format": FORMAT, "step": step, "files": entries}
        _write(temporary / "manifest.json", [_manifest(body)])
        for folder in {temporary, *((temporary / name).parent for name in entries)}:
            _sync_folder(folder)
        if final.exists():
            if aside.exists():  # a save was killed between its last rename and its clean-up
                _discard(aside)
            os.rename(final, aside)
        os.rename(temporary, final)
        _sync_folder(root)

    known = [path for path in list_checkpoints(run_dir) if _order(path) <= (step, True)]
    wanted = [path for path in known if not (path.suffix and path.with_suffix("").exists())]
    for path in known:
        if path not in wanted[-keep:]:
            with suppress(OSError):  # it is in use, perhaps: the next save tries again
                _discard(path)
    return final


def load_checkpoint(path, groups=None) -> Checkpoint:
    """Load a checkpoint, every byte of it compared with its manifest before it is parsed.

    Args:    path, the checkpoint's folder; groups, the names of the groups of arrays to
             read (all by default): `("model",)` is enough to generate text.
    Returns: Checkpoint; its arrays are writable.
    Raises:  CheckpointError if a file that is read is missing, cut, changed or too new.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    for group in groups or ():
        if f"{group}.safetensors" not in manifest["files"]:
            raise CheckpointError(f"{folder} holds no {group!r} arrays: choose another checkpoint")
    arrays, files = {}, {}
    for name, entry in manifest["files"].items():
        group = name.removesuffix(".safetensors")
        is_group = group != name
        if is_group and groups is not None and group not in groups:
            continue
        data = _read(folder / name)
        if len(data) != entry["size"]:
            raise _damaged(folder / name, f"has {len(data)} bytes and not {entry['size']}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _damaged(folder / name, "has changed since it was saved (its sha256 differs)")
        if is_group:
            arrays[group] = load(data)
        else:
            files[name] = data
    state = json.loads(files.pop("state.json"))
    return Checkpoint(folder, manifest["step"], arrays, state, files)


def newest_checkpoint(run_dir, groups=None, warn: Callable | None = None) -> Checkpoint | None:
    """Load the newest whole checkpoint of a run, passing over damaged ones.

    Args:    run_dir; groups as in load_checkpoint; warn, called with one sentence for
             each checkpoint passed over (by default it is printed to stderr).
    Returns: Checkpoint, or None if nothing was saved yet.
    Raises:  CheckpointError if there are checkpoints, but none is whole.
    """
    paths = list_checkpoints(run_dir)
    for path in reversed(paths):
        try:
            return load_checkpoint(path, groups)
        except CheckpointError as error:
            last = error
            (warn or _print_warning)(f"passed over {path.name}: {error}")
    if list_checkpoints(run_dir) != paths:  # a save went on meanwhile, and removed what we read
        return newest_checkpoint(run_dir, groups, warn)
    if paths:
        raise CheckpointError(f"none of the checkpoints of {run_dir} is whole: {last}")
    return None


def list_checkpoints(run_dir) -> list[Path]:
    """List the folders of a run's checkpoints, whole or not, sorted by step.

    Args:    run_dir.
    Returns: their paths; none if the run has no checkpoints.
    Raises:  UserError if the folder can't be read.
    """
    root = Path(run_dir) / "checkpoints"
    try:
        return sorted((p for p in root.iterdir() if _CHECKPOINT.fullmatch(p.name)), key=_order)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"can't read {root} ({error.strerror}): check its permissions") from error


def write_atomic(path, data: bytes) -> None:
    """Write a small file so that a reader finds the old bytes or the new, never a mixture.

    Args:    path, its folder made if missing; data, its whole content.
    Raises:  UserError if it can't be written; what was there before stays.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path):
    """Open a file that takes the place of path when the block ends, and never if it fails.

    What is no file, but a device or a pipe, is written to and not replaced: /dev/null, for one.

    Args:    path, its folder made if missing; of a link, what it leads to is meant.
    Returns: a context manager; its value is a file, open for bytes.
    Raises:  UserError if it can't be written; what was there before stays.
    """
    path = Path(path)
    is_device = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if path.is_symlink() and not is_device:
        path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with _all_or_nothing(path, temporary):
        if is_device:
            with open(path, "wb") as file:
                yield file
            return
        _make_folder(path.parent)
        with open(temporary, "wb") as file:
            yield file
            _flush(file)
        os.replace(temporary, path)
        _sync_folder(path.parent)


# What goes into the files.


def _contents(arrays, state, files) -> Iterator[tuple[str, Iterable]]:
    """Yield name and pieces of each file in turn."""
    for group, named in arrays.items():
        named = {name: np.asarray(array) for name, array in named.items()}
        for name, array in named.items():
            if array.dtype not in KINDS:  # bfloat16 can be saved, but not loaded again
                raise ValueError(f"{group}/{name}: {array.dtype} would not come back as it is")
        yield f"{group}.safetensors", _safetensors(named)
    yield "state.json", [json.dumps(state, indent=1).encode()]
    for name, data in files.items():
        if name.endswith(".safetensors"):
            raise ValueError(f"{name!r}: pass arrays as a group, not as a file")
        yield name, [data]


def _safetensors(named) -> Iterator:
    """The bytes of a safetensors file, piece by piece: the package would make a copy of them all,
    and beside a billion parameters and AdamW's memory there is no room for another.

    A transposed view is written in the order of its axes, by way of a copy of its own: as it lies,
    it would come back scrambled.
    """
    named = dict(sorted(named.items(), key=lambda item: -item[1].dtype.itemsize))  # all aligned
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, array in named.items():
        span = [place, place + array.nbytes]
        header[name] = dict(dtype=KINDS[array.dtype], shape=array.shape, data_offsets=span)
        place = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in named.values():
        # A row of bytes, also of an array without axes; little-endian, as KINDS has it.
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _check_state(value, where="state"):
    """Refuse what JSON would lose or change: NaN, tuples, keys that are no strings."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: JSON's keys are strings")
            _check_state(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_state(item, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON has no word for: use None")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{where} is a {type(value).__name__}, which would not survive JSON")


def _manifest(body: dict) -> bytes:
    """Encode a manifest in the one way that counts as right, its own sha256 included."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, sort_keys=True, indent=1).encode()


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    data = _read(path)
    try:
        body = json.loads(data)
        del body["sha256"]
        whole = _manifest(body) == data  # not one byte may differ, nor be parsed into the same
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise _damaged(path, "has changed since it was saved")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {body.get('format')!r} and this npgpt reads format {FORMAT}: "
            "use the npgpt that wrote it"
        )
    return body


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    except OSError as error:
        raise _damaged(path, f"can't be read ({error.strerror or error})") from error


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} {what}: use another checkpoint, or restore it from a copy")


def _order(path: Path) -> tuple[int, bool]:
    """Sort by step; of two with the same step, the replaced one is the older."""
    step, replaced = _CHECKPOINT.fullmatch(path.name).groups()
    return int(step), replaced is None


def _print_warning(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


# How it gets onto the disk.


@contextmanager
def _all_or_nothing(target: Path, temporary: Path):
    """Remove `temporary` if the block fails, and turn the system's refusal into a sentence."""
    try:
        yield
    except BaseException as error:
        _delete(temporary)
        if not isinstance(error, OSError):
            raise
        advice = "check that the folder can be written to, or choose another"
        if error.errno in _DISK_FULL:
            there = next(folder for folder in target.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(there).free / 1e6
            advice = f"{free:,.1f} MB are free there, so make room or choose another disk"
        raise UserError(f"could not save {target} ({error.strerror or error}): {advice}") from error


def _write(path: Path, pieces) -> dict:
    """Write the pieces one after the other; the file's entry in the manifest."""
    size, digest = 0, hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        _flush(file)
    return {"size": size, "sha256": digest.hexdigest()}


def _flush(file) -> None:
    file.flush()  # from Python's buffer to the system's ...
    os.fsync(file.fileno())  # ... and from the system's to the disk


def _sync_folder(folder: Path) -> None:
    if _WINDOWS:  # it can't open a folder; NTFS keeps a journal of names by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # some network disks have no such call
            raise
    finally:
        os.close(handle)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, each one's name safe on disk."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)  # another process may be quicker
            _sync_folder(folder.parent)


def _temporary(root: Path) -> Path:
    return root / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _discard(path: Path) -> None:
    """Remove a checkpoint: its name goes at once, its files after it."""
    temporary = _temporary(path.parent)
    os.rename(path, temporary)
    _delete(temporary)


def _delete(path: Path) -> None:
    """Delete a temporary file or folder, or else leave it to the next save's sweep."""
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _sweep(root: Path) -> None:
    """Delete what killed saves left behind, but not what another live process is writing."""
    for path in root.iterdir():
        owner = _TEMPORARY.fullmatch(path.name)
        if owner and (int(owner[1]) == os.getpid() or not _is_running(int(owner[1]))):
            _delete(path)


def _is_running(pid: int) -> bool:
    if _WINDOWS:  # there, os.kill(pid, 0) is no question but a signal
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and belongs to somebody else
        return True
    return True
