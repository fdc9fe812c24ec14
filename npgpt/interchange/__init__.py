"""Models from elsewhere, and ours for elsewhere.

Read in this order:
    stored.py         numbers as model files store them: floats, and llama.cpp's block formats
    safetensors.py    the file that Hugging Face's models come in
    gguf.py           the file of llama.cpp
    architectures.py  what Llama and GPT-2 call each weight, and where it lies in ours
    facts.py          somebody else's configuration, asked with care
    hugging_face.py   a folder of Hugging Face's, in and out
    gguf_model.py     a model in a GGUF file, in and out
    llama2c.py        a model of llama2.c, in and out, and its tokenizer
    card.py           the page that goes with an exported model
    sums.py           checksums of its files

`python -m npgpt.load PATH` makes a run of such a model, `python -m npgpt.export RUN` the reverse.
"""

from pathlib import Path

from npgpt.errors import UserError


def read_model(path, tokenizer_file=None):
    """Read a model from elsewhere, whatever it comes in.

    Args:    path of a folder of Hugging Face's, a .gguf file, or a .bin file of llama2.c's;
             tokenizer_file, the tokenizer of the latter (default: tokenizer.bin beside it).
    Returns: config, a GPTConfig; params, float32 Parameters on the host; tok.
    Raises:  UserError naming what is missing, damaged or not supported.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".gguf" or _magic(path) == b"GGUF":
        if tokenizer_file is not None:
            raise UserError(f"{path} has a tokenizer of its own: leave out --tokenizer-file")
        if not path.is_dir():
            from npgpt.interchange.gguf_model import load_gguf

            return load_gguf(path)
        if not (path / "config.json").exists():
            for file in sorted(path.glob("*.gguf")):
                raise UserError(f"{path} is a folder: give the file in it, {file}")
            if (path / "checkpoints").is_dir():
                raise UserError(f"{path} is a run, and no model from elsewhere: give it to --run")
            raise UserError(
                f"{path} has no config.json, so it is no model of Hugging Face's: "
                "give such a folder, a .gguf file or a .bin of llama2.c"
            )
        from npgpt.interchange.hugging_face import load_folder
        from npgpt.interchange.sums import check_sums

        check_sums(path)
        return load_folder(path)
    if path.suffix in (".safetensors", ".json"):
        raise UserError(f"{path} is a part of a model: give the folder that it lies in")
    from npgpt.interchange.llama2c import TOKENIZER, Llama2cTokenizer, load_llama2c

    config, params = load_llama2c(path)
    if tokenizer_file is None and not (path.parent / TOKENIZER).is_file():
        raise UserError(f"there is no {path.parent / TOKENIZER}: name it with --tokenizer-file")
    return config, params, Llama2cTokenizer.load(tokenizer_file or path.parent / TOKENIZER)


def _magic(path):
    """The first bytes of a file, none if it can't be read: whoever reads it next will say so."""
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError:
        return b""
