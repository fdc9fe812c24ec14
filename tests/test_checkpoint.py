"""A checkpoint comes back bit for bit, or not at all: whatever is saved, and whichever bit flips.

That a save may be cut short at any moment is the business of test_checkpoint_crashes.py.
"""

import ast
import json
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import fail, files_of, names, save_small, version_of

from npgpt import checkpoint
from npgpt.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.usefixtures("fast_disk")


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# What goes in comes out.


def test_arrays_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    odd = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32).view(np.float32)
    arrays = {
        "model": {
            "float32": rng.standard_normal((3, 5), np.float32),
            "float64": rng.standard_normal((2, 3, 4)),
            "int64": rng.integers(-(2**63), 2**63 - 1, 7),
            "uint16": rng.integers(0, 2**16, (2, 2), np.uint16),
            "bool": rng.random(5) < 0.5,
            "nan with a payload, -inf, -0, denormal": odd,
            "0-d": np.array(2.5, np.float32),
            "scalar": np.float64(0.1),
            "empty": np.zeros((0, 3), np.float32),
            "transposed": rng.standard_normal((3, 5)).T,
            "permuted": rng.standard_normal((2, 3, 4), np.float32).transpose(2, 0, 1),
            "strided": rng.integers(0, 9, (8, 6))[::2, ::-1],
            "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
        },
        "optimizer": {},
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 3, arrays, {})).arrays
    assert loaded.keys() == arrays.keys()
    for group in arrays:
        assert loaded[group].keys() == arrays[group].keys()
        for name, array in arrays[group].items():
            assert same(loaded[group][name], np.asarray(array)), name
            assert loaded[group][name].flags.writeable, name


def test_saving_makes_no_copy_of_the_arrays(tmp_path):
    """Beside a billion parameters and AdamW's memory of them there is no room for one."""
    arrays = {"model": {"a": np.ones((1024, 1024)), "b": np.ones(2**20)}}  # 8 MB each
    tracemalloc.start()
    path = save_checkpoint(tmp_path, 1, arrays, {})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2e6
    assert load_checkpoint(path).arrays["model"]["b"].sum() == 2**20


def test_the_arrays_are_those_other_programs_read(tmp_path):
    from safetensors import safe_open

    path = save_small(tmp_path, 7)
    with safe_open(path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert (file.get_tensor("w") == 7).all()


def test_every_number_lies_where_a_reader_may_map_it(tmp_path):
    """At a multiple of its own size, whatever the order in which the arrays come."""
    kinds = ("i1", "f8", "f2", "f4")
    arrays = {f"{kind}, {length}": np.zeros(length, kind) for kind in kinds for length in (3, 5)}
    raw = (save_checkpoint(tmp_path, 1, {"model": arrays}, {}) / "model.safetensors").read_bytes()
    begins = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begins])
    for name, array in arrays.items():
        assert (begins + header[name]["data_offsets"][0]) % array.itemsize == 0, name


def test_state_survives_exactly(tmp_path):
    state = {
        "pcg64": np.random.default_rng(2**100 + 1).bit_generator.state,
        "big": [2**128 - 1, -(2**200)],
        "floats": [0.1, 1e-323, -0.0, 1.7976931348623157e308, 1 / 3, 1.0],
        "plain": [True, None, "π \ud800 \x00", {}, [[]]],
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 0, {}, state)).state
    assert repr(loaded) == repr(state)
    rng, again = np.random.default_rng(0), np.random.default_rng(2**100 + 1)
    rng.bit_generator.state = loaded["pcg64"]
    assert (rng.random(9) == again.random(9)).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), r"state\['a'\]\[1\] is nan"),
        (float("-inf"), r"state\['a'\]\[1\] is -inf"),
        (np.float64("inf"), r"state\['a'\]\[1\] is inf"),
        ((1, 2), "tuple"),
        ({1: 2}, "key 1"),
        (np.int64(1), "int64"),
        (b"", "bytes"),
    ],
)
def test_state_that_json_would_change_is_refused(tmp_path, value, words):
    with pytest.raises(ValueError, match=words):
        save_checkpoint(tmp_path, 1, {}, {"a": [0, value]})
    assert newest_checkpoint(tmp_path) is None


def test_files_come_back(tmp_path):
    files = {"tokenizer/vocab.json": bytes(range(256)), "a/b/c.txt": b"", "notes.txt": b"x"}
    path = save_checkpoint(tmp_path, 1, {"model": {}}, {}, files)
    assert load_checkpoint(path).files == files
    assert (path / "tokenizer" / "vocab.json").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    "name",
    "../x /x a/../../x a//b .hidden c:x a\\b x.safetensors state.json manifest.json".split(),
)
def test_bad_file_names_are_refused(tmp_path, name):
    save_small(tmp_path, 1)
    with pytest.raises(ValueError, match="file"):
        save_checkpoint(tmp_path, 2, {"model": {}}, {}, {name: b""})
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("dtype", [object, "U3", np.complex128, ">f4", [("a", "f4")]])
def test_arrays_that_would_not_come_back_are_refused(tmp_path, dtype):
    save_small(tmp_path, 1)
    with pytest.raises(ValueError, match=r"model/a: .* would not come back as it is"):
        save_checkpoint(tmp_path, 2, {"model": {"a": np.zeros(2, dtype)}}, {})
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (1, 0)])
def test_bad_numbers_are_refused(tmp_path, step, keep):
    with pytest.raises(ValueError, match="need step"):
        save_checkpoint(tmp_path, step, {}, {}, keep=keep)


def test_only_the_groups_asked_for_are_read(tmp_path):
    path = save_small(tmp_path, 1)
    (path / "optimizer.safetensors").unlink()
    assert list(load_checkpoint(path, groups=("model",)).arrays) == ["model"]
    assert list(newest_checkpoint(tmp_path, groups=("model",)).arrays) == ["model"]
    assert load_checkpoint(path, groups=()).arrays == {}
    with pytest.raises(CheckpointError, match="optimizer"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="'ema'"):
        load_checkpoint(path, groups=("ema",))
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model"):
        load_checkpoint(path, groups=("model",))


def test_no_pickle(tmp_path, monkeypatch):
    tree = ast.parse(Path(checkpoint.__file__).read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {getattr(n, "module", None) or a.name for n in imports for a in n.names}
    assert modules and not {"pickle", "shelve", "marshal", "joblib"} & modules
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: fail("pickle was used"))
    version_of(load_checkpoint(save_small(tmp_path, 1)))


# Which checkpoints there are.


def test_a_run_without_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path / "no such run") is None
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path) == []


def test_the_last_ones_are_kept(tmp_path):
    for step in (9, 10, 99_999_999, 100_000_000):
        path = save_small(tmp_path, step)
        assert path == list_checkpoints(tmp_path)[-1]
    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert newest_checkpoint(tmp_path).step == 100_000_000
    save_small(tmp_path, 100_000_001, keep=1)
    assert names(tmp_path) == ["step-100000001"]


def test_what_was_just_saved_is_never_removed(tmp_path):
    """A run that went back to an older checkpoint saves steps below those on the disk."""
    save_small(tmp_path, 300)
    for step in (100, 200):
        save_small(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step-00000200", "step-00000300"]


def test_foreign_names_are_neither_taken_for_checkpoints_nor_touched(tmp_path):
    foreign = {"step-1", "best", ".tmp-notes", "step-00000001.old", "x.tmp-1-ab"}
    for name in foreign:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    path = save_small(tmp_path, 2, keep=1)
    assert list_checkpoints(tmp_path) == [path]
    assert set(names(tmp_path)) == foreign | {path.name}


def test_saving_a_step_again_replaces_it(tmp_path):
    save_small(tmp_path, 1)
    for version in (1, 2, 3):
        save_small(tmp_path, 2, version)
        assert names(tmp_path) == ["step-00000001", "step-00000002"]
        assert version_of(newest_checkpoint(tmp_path)) == version


def test_a_replaced_checkpoint_counts_until_the_new_one_is_there(tmp_path):
    path = save_small(tmp_path, 1)
    path.rename(path.with_name("step-00000001.replaced"))  # killed between the two renames
    assert newest_checkpoint(tmp_path).step == 1
    save_small(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001.replaced", "step-00000002"]
    save_small(tmp_path, 1, version=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    shutil.copytree(path, path.with_name("step-00000001.replaced"))  # killed before the clean-up
    save_small(tmp_path, 1, version=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert version_of(load_checkpoint(path)) == 2


def test_damaged_ones_are_passed_over_with_a_warning(tmp_path, capsys):
    paths = [save_small(tmp_path, step, keep=9) for step in (1, 2, 3)]
    (paths[2] / "model.safetensors").write_bytes(b"")
    (paths[1] / "manifest.json").unlink()
    said = []
    assert version_of(newest_checkpoint(tmp_path, warn=said.append)) == 0
    assert len(said) == 2 and "model.safetensors" in said[0] and "manifest.json" in said[1]
    assert newest_checkpoint(tmp_path).step == 1
    assert capsys.readouterr().err.count("warning: passed over step-") == 2
    (paths[0] / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"none .* is whole.*state\.json"):
        newest_checkpoint(tmp_path, warn=said.append)


def test_a_reader_is_not_fooled_by_a_save_that_goes_on(tmp_path, monkeypatch):
    """The only checkpoint is removed after it was listed, as a newer one has taken its place."""
    save_small(tmp_path, 1, keep=1)
    original, first = checkpoint.load_checkpoint, [1]

    def slow(*args):
        if first:
            save_small(tmp_path, first.pop() + 1, keep=1)
        return original(*args)

    monkeypatch.setattr(checkpoint, "load_checkpoint", slow)
    assert newest_checkpoint(tmp_path, warn=lambda _: None).step == 2


# The flipped bit.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("run"), 1)


def test_a_flip_in_any_byte_is_found(small):
    flips = 0
    for path in files_of(small):
        data = path.read_bytes()
        for i in range(len(data)):
            for mask in (1 << i % 8, 0x20, 0xFF):  # 0x20 turns letters into capitals
                changed = bytearray(data)
                changed[i] ^= mask
                path.write_bytes(changed)
                with pytest.raises(CheckpointError) as caught:
                    load_checkpoint(small)
                assert path.name in str(caught.value)
                flips += 1
        path.write_bytes(data)
    assert flips > 2000
    version_of(load_checkpoint(small))


def test_a_cut_or_longer_file_is_found(small):
    for path in files_of(small):
        data = path.read_bytes()
        for changed in (*(data[:n] for n in range(len(data))), data + b"\0", data + b"\n"):
            path.write_bytes(changed)
            words = path.name if path.name == "manifest.json" else f"{path.name} has .* bytes"
            with pytest.raises(CheckpointError, match=words):
                load_checkpoint(small)
        path.write_bytes(data)
    version_of(load_checkpoint(small))


def test_a_missing_or_unreadable_file_is_found(small):
    for path in files_of(small):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
            load_checkpoint(small)
        path.mkdir()
        with pytest.raises(CheckpointError, match=f"{path.name} can't be read"):
            load_checkpoint(small)
        path.rmdir()
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(small / "nowhere")
    version_of(load_checkpoint(small))


def test_nothing_is_parsed_before_it_is_verified(small, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", lambda data: fail("damaged bytes were parsed"))
    path = small / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint(small)
    path.write_bytes(data)


@pytest.mark.parametrize("version", [2, None, "1"])
def test_a_newer_format_is_refused(small, version):
    path = small / "manifest.json"
    data = path.read_bytes()
    body = json.loads(data) | {"format": version}
    del body["sha256"]
    path.write_bytes(checkpoint._manifest(body))
    with pytest.raises(CheckpointError, match=r"manifest\.json has format"):
        load_checkpoint(small)
    path.write_bytes(data)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "1", '{"sha256": 1}', "[" * 10**5])
def test_a_manifest_of_another_shape_is_refused(small, text):
    path = small / "manifest.json"
    data = path.read_bytes()
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json has changed"):
        load_checkpoint(small)
    path.write_bytes(data)
