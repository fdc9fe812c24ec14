"""Read safetensors, the file that Hugging Face's models come in, and believe nothing it says.

    8 bytes     n, how long the header is (little-endian)
    n bytes     JSON: {name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...,
                "__metadata__": {text: text}}
    the rest    the arrays, one behind the other; offsets count from here

A format this plain can be read in a page. A reader of our own knows what the package `safetensors`
can't give NumPy, bf16, in which most models are published; and a writer of our own takes one
array at a time, each in C order: the package writes the buffer of a transposed view as it
lies, and what is read back is scrambled, without a word.

A file may come from anyone. So each number of the header is checked against the file's true size
before it is used: the header's length, each span against shape × dtype, the spans against one
another. The file is mapped and not read, so that memory is bounded by what the model truly has.
What can't be found out is whether a bit has flipped among the weights: the format has no
checksum. The export writes sha256 sums beside its files for that reason.

A large model is cut into several files, shards, with model.safetensors.index.json to say which
tensor lies where.

Source: the format's description in the README of github.com/huggingface/safetensors.
"""

import json
import mmap
from itertools import pairwise
from pathlib import Path

import numpy as np

from npgpt.backend import bfloat16
from npgpt.checkpoint import replacing
from npgpt.errors import UserError
from npgpt.interchange.stored import FORMATS, Tensor, product

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, the limit of the package too
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


def read_safetensors(path):
    """Open a file of tensors.

    Args:    path.
    Returns: a dict from name to Tensor, in the order of their places; nothing is read yet. Arrays
             of whole numbers are left out: old files of GPT-2 keep attention's mask in one.
    Raises:  UserError naming what is wrong with the file.
    """
    data = map_file(path)

    def bad(what):
        return UserError(f"{path} is no whole safetensors file: {what}; download it again")

    if len(data) < 8:
        raise bad(f"it has {len(data)} bytes")
    length = int(data[:8].view("<u8")[0])
    if length > min(len(data) - 8, LONGEST_HEADER):
        raise bad(f"its header claims {length:,} bytes of {len(data):,}")
    header = read_header(data[8 : 8 + length].tobytes(), bad)
    data = data[8 + length :]

    spans, tensors = [], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (start, stop) = read_entry(name, entry, bad)
        size = FORMATS[kind].size if kind in FLOATS else INTEGERS.get(kind)
        told = repr(name[:60])
        if size is None:
            raise UserError(f"{path}: {told} is stored as {kind[:20]!r}, which is not supported")
        if not start <= stop <= len(data):
            raise bad(f"{told} lies at {start:,} to {stop:,} of {len(data):,} bytes")
        if stop - start != size * product(shape):
            raise bad(f"{told} has {stop - start:,} bytes, which is no {kind} of shape {shape}")
        spans.append((start, stop, name))
        if kind in FLOATS:
            tensors[name] = Tensor(name, kind, shape, data[start:stop], path)
    spans.sort()
    for (_, stop, name), (start, _, following) in pairwise(spans):
        if start < stop:
            raise bad(f"{name[:60]!r} and {following[:60]!r} overlap")
    covered = sum(stop - start for start, stop, _ in spans)
    if covered != len(data):
        raise bad(f"its tensors cover {covered:,} of {len(data):,} bytes")
    return {name: tensors[name] for _, _, name in spans if name in tensors}


def read_header(raw, bad):
    """The header as a dict from name to entry.

    Args:    raw, bytes; bad, a function from a complaint to a UserError.
    """

    def table(pairs):
        if len(dict(pairs)) < len(pairs):
            raise bad("its header has a name twice")
        return dict(pairs)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=table)
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise bad("its header is not JSON") from None
    if not isinstance(header, dict):
        raise bad("its header is not a table")
    return header


def read_entry(name, entry, bad):
    """One entry of the header: kind, shape (a tuple), offsets (a tuple of two)."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad(f"the entry of {name[:60]!r} is not dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not all(isinstance(part, list) for part in (shape, offsets)):
        raise bad(f"the entry of {name[:60]!r} is damaged")
    whole = all(type(n) is int and n >= 0 for n in (*shape, *offsets))
    if not whole or len(offsets) != 2 or len(shape) > 32:
        said = f"shape {str(shape)[:60]}, place {str(offsets)[:60]}"
        raise bad(f"the entry of {name[:60]!r} has {said}")
    return kind, tuple(shape), tuple(offsets)


def read_shards(folder):
    """Open the weights of a Hugging Face folder, in one file or several.

    Args:    folder, a Path.
    Returns: a dict from name to Tensor.
    Raises:  UserError if there are none, if a file is damaged, or if the files and their index
             are at odds.
    """
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
                p.name for p in folder.glob("*.safetensors")
            )
            found = f"it has {', '.join(others[:3])}, and" if others else "but"
            raise UserError(f"{folder} has no {SINGLE}: {found} only safetensors are read")
        return read_safetensors(folder / SINGLE)
    where = read_index(folder / INDEX)
    tensors = {}
    for file in sorted(set(where.values())):
        for name, tensor in read_safetensors(folder / file).items():
            if name in tensors:
                raise UserError(f"{folder / file} has {name!r}, and so has {tensors[name].path}")
            if where.get(name) != file:
                raise UserError(f"{folder / file} has {name!r}, but {INDEX} does not say so")
            tensors[name] = tensor
    missing = next((name for name in where if name not in tensors), None)
    if missing is not None:
        raise UserError(f"{folder / INDEX}: {missing!r} is not in {where[missing]}")
    return tensors


def read_index(path):
    """The table of model.safetensors.index.json, from a tensor's name to its file's name."""
    try:
        where = json.loads(path.read_text("utf-8"))["weight_map"]
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: it has no table 'weight_map'") from None
    if not isinstance(where, dict) or not where:
        raise UserError(f"{path} is damaged: its weight_map is no table")
    for file in where.values():  # a name, and no way out of the folder
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or file == "..":
            raise UserError(f"{path} names {file!r}, which is no file of its folder")
    return where


def write_safetensors(path, tensors, dtype="float32"):
    """Write a file of tensors, wholly or not at all.

    Args:    path; tensors, a dict from name to (shape, function of nothing that makes the array):
             one at a time is made; dtype that they are rounded to, float32 or bf16.
    Raises:  UserError if the file can't be written.
    """
    kind, stored = ("BF16", bfloat16()) if dtype == "bf16" else ("F32", np.dtype("<f4"))
    header, place = {"__metadata__": {"format": "pt"}}, 0  # older readers insist on that
    for name, (shape, _) in tensors.items():
        stop = place + stored.itemsize * product(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, stop]}
        place = stop
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # so that the numbers lie at multiples of their size
    with replacing(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, (shape, make) in tensors.items():
            array = np.ascontiguousarray(make()).astype(stored)
            if array.shape != tuple(shape):
                raise ValueError(f"write_safetensors: {name} is {array.shape}, announced {shape}")
            file.write(array.view(np.uint8).data)


def map_file(path):
    """A file's bytes, mapped: read when they are looked at, and never kept.

    Args:    path.
    Returns: (N,) uint8, read-only.
    Raises:  UserError if the file can't be read.
    """
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) == 0:  # nothing can't be mapped
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the spelling") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read: {reason}") from None
