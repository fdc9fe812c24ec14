"""npgpt.load, npgpt.export and the certificate of parity; and llama2.c's files."""

import json
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from interchange_helpers import CONFIGS, SMALL, TOK, folder_of, model_of

from npgpt import export, load
from npgpt.backend import bfloat16
from npgpt.errors import UserError
from npgpt.interchange import card, read_model
from npgpt.interchange.llama2c import load_llama2c, save_llama2c
from npgpt.interchange.safetensors import SINGLE, read_safetensors
from npgpt.interchange.sums import SUMS, check_sums, write_sums
from npgpt.model import GPTConfig
from npgpt.runs import find_run, load_run, make_run_dir
from npgpt.tokenizer import load_tokenizer

# llama2.c.


@pytest.mark.parametrize("tie", [True, False])
def test_a_llama2c_model_comes_back(tmp_path, tie):
    # Heads of 6 channels: of 4, the permutation that RoPE wants is its own inverse.
    config = GPTConfig(**SMALL, n_head=4, n_kv_head=2, tie=tie)
    save_llama2c(tmp_path / "m.bin", config, model_of(config))
    read, params = load_llama2c(tmp_path / "m.bin")
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)


def test_stories260k_comes_back(tmp_path, shared_data):
    origin = shared_data / "models"
    config, params, tok = read_model(origin / "stories260K.bin", origin / "tok512.bin")
    save_llama2c(tmp_path / "m.bin", config, params)
    tok.save(tmp_path)
    assert (tmp_path / "tokenizer.bin").read_bytes() == (origin / "tok512.bin").read_bytes()
    again = read_model(tmp_path / "m.bin")
    np.testing.assert_array_equal(again[1].flat, params.flat)
    assert load_tokenizer(tmp_path).encode("Once upon") == tok.encode("Once upon")


# The programs.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(folder, name="rich llama"):
    config = CONFIGS[name]
    load.main(load.Settings(str(folder_of(folder / "hf", config)), run="it"))
    return config, find_run("it")


def test_load_makes_a_run(folder, capsys):
    config, run_dir = loaded(folder)
    checkpoint = load_run(run_dir)
    assert GPTConfig(**checkpoint.state["config"]) == config
    flat = model_of(config)
    for name, w in checkpoint.arrays["model"].items():
        np.testing.assert_array_equal(w, flat[name])
    assert "python generate.py --run" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a run"):
        load.main(load.Settings("hf", run="it"))


def test_generate_writes_with_it_and_with_the_folder_alike(folder, capsys):
    import generate

    loaded(folder)
    capsys.readouterr()
    settings = dict(prompt="she sells", max_new_tokens=8, temperature=0.0)
    generate.main(generate.Settings(run="it", **settings))
    one = capsys.readouterr().out
    generate.main(generate.Settings(model="hf", **settings))
    assert capsys.readouterr().out == one and one.startswith("she sells")


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_export_and_load_again(folder, kind):
    config, _ = loaded(folder)
    export.main(export.Settings("it", kind, out=folder / "out"))
    path = folder / "out" if kind == "hf" else folder / "out" / "it.gguf"
    read, params, tok = read_model(path)
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)
    with pytest.raises(UserError, match="is there already: choose another --out"):
        export.main(export.Settings("it", kind, out=folder / "out"))
    if kind == "hf":
        card = (path / "README.md").read_text()
        assert "# it\n" in card and "read from `" in card


def npz(folder):
    with np.load(folder / "model.npz") as arrays:
        return dict(arrays)


def test_export_npz(folder):
    config, _ = loaded(folder)
    export.main(export.Settings("it", "npz"))
    out = folder / "runs" / "it" / "export-npz"
    for name, w in model_of(config).items():
        np.testing.assert_array_equal(npz(out)[name], w)
    assert json.loads((out / "gpt_config.json").read_text()) == asdict(config)
    assert load_tokenizer(out / "tokenizer").tokens == TOK.tokens


def test_export_for_llama2c(folder, capsys):
    config, _ = loaded(folder, "llama")
    export.main(export.Settings("it", "llama2c", out=folder / "out"))
    assert "run.c knows SentencePiece alone" in capsys.readouterr().out
    read, params = load_llama2c(folder / "out" / "model.bin")
    assert read == config
    np.testing.assert_array_equal(params.flat, model_of(config).flat)
    assert load_tokenizer(folder / "out" / "tokenizer").tokens == TOK.tokens


def test_rounded_to_bf16(folder):
    config, _ = loaded(folder)
    export.main(export.Settings("it", "hf", dtype="bf16", out=folder / "out"))
    assert {t.kind for t in read_safetensors(folder / "out" / SINGLE).values()} == {"BF16"}
    w, read = model_of(config)["wte"], read_model(folder / "out")[1]["wte"]
    np.testing.assert_array_equal(read, w.astype(bfloat16()).astype(np.float32))


@pytest.mark.parametrize("kind", export.FORMATS)
def test_what_stands_for_no_token_is_not_exported(folder, kind):
    """Nobody else knows not to draw it."""
    config = CONFIGS["llama"]
    padded = replace(config, vocab_size=config.vocab_size + 22, padding=22)
    params = model_of(padded)
    load.save_run(make_run_dir("it", "it"), padded, params, TOK, "here")
    out = folder / "out"
    export.main(export.Settings("it", kind, out=out))
    read, weights = {
        "hf": lambda: read_model(out)[:2],
        "gguf": lambda: read_model(out / "it.gguf")[:2],
        "llama2c": lambda: load_llama2c(out / "model.bin"),
        "npz": lambda: (GPTConfig(**json.loads((out / "gpt_config.json").read_text())), npz(out)),
    }[kind]()
    assert read == config
    np.testing.assert_array_equal(weights["wte"], params["wte"][: config.vocab_size])
    if kind == "hf":
        about = json.loads((out / "config.json").read_text())
        assert about["vocab_size"] == config.vocab_size == TOK.vocab_size


def test_the_certificate(folder, capsys):
    """benchmarks/parity.py on a tiny model; a Python without transformers is said to be none."""
    from benchmarks import parity

    loaded(folder)
    nothing = shutil.which("false") or "no-such-program"
    line = ["it", "--tokens", "20", "--check", "--json", "figures.json", "--transformers4", nothing]
    status = parity.main([*line, "--transformers5", nothing, "--llama-cpp", nothing])
    told = capsys.readouterr().out
    assert status == 0, told
    assert told.count("not run") >= 3 and "MISSED" not in told
    names = [row["name"] for row in json.loads((folder / "figures.json").read_text())["rows"]]
    assert "npgpt decoder, float32: share of tokens that agree" in names


def test_a_flipped_bit_is_noticed(folder):
    """safetensors has no checksum: the file loads, and the model has a weight of 10³⁰."""
    loaded(folder)
    export.main(export.Settings("it", "hf", out=folder / "out"))
    path = folder / "out" / SINGLE
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 0x40
    path.write_bytes(raw)
    read_safetensors(path)  # as far as the format can tell, all is well
    with pytest.raises(UserError, match="has changed since it was written"):
        read_model(folder / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing, and SHA256SUMS lists it"):
        read_model(folder / "out")


def test_checksums_are_of_all_files_but_themselves(folder):
    (folder / "below").mkdir()
    for name in ("a", "below/b"):
        (folder / name).write_text(name)
    for _ in "ab":
        write_sums(folder)
    check_sums(folder)
    listed = [line.split()[1] for line in (folder / SUMS).read_text().splitlines()]
    assert listed == ["a", "below/b"]
    (folder / "below" / "b").write_text("c")
    with pytest.raises(UserError, match="b has changed since it was written"):
        check_sums(folder)


def test_the_card_tells_what_the_weights_have_seen(folder, monkeypatch):
    """Of a run that went on, only what came before; and without matplotlib, a table alone."""

    def plot_run(run_dir):
        raise UserError("install matplotlib")

    monkeypatch.setattr(card, "plot_run", plot_run)
    log = [{"step": n, "valid_loss": 5.0 - n / 100, "bits_per_byte": 1.5} for n in range(61)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    settings = dict(batch_size=4, accumulate=2, block_size=16, data="plays", lr=1e-3)
    state = {"settings": settings | dict(weight_decay=0.1, seed=1)}
    card.write_card(folder, folder, SimpleNamespace(step=48, state=state), CONFIGS["llama"])
    text = (folder / "README.md").read_text()
    assert "48 steps, 6,144 tokens, of `plays`; " in text and "![" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| 0", "| 1", "| 4", "| 5"))]
    assert rows[-1] == "| 48 | 4.5200 | 1.5000 |" and 1 < len(rows) <= card.ROWS


def test_a_failed_export_leaves_nothing(folder, monkeypatch):
    loaded(folder)

    def fail(*args):
        raise OSError(28, "No space left on device")

    for step in ("npgpt.interchange.card.write_card", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(step, fail)
            with pytest.raises(UserError, match=r"can't write .*No space left"):
                export.main(export.Settings("it", "hf", out=folder / "out"))
        assert sorted(p.name for p in folder.iterdir()) == ["hf", "runs"]


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("nothing", "there is no file nothing"),
        ("empty", "has no config.json"),
        (".", r"is a folder: give the file in it, m\.gguf"),
        ("run", "run is a run, and no model from elsewhere: give it to --run"),
        ("m.safetensors", "is a part of a model: give the folder"),
        ("m.bin", "too few for a llama2.c model"),
        ("m.gguf", "no whole GGUF file|is no GGUF file"),
    ],
)
def test_paths_that_are_no_models(folder, path, sentence):
    (folder / "empty").mkdir()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    for name in ("m.safetensors", "m.bin", "m.gguf"):
        (folder / name).write_bytes(b"1234")
    with pytest.raises(UserError, match=sentence):
        read_model(path)


def test_programs_name_their_mistakes(capsys, folder):
    with pytest.raises(UserError, match="name the model: python -m"):
        load.Settings()
    with pytest.raises(UserError, match="there is no trained model under runs"):
        export.main(export.Settings())
    with pytest.raises(UserError, match="--dtype bf16 is for --format hf: leave one of them out"):
        export.main(export.Settings(format="gguf", dtype="bf16"))
