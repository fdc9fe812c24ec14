"""GGUF, the one file of llama.cpp: read as carefully as safetensors, and written.

    "GGUF", version (3), number of tensors, number of entries
    the entries    key, type, value: everything about the model, its tokenizer included
    the tensors    name, shape, kind, place: one line for each
    padding        to a multiple of general.alignment, 32 bytes unless an entry says otherwise
    the data       of each tensor at its place, padded likewise

Numbers are little-endian; a text is its length (uint64) and then UTF-8. Two things to remember:

Shapes are written backwards. llama.cpp names the axis first along which the numbers are
    neighbours; NumPy names it last. (N, K) of NumPy is K, N in the file.

Every length is a claim. A text of 2⁶³ bytes and an array of 2⁶⁰ texts each take twelve bytes to
    claim. So nothing is made before the file is seen to be long enough for it; what is built
    never has more entries than the file has bytes.

Source: docs/gguf.md in github.com/ggml-org/ggml; the enum ggml_type in ggml.h.
"""

import struct
from itertools import pairwise

import numpy as np

from npgpt.checkpoint import replacing
from npgpt.errors import UserError
from npgpt.interchange.safetensors import map_file
from npgpt.interchange.stored import FORMATS, Tensor, product

MAGIC = b"GGUF"
VERSION = 3  # 2 differs in nothing that concerns us
ALIGNMENT = 32
MOST_AXES = 4
# Types of values: struct's letter for the numbers, and two more.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
# Kinds of tensors, by their number in ggml_type; the others are here to be named.
KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
NUMBER_OF = {kind: number for number, kind in KINDS.items()}


def read_gguf(path):
    """Open a model file.

    Args:    path.
    Returns: entries, a dict from key to a number, bool, str, list of str or array of numbers;
             tensors, a dict from name to Tensor, of which nothing is read yet.
    Raises:  UserError naming what is wrong with the file.
    """
    reader = Reader(path)
    if reader.take(4) != MAGIC:
        raise UserError(f"{path} is no GGUF file: it does not begin with GGUF")
    version = reader.number("I")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        what = "big-endian" if swapped else f"of version {version}"
        raise UserError(f"{path} is a GGUF file {what}: npgpt reads little-endian, version 2 and 3")
    num_tensors, num_entries = reader.number("Q"), reader.number("Q")
    entries = {}
    for _ in range(reader.claimed(num_entries, 13, "entries")):
        key = reader.text()
        if key in entries:
            raise reader.bad(f"it has {key[:60]!r} twice")
        entries[key] = reader.value(reader.number("I"))
    lines = [reader.tensor_line() for _ in range(reader.claimed(num_tensors, 25, "tensors"))]
    alignment = entries.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & alignment - 1:
        raise reader.bad(f"general.alignment is {str(alignment)[:60]}")
    return entries, reader.tensors(lines, alignment)


class Reader:
    """A place in a mapped file that moves on, and never past its end.

    Args:    path.
    """

    def __init__(self, path):
        self.path, self.data, self.at = path, map_file(path), 0

    def bad(self, what):
        """The error for a file that can't be what it says it is."""
        return UserError(f"{self.path} is no whole GGUF file: {what}; download it again")

    def claimed(self, count, least, what):
        """A number of things, if the file has room for them at `least` bytes each."""
        if count * least > len(self.data) - self.at:
            raise self.bad(f"it claims {count:,} {what}, for which it is too short")
        return count

    def take(self, size):
        """The next bytes."""
        self.claimed(size, 1, "bytes")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def number(self, letter):
        """The next number, of struct's type `letter`."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self):
        """The next text."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad("it has a text that is not UTF-8") from None

    def value(self, kind):
        """The next value, of a type that is known by its number."""
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == TEXT:
                return [self.text() for _ in range(self.claimed(count, 8, "texts"))]
            if kind in NUMBERS:
                dtype = np.dtype("<" + NUMBERS[kind])
                self.claimed(count, dtype.itemsize, "numbers")
                return np.frombuffer(self.take(count * dtype.itemsize), dtype)
            raise self.bad(f"it has an array of type {kind}")
        if kind not in NUMBERS:
            raise self.bad(f"it has a value of type {kind}")
        return self.number(NUMBERS[kind])

    def tensor_line(self):
        """The next tensor's name, shape, kind and place."""
        name, axes = self.text(), self.number("I")
        if axes > MOST_AXES:
            raise self.bad(f"{name[:60]!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def tensors(self, lines, alignment):
        """The tensors of the lines, behind which the file's place is."""
        begin = -(-self.at // alignment) * alignment
        spans, tensors = [], {}
        for name, shape, number, start in lines:
            kind = KINDS.get(number, f"type {number}")
            if kind not in FORMATS:
                raise UserError(
                    f"{self.path}: {name[:60]!r} is stored as {kind}, which is not supported: "
                    f"npgpt reads {', '.join(FORMATS)}"
                )
            form = FORMATS[kind]
            if not shape or shape[-1] % form.block:
                raise self.bad(f"{name[:60]!r} is {kind} of shape {shape}")
            stop = start + product(shape) // form.block * form.size
            if start % alignment or begin + stop > len(self.data):
                raise self.bad(f"{name[:60]!r} lies at {start:,} to {stop:,} of its data")
            if name in tensors:
                raise self.bad(f"it has {name[:60]!r} twice")
            spans.append((start, stop, name))
            data = self.data[begin + start : begin + stop]
            tensors[name] = Tensor(name, kind, shape, data, self.path)
        spans.sort()
        for (_, stop, name), (start, _, following) in pairwise(spans):
            if start < stop:
                raise self.bad(f"{name[:60]!r} and {following[:60]!r} overlap")
        return tensors


def write_gguf(path, entries, tensors):
    """Write a model file, wholly or not at all.

    Args:    path; entries, a dict from key to a bool, int, float, str, a list of str or an array of
             int32 or float32 (an int is stored as uint32); tensors, a dict from name to
             (shape, function of nothing that makes the float32 array): one at a time is made.
    Raises:  UserError if the file can't be written.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(entries))]
    for key, value in entries.items():
        head += [_text(key), *_value(value)]
    place = 0
    for name, (shape, _) in tensors.items():
        head += [_text(name), struct.pack("<I", len(shape))]
        head += [struct.pack("<Q", n) for n in reversed(shape)]
        head.append(struct.pack("<IQ", NUMBER_OF["F32"], place))
        place += _padded(4 * product(shape))
    head = b"".join(head)
    with replacing(path) as file:
        file.write(head.ljust(_padded(len(head)), b"\0"))
        for name, (shape, make) in tensors.items():
            array = np.ascontiguousarray(make(), "<f4")
            if array.shape != tuple(shape):
                raise ValueError(f"write_gguf: {name} is {array.shape}, announced as {shape}")
            file.write(array.tobytes().ljust(_padded(array.nbytes), b"\0"))


def _padded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value):
    """A value as the file has it, its type before it: a list of bytes."""
    if isinstance(value, bool):
        return [struct.pack("<I?", BOOL, value)]
    if isinstance(value, int):
        return [struct.pack("<II", UINT32, value)]
    if isinstance(value, float):
        return [struct.pack("<If", FLOAT32, value)]
    if isinstance(value, str):
        return [struct.pack("<I", TEXT), _text(value)]
    if isinstance(value, list):
        return [struct.pack("<IIQ", ARRAY, TEXT, len(value)), *map(_text, value)]
    kind = {np.dtype(np.int32): INT32, np.dtype(np.float32): FLOAT32}[value.dtype]
    return [struct.pack("<IIQ", ARRAY, kind, len(value)), value.tobytes()]
