"""Numbers as model files store them: floats of four sizes, and the block formats of llama.cpp.

A weight needs few bits, if its neighbours share a scale. llama.cpp cuts each row of a matrix into
blocks, stores whole numbers q of a few bits, and for the block what turns them back:

    F32  F16  BF16  F64   no blocks: the numbers themselves. bf16 is the upper half of a float32.
    Q8_0   32 weights in 34 bytes    w = d·q             q of 8 bits with a sign; d is a float16
    Q4_0   32 weights in 18 bytes    w = d·(q − 8)       q of 4 bits
    Q4_1   32 weights in 20 bytes    w = d·q + m         m is a float16
    Q4_K  256 weights in 144 bytes   w = d·s·q − m·t     q of 4 bits; each 32 have an s and a t,
                                                         of 6 bits
    Q6_K  256 weights in 210 bytes   w = d·s·(q − 32)    q of 6 bits; each 16 have an s of 8 bits

Two numbers of 4 bits share a byte, and not neighbours: the low halves of the bytes are the first
half of a block, the high halves its second, so that a processor can unpack them with one mask.

A tensor here is a view of a mapped file: nothing is read before `floats` asks.

Source: the structs block_q8_0 to block_q6_K in ggml-common.h of llama.cpp, and the functions
    dequantize_row_* in ggml-quants.c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgpt.errors import UserError


class Format(NamedTuple):
    """How one kind of number is stored."""

    block: int  # weights that are stored together
    size: int  # bytes they take
    decode: Callable  # from (blocks, size) uint8 to (blocks, block) float


@dataclass(frozen=True)
class Tensor:
    """One array of a model file.

    Attributes: name; kind, a key of FORMATS; shape, a tuple; data (bytes,) uint8, mapped; path of
             the file, for errors.
    """

    name: str
    kind: str
    shape: tuple
    data: np.ndarray
    path: object

    def floats(self):
        """The numbers, as float32.

        Returns: (shape) float32, a copy of its own.
        Raises:  UserError if one of them is not finite: training never ends so, damage does.
        """
        form = FORMATS[self.kind]
        with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale: found below
            numbers = form.decode(self.data.reshape(-1, form.size)).astype(np.float32)
        if not np.all(np.isfinite(numbers)):
            raise UserError(
                f"{self.path} is damaged: {self.name[:60]!r} holds numbers that are not finite"
            )
        return numbers.reshape(self.shape)


def product(shape):
    """How many numbers a shape holds; np.prod wraps around at 2⁶³, and a header may say anything.

    >>> product((2**40, 2**40)) == 2**80
    True
    """
    total = 1
    for n in shape:
        total *= n
    return total


def _plain(dtype):
    return lambda raw: raw.view(dtype)


def _bf16(raw):
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _f16(raw):
    """A float16 scale of each block: (blocks, 2) uint8 to (blocks, 1) float32."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _halves(raw):
    """Numbers of 4 bits: (..., n) bytes to (..., 2n), the low halves first."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _q8_0(raw):
    return _f16(raw[:, :2]) * raw[:, 2:].view(np.int8)


def _q4_0(raw):
    return _f16(raw[:, :2]) * (_halves(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw):
    return _f16(raw[:, :2]) * _halves(raw[:, 4:]) + _f16(raw[:, 2:4])


def _q4_k(raw):
    d, m = _f16(raw[:, 0:2]), _f16(raw[:, 2:4])  # (blocks, 1)
    # Eight s and eight t of 6 bits in 12 bytes. Of the first four, each has a byte to itself, and
    # leaves its upper two bits to the last four, whose lower bits share the last four bytes.
    first, second, low = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]  # (blocks, 4)
    s = np.concatenate([first & 63, low & 15 | first >> 2 & 48], axis=1)  # (blocks, 8)
    t = np.concatenate([second & 63, low >> 4 | second >> 2 & 48], axis=1)  # (blocks, 8)
    q = _halves(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)  # 64 weights are 32 bytes
    return ((d * s)[..., None] * q - (m * t)[..., None]).reshape(len(raw), 256)


def _q6_k(raw):
    # The lower 4 bits of 128 weights are 64 bytes, their upper 2 bits are 32 bytes.
    low = _halves(raw[:, :128].reshape(-1, 2, 64))  # (blocks, 2, 128)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.uint8([[0], [2], [4], [6]]) & 3
    q = low | high.reshape(-1, 2, 128) << 4  # (blocks, 2, 128), 0 to 63
    scale = _f16(raw[:, 208:210]) * raw[:, 192:208].view(np.int8)  # (blocks, 16)
    return (scale[..., None] * (q.reshape(-1, 16, 16).astype(np.float32) - 32)).reshape(-1, 256)


FORMATS = {
    "F64": Format(1, 8, _plain("<f8")),
    "F32": Format(1, 4, _plain("<f4")),
    "F16": Format(1, 2, _plain("<f2")),
    "BF16": Format(1, 2, _bf16),
    "Q8_0": Format(32, 34, _q8_0),
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q4_K": Format(256, 144, _q4_k),
    "Q6_K": Format(256, 210, _q6_k),
}
