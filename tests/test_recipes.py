"""The recipes: what they promise is what they give, as far as that shows without a network."""

import hashlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from file_server import FileServer, status

import data
from data import RECIPES, fineweb_edu, shakespeare, tinystories
from npgpt.corpus import network
from npgpt.corpus.download import RemoteFile
from npgpt.corpus.sources import Source
from npgpt.folders import data_folder, user_cache

ROOT = Path(__file__).resolve().parents[1]
FETCHED = (shakespeare, tinystories, fineweb_edu)


@pytest.fixture
def server(monkeypatch):
    """A server without files yet; no pause is really made."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(network, "sleep", lambda seconds: None)
    with FileServer() as server:
        yield server


def served(server, name, content):
    """Put a file on the server; returns it as a recipe knows it."""
    server.files[f"/{name}"] = content
    return RemoteFile(name, server.url(name), len(content), hashlib.sha256(content).hexdigest())


def run(module, *argv):
    """Run a recipe as a program, in this process: its exit status."""
    return importlib.import_module("data.command").run(module, list(map(str, argv)))


# The registry.


def test_recipes_by_name():
    assert list(RECIPES) == ["storybook", "tinystories", "shakespeare", "fineweb-edu"]
    assert len(RECIPES) == 4 and "fineweb-edu" in RECIPES and "mybook.txt" not in RECIPES
    assert RECIPES["fineweb-edu"] is fineweb_edu
    with pytest.raises(KeyError):
        RECIPES["mybook.txt"]
    for module in FETCHED:
        assert RECIPES[module.NAME] is module
    assert all(name in data.__doc__ for name in RECIPES)


def test_importing_the_recipes_touches_no_network():
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "sys.modules['pyarrow'] = None\n"
        "from data import RECIPES\n"
        "print(sorted(RECIPES[name].__name__ for name in RECIPES))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "data.fineweb_edu" in done.stdout, done.stderr


def test_what_is_known_of_the_files_is_well_formed():
    files = [shakespeare.FILE, tinystories.TRAIN, tinystories.VALID, *fineweb_edu.FILES]
    for file in files:
        assert file.url.startswith("https://") and file.url.endswith(f"/{file.name}")
        assert file.size > 1_000_000
    for file in files[:3]:
        assert len(bytes.fromhex(file.sha256)) == 32
    assert len(fineweb_edu.FILES) == 14 and sum(fineweb_edu.SIZES) == 28_518_193_415
    assert fineweb_edu.FILES[13].url.endswith("/sample/10BT/013_00000.parquet")


def test_where_downloads_lie(monkeypatch):
    monkeypatch.delenv("NPGPT_DATA", raising=False)
    assert data_folder("x") == user_cache() / "data" / "x"
    monkeypatch.setenv("NPGPT_DATA", "~/texts")
    assert data_folder("x") == Path.home() / "texts" / "x"


@pytest.mark.parametrize("module", FETCHED, ids=lambda m: m.NAME)
def test_help_teaches(module, capsys, monkeypatch):
    monkeypatch.setenv("NPGPT_DATA", "/somewhere")
    assert run(module, "--help") == 0
    page = capsys.readouterr().out
    program = module.__name__.rpartition(".")[2]
    for part in (
        f"python -m data.{program} ", "--folder", "NPGPT_DATA", f"--data {module.NAME}",
        str(Path("/somewhere") / module.NAME), module.__doc__.splitlines()[0],
    ):  # fmt: skip
        assert part in page


@pytest.mark.parametrize("module", FETCHED, ids=lambda m: m.NAME)
def test_offline_is_a_sentence(module, server, tmp_path, monkeypatch, capsys):
    def nowhere(url, headers):
        raise network.Failure("no connection: Name or service not known", reached=False)

    pytest.importorskip("pyarrow", reason="reading .parquet needs pyarrow")
    for name in ("download", "remote"):
        monkeypatch.setattr(f"npgpt.corpus.{name}.open_url", nowhere)
    assert run(module, "--folder", tmp_path) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: could not ") and err.count("\n") == 1
    assert "https://" in err and "Name or service not known" in err
    assert "trying again in 2 s" in out


# What they give.


def test_shakespeare_is_cut_as_nanogpt_cuts_it(server, tmp_path, monkeypatch, capsys):
    text = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" + b"x\n" * 1001
    monkeypatch.setattr(shakespeare, "FILE", served(server, "input.txt", text))
    train, valid = shakespeare.sources(tmp_path)
    (first,), (second,) = train.documents(), valid.documents()
    assert first + second == text and len(first) == int(0.9 * len(text))
    assert list(train.documents(1)) == [] and train.fingerprint() != valid.fingerprint()
    assert run(shakespeare, "--folder", tmp_path) == 0
    out = capsys.readouterr().out
    for part in ("checksum right", "public domain", "First Citizen:", "char-rnn", str(tmp_path)):
        assert part in out
    assert len(server.requests) == 1


def test_shakespeare_is_the_file_that_the_recipe_knows(shared_data):
    train, valid = shakespeare.sources(shared_data / "tinyshakespeare")
    sizes = [len(next(source.documents())) for source in (train, valid)]
    assert sizes == [1_003_854, 111_540], "nanoGPT's"


def test_a_damaged_shakespeare_is_found_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "input.txt").write_bytes(b"x" * shakespeare.FILE.size)
    assert run(shakespeare, "--folder", tmp_path) == 2
    assert "does not have the checksum that it should have" in capsys.readouterr().err


def test_tinystories_are_two_files_of_stories(server, tmp_path, monkeypatch, capsys):
    train = b"Once upon a time\nthere was a cat.\n<|endoftext|>\nOne day\n<|endoftext|>\n"
    monkeypatch.setattr(tinystories, "TRAIN", served(server, "train.txt", train))
    monkeypatch.setattr(tinystories, "VALID", served(server, "valid.txt", b"A dog.<|endoftext|>"))
    assert run(tinystories, "--folder", tmp_path) == 0
    out = capsys.readouterr().out
    for part in ("train.txt", "valid.txt", "checksum right", "CDLA-Sharing-1.0", "there was a cat"):
        assert part in out
    first, second = tinystories.sources(tmp_path)
    assert list(first.documents()) == [b"Once upon a time\nthere was a cat.", b"One day"]
    assert list(second.documents()) == [b"A dog."]
    assert isinstance(first, Source) and len(server.requests) == 2
    (tmp_path / "train.txt").write_bytes(train.replace(b"cat", b"cow"))
    assert run(tinystories, "--folder", tmp_path) == 2


def test_fineweb_is_read_and_not_stored(server, tmp_path, monkeypatch, capsys):
    pq = pytest.importorskip("pyarrow.parquet", reason="reading .parquet needs pyarrow")
    import pyarrow as pa

    stream = io.BytesIO()
    pages = [f"Page {i} teaches." for i in range(30)]
    pq.write_table(pa.table({"text": pages}), stream, row_group_size=7)
    monkeypatch.setattr(fineweb_edu, "FILES", [served(server, "0.parquet", stream.getvalue())])
    monkeypatch.setattr(fineweb_edu, "VALID_DOCUMENTS", 10)
    train, valid = fineweb_edu.sources(tmp_path, lambda line: None)
    assert [d.decode() for d in train.documents()] == pages[10:]
    assert [d.decode() for d in valid.documents()] == pages[:10]
    assert run(fineweb_edu, "--folder", tmp_path) == 0
    out = capsys.readouterr().out
    assert "Page 10 teaches." in out and "ODC-By 1.0" in out and "28.5 GB" in out
    assert [f.name for f in tmp_path.iterdir()] == ["0.parquet.json"]
    assert (tmp_path / "0.parquet.json").stat().st_size < 200


def test_a_server_that_refuses_is_a_sentence(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shakespeare, "FILE", served(server, "input.txt", b"text"))
    server.plan = [status(404)]
    assert run(shakespeare, "--folder", tmp_path) == 2
    assert "answered 404" in capsys.readouterr().err


def test_a_recipe_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "data.shakespeare", "--fodler", "x"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: there is no option --fodler: did you mean --folder?\n"
