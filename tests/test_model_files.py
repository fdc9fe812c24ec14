"""The readers of other people's files: what they read, and what they refuse."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from npgpt.backend import bfloat16
from npgpt.errors import UserError
from npgpt.interchange.gguf import read_gguf, write_gguf
from npgpt.interchange.safetensors import INDEX, SINGLE, read_safetensors, read_shards
from npgpt.interchange.safetensors import write_safetensors as write
from npgpt.interchange.stored import FORMATS, Tensor

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 32), dtype=np.float32)
GAIN = RNG.standard_normal(7, dtype=np.float32)


def announced(**arrays):
    """Arrays as the writers want them."""
    return {name: (a.shape, lambda a=a: a) for name, a in arrays.items()}


# safetensors.


def raw_safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "m.safetensors", announced(w=W, gain=GAIN))
    read = read_safetensors(tmp_path / "m.safetensors")
    assert {name: t.shape for name, t in read.items()} == {"w": (5, 32), "gain": (7,)}
    np.testing.assert_array_equal(read["w"].floats(), W)
    np.testing.assert_array_equal(read["gain"].floats(), GAIN)


def test_bf16_takes_half_the_room(tmp_path):
    write(tmp_path / "whole", announced(w=W.T, gain=GAIN))
    write(tmp_path / "half", announced(w=W.T, gain=GAIN), "bf16")
    saved = (tmp_path / "whole").stat().st_size - (tmp_path / "half").stat().st_size
    assert abs(saved - 2 * (W.size + GAIN.size)) <= 16  # the headers differ by some bytes
    read = read_safetensors(tmp_path / "half")["w"].floats()
    np.testing.assert_array_equal(read, W.T.astype(bfloat16()).astype(np.float32))
    assert np.max(np.abs(read / W.T - 1)) < 2**-8


def test_the_header_may_name_the_arrays_in_any_order(tmp_path):
    data = np.arange(4, dtype="<f4").tobytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors({"b": entry(offsets=[8, 16]), "a": entry()}, data))
    read = read_safetensors(path)
    assert list(read) == ["a", "b"] and read["b"].floats().tolist() == [2, 3]


@pytest.mark.parametrize("save", [write, lambda path, arrays: write_gguf(path, {}, arrays)])
def test_an_array_of_another_shape_than_announced_is_not_written(tmp_path, save):
    with pytest.raises(ValueError, match=r"w is \(5, 32\), announced (as )?\(32, 5\)"):
        save(tmp_path / "m", {"w": ((32, 5), lambda: W)})
    assert not any(tmp_path.iterdir())


@pytest.mark.parity
def test_the_package_reads_it_too_and_a_transposed_view_is_not_scrambled(tmp_path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    write(tmp_path / "m.safetensors", announced(w=W.T, gain=GAIN[::-1]))
    read = load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(read["w"], W.T)
    np.testing.assert_array_equal(read["gain"], GAIN[::-1])
    raw = (tmp_path / "m.safetensors").read_bytes()
    assert b'{"__metadata__": {"format": "pt"}' in raw  # older readers refuse without
    assert int.from_bytes(raw[:8], "little") % 8 == 0  # so that the arrays are aligned


@pytest.mark.parity
def test_every_float_of_torch_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    given = {str(kind): torch.from_numpy(W).to(kind) for kind in kinds}
    given["mask"] = torch.ones(3, dtype=torch.bool)  # GPT-2's old files have such: left out
    save_file(given, tmp_path / "m.safetensors")
    read = read_safetensors(tmp_path / "m.safetensors")
    assert set(read) == set(given) - {"mask"}
    for name, tensor in read.items():
        assert tensor.floats().dtype == np.float32
        np.testing.assert_array_equal(tensor.floats(), given[name].float().numpy())


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "header claims 9,223,372,036,854,775,808 bytes of 10"),
        (struct.pack("<Q", 3) + b"{}", "header claims 3 bytes of 10"),
        (raw_safetensors(b"[]"), "its header is not a table"),
        (raw_safetensors(b"{"), "its header is not JSON"),
        (raw_safetensors(b"\xff{}"), "its header is not JSON"),
        (raw_safetensors(b"[" * 100_000), "its header is not JSON"),
        (raw_safetensors(b'{"a": 1, "a": 2}'), "its header has a name twice"),
        (raw_safetensors({"a": 1}), "entry of 'a' is not dtype, shape and data_offsets"),
        (raw_safetensors({"a": {"dtype": "F32"}}), "entry of 'a' is not dtype, shape"),
        (raw_safetensors({"a": entry(kind=4)}, bytes(8)), "the entry of 'a' is damaged"),
        (raw_safetensors({"a": entry(shape=[-2])}, bytes(8)), "'a' has shape \\[-2\\]"),
        (raw_safetensors({"a": entry(shape=[2.0])}, bytes(8)), "'a' has shape \\[2.0\\]"),
        (raw_safetensors({"a": entry(shape=[True])}, bytes(8)), "'a' has shape \\[True\\]"),
        (raw_safetensors({"a": entry(offsets=[8])}, bytes(8)), "'a' has shape \\[2\\], place"),
        (raw_safetensors({"a": entry(offsets=[8, 0])}, bytes(8)), "'a' lies at 8 to 0 of 8 bytes"),
        (raw_safetensors({"a": entry(offsets=[0, 16])}, bytes(8)), "'a' lies at 0 to 16 of 8"),
        (raw_safetensors({"a": entry(shape=[3])}, bytes(8)), "which is no F32 of shape \\(3,\\)"),
        (raw_safetensors({"a": entry(shape=[2**40, 2**40])}, bytes(8)), "which is no F32 of"),
        (raw_safetensors({"a": entry(shape=[2**32, 2**32, 0])}, bytes(8)), "no F32 of shape"),
        (raw_safetensors({"a": entry(), "b": entry()}, bytes(8)), "'a' and 'b' overlap"),
        (raw_safetensors({"a": entry()}, bytes(9)), "its tensors cover 8 of 9 bytes"),
        (raw_safetensors({"a": entry("Q8_0", [1], [0, 34])}, bytes(34)), "'Q8_0', which is not"),
        (raw_safetensors({"a\nb": entry()}, bytes(9)), "its tensors cover 8 of 9 bytes"),
        (raw_safetensors({"a\nb": entry(offsets=[0, 9])}, bytes(8)), "'a.nb' lies at 0 to 9"),
        (raw_safetensors({"a": entry(kind="F8_E4M3")}, bytes(8)), "'F8_E4M3', which is not supp"),
    ],
)
def test_a_bad_safetensors_is_one_sentence(tmp_path, data, sentence):
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=sentence) as error:
        read_safetensors(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value) and "m.safetensors" in str(error.value)


def test_a_weight_that_is_not_finite_is_damage(tmp_path):
    broken = W.copy()
    broken[2, 3] = np.nan
    write(tmp_path / "m.safetensors", announced(w=broken))
    with pytest.raises(UserError, match="'w' holds numbers that are not finite"):
        read_safetensors(tmp_path / "m.safetensors")["w"].floats()


def shards(folder, where):
    write(folder / "a.safetensors", announced(w=W))
    write(folder / "b.safetensors", announced(gain=GAIN))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_shards_are_put_together(tmp_path):
    read = read_shards(shards(tmp_path, {"w": "a.safetensors", "gain": "b.safetensors"}))
    np.testing.assert_array_equal(read["w"].floats(), W)
    np.testing.assert_array_equal(read["gain"].floats(), GAIN)


@pytest.mark.parametrize(
    "where, sentence",
    [
        ({"w": "a.safetensors", "gain": "c.safetensors"}, "there is no file"),
        ({"w": "a.safetensors", "gain": "a.safetensors"}, "'gain' is not in a.safetensors"),
        ({"w": "a.safetensors", "x": "b.safetensors"}, "'gain', but .* does not say so"),
        ({"w": "a.safetensors", "gain": "b.safetensors", "x": "a.safetensors"}, "'x' is not in"),
        ({"w": "../a.safetensors"}, "which is no file of its folder"),
        ({"w": ".."}, "which is no file of its folder"),
        ({"w": 1}, "which is no file of its folder"),
        ({}, "its weight_map is no table"),
        ([], "its weight_map is no table"),
    ],
)
def test_an_index_at_odds_with_its_files(tmp_path, where, sentence):
    with pytest.raises(UserError, match=sentence):
        read_shards(shards(tmp_path, where))


def test_one_name_in_two_shards(tmp_path):
    folder = shards(tmp_path, {"w": "a.safetensors", "gain": "b.safetensors"})
    write(folder / "b.safetensors", announced(w=W, gain=GAIN))
    with pytest.raises(UserError, match="has 'w', and so has"):
        read_shards(folder)


def test_a_folder_without_weights_names_what_it_has(tmp_path):
    with pytest.raises(UserError, match=f"has no {SINGLE}"):
        read_shards(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"it has pytorch_model\.bin, and only"):
        read_shards(tmp_path)


# GGUF.

ENTRIES = {
    "general.architecture": "llama", "n": 7, "x": 0.5, "yes": True, "words": ["a", "bé", ""],
    "kinds": np.array([1, 2, 3], np.int32), "scores": np.array([0.5, -1.0], np.float32),
}  # fmt: skip


def gguf(folder, entries=ENTRIES, **arrays):
    path = folder / "m.gguf"
    write_gguf(path, entries, announced(**(arrays or {"w": W, "gain": GAIN})))
    return path


def test_a_gguf_comes_back(tmp_path):
    entries, tensors = read_gguf(gguf(tmp_path))
    assert list(entries) == list(ENTRIES)
    for key, value in ENTRIES.items():
        np.testing.assert_array_equal(entries[key], value)
    assert tensors["w"].shape == (5, 32)
    np.testing.assert_array_equal(tensors["w"].floats(), W)
    np.testing.assert_array_equal(tensors["gain"].floats(), GAIN)


def test_the_gguf_package_reads_it_too(tmp_path):
    gguf_package = pytest.importorskip("gguf")
    reader = gguf_package.GGUFReader(gguf(tmp_path))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors["w"].data, W)
    assert tensors["w"].data_offset % 32 == tensors["gain"].data_offset % 32 == 0
    assert reader.fields["words"].contents() == ENTRIES["words"]


def header(tensors=0, entries=0, version=3, body=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


def text(s):
    return struct.pack("<Q", len(s)) + s


def line(name=b"w", shape=(4,), kind=0, place=0):
    axes = b"".join(struct.pack("<Q", n) for n in shape)
    return text(name) + struct.pack("<I", len(shape)) + axes + struct.pack("<IQ", kind, place)


def padded(raw, data):
    return raw + bytes(-len(raw) % 32) + data


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_a_gguf_of_another_alignment(tmp_path, alignment):
    body = text(b"general.alignment") + struct.pack("<II", 4, alignment) + line()
    raw = header(tensors=1, entries=1, body=body)
    raw += bytes(-len(raw) % alignment) + np.arange(4, dtype="<f4").tobytes()
    (tmp_path / "m.gguf").write_bytes(raw)
    np.testing.assert_array_equal(read_gguf(tmp_path / "m.gguf")[1]["w"].floats(), np.arange(4))


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "claims 4 bytes, for which it is too short"),
        (b"GGML" + bytes(40), "is no GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a GGUF file big-endian"),
        (header(version=1), "of version 1: npgpt reads"),
        (header(entries=2**60), "claims 1,152,921,504,606,846,976 entries"),
        (header(tensors=2**60), "claims 1,152,921,504,606,846,976 tensors"),
        (header(entries=1, body=text(b"k" * 30)[:20]), "too short"),
        (header(entries=1, body=struct.pack("<QQ", 2**63, 0)), "claims 9,223,372,036,854,775,808"),
        (header(entries=1, body=text(b"\xff\xff") + bytes(9)), "a text that is not UTF-8"),
        (header(entries=1, body=text(b"k") + struct.pack("<IQ", 99, 0)), "a value of type 99"),
        (
            header(entries=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)),
            "an array of type 9",
        ),
        (header(entries=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 2**61)), "claims .* texts"),
        (header(entries=1, body=text(b"k") + struct.pack("<IIQ", 9, 12, 2**61)), "claims .* num"),
        (
            header(entries=2, body=2 * (text(b"k") + struct.pack("<IQ", 10, 1))),
            "it has 'k' twice",
        ),
        (
            header(entries=1, body=text(b"general.alignment") + struct.pack("<II", 4, 24)),
            "general.alignment is 24",
        ),
        (padded(header(1, body=line(shape=(1,) * 5)), bytes(16)), "'w' has 5 axes"),
        (padded(header(1, body=line(shape=())), bytes(16)), "'w' is F32 of shape \\(\\)"),
        (padded(header(1, body=line(kind=2)), bytes(16)), "'w' is Q4_0 of shape \\(4,\\)"),
        (padded(header(1, body=line(kind=13)), bytes(16)), "'w' is stored as Q5_K, which is not"),
        (
            padded(header(1, body=line(kind=77)), bytes(16)),
            "'w' is stored as type 77, which",
        ),
        (padded(header(1, body=line(shape=(2**40, 2**40))), bytes(16)), "lies at 0 to"),
        (padded(header(1, body=line(place=4)), bytes(64)), "lies at 4 to 20"),
        (padded(header(1, body=line()), bytes(15)), "lies at 0 to 16"),
        (padded(header(2, body=line() + line(b"v")), bytes(16)), "'v' and 'w' overlap"),
        (padded(header(2, body=line() + line(place=32)), bytes(64)), "it has 'w' twice"),
    ],
)
def test_a_bad_gguf_is_one_sentence(tmp_path, data, sentence):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(UserError, match=sentence) as error:
        read_gguf(tmp_path / "m.gguf")
    assert "\n" not in str(error.value) and "m.gguf" in str(error.value)


# Block formats, each number worked out by hand from ggml's structs.


def decoded(kind, raw):
    raw = np.frombuffer(raw, np.uint8)
    form = FORMATS[kind]
    shape = (len(raw) // form.size, form.block)
    return Tensor("w", kind, shape, raw, "m.gguf").floats()


def half(x):
    return np.float16(x).tobytes()


def test_blocks_of_32():
    q = np.arange(-16, 16, dtype=np.int8)
    np.testing.assert_array_equal(decoded("Q8_0", half(0.5) + q.tobytes())[0], 0.5 * q)
    nibbles = RNG.integers(0, 16, 32)
    packed = bytes(int(a | b << 4) for a, b in zip(nibbles[:16], nibbles[16:]))
    np.testing.assert_array_equal(decoded("Q4_0", half(0.5) + packed)[0], 0.5 * (nibbles - 8))
    expected = 0.5 * nibbles - 3.0
    np.testing.assert_array_equal(decoded("Q4_1", half(0.5) + half(-3) + packed)[0], expected)


def test_blocks_of_256():
    """Packed here number by number, after the loops of ggml's dequantize_row_*."""
    q, s, t = RNG.integers(0, 16, 256), RNG.integers(0, 64, 8), RNG.integers(0, 64, 8)
    qs, packed = bytearray(128), bytearray(12)
    for j in range(8):
        if j < 4:
            packed[j] |= s[j]
            packed[j + 4] |= t[j]
        else:
            packed[j + 4] |= (s[j] & 15) | (t[j] & 15) << 4
            packed[j - 4] |= (s[j] >> 4) << 6
            packed[j] |= (t[j] >> 4) << 6
    for i in range(256):
        group, place = divmod(i, 32)
        qs[group // 2 * 32 + place] |= q[i] << 4 * (group % 2)
    expected = 0.5 * np.repeat(s, 32) * q - 0.25 * np.repeat(t, 32)
    got = decoded("Q4_K", half(0.5) + half(0.25) + bytes(packed) + bytes(qs))[0]
    np.testing.assert_array_equal(got, expected)

    q, s = RNG.integers(0, 64, 256), RNG.integers(-128, 128, 16)
    low, high = bytearray(128), bytearray(64)
    for i in range(256):
        part, place = divmod(i, 128)
        low[part * 64 + place % 64] |= (q[i] & 15) << 4 * (place // 64)
        high[part * 32 + place % 32] |= (q[i] >> 4) << 2 * (place // 32)
    got = decoded("Q6_K", bytes(low) + bytes(high) + s.astype(np.int8).tobytes() + half(0.5))[0]
    np.testing.assert_array_equal(got, 0.5 * np.repeat(s, 16) * (q - 32))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "F64"])
def test_every_format_is_that_of_the_gguf_package(kind):
    package = pytest.importorskip("gguf")
    form = FORMATS[kind]
    raw = RNG.integers(0, 0x3C, (40, form.size), dtype=np.uint8)  # no scale that is not finite
    theirs = package.quants.dequantize(raw, package.GGMLQuantizationType[kind])
    ours = Tensor("w", kind, (40, form.block), raw.reshape(-1), "m.gguf").floats()
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


# Damage.


def damage(raw, rng):
    """A copy of a file that something has happened to."""
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(raw)))
        what = rng.integers(6)
        if what == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif what == 1:
            raw[at : at + 8] = rng.bytes(8)
        elif what == 2:
            del raw[at:]
        elif what == 3:
            raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif what == 4:  # a length, perhaps: make it absurd
            size = int(rng.choice([4, 8]))
            number = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
            raw[at : at + size] = number.to_bytes(size, "little")
        else:
            raw[at : at + 1] = rng.choice([b"9", b"-", b"[", b'"', b"e"])
        if not raw:
            break
    return bytes(raw)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_thousands_of_damaged_files(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "gguf":
        gguf(tmp_path)
    else:
        write(path, announced(w=W, gain=GAIN, bias=GAIN))
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    front = whole[:700]  # most damage to where it hurts: what is read as numbers and names
    refused = 0
    tracemalloc.start()
    try:
        for i in range(2500):
            raw = damage(front, rng) + whole[700:] if i % 2 else damage(whole, rng)
            path.write_bytes(raw)
            try:
                found = read_gguf(path)[1] if kind == "gguf" else read_safetensors(path)
                for tensor in found.values():
                    assert tensor.floats().shape == tensor.shape
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused > 500
    assert peak < 2_000_000, f"{peak:,} bytes for files of {len(whole):,}"
