"""Tiny Shakespeare: forty thousand lines of his plays, in one file of 1.1 MB.

The text that Andrej Karpathy's char-rnn learned in 2015, and many small models since: good for
models of characters, which are to be compared with others. So it is cut as his nanoGPT cuts
it: the first nine tenths of the characters, 1,003,854, to train on, and 111,540 to validate.

    python -m data.shakespeare
    python train.py --data shakespeare --tokenizer char
"""

import sys

from npgpt.corpus.download import RemoteFile, fetch, verify
from npgpt.corpus.sources import GivenSource
from npgpt.plan import human_bytes

NAME = "shakespeare"
ORIGIN = "https://github.com/karpathy/char-rnn, data/tinyshakespeare"
LICENCE = "public domain"
FILE = RemoteFile(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def sources(folder, log=print):
    """Fetch the text, unless it is there, and cut it in two.

    Args:    folder for the file; log, called with lines of text.
    Returns: the Source to train on, the Source to validate on: a document each, not stripped.
    Raises:  UserError if it can't be had.
    """
    path = fetch(FILE, folder, log)
    verify(path, FILE)
    text = path.read_bytes()  # of ASCII, so a byte is a character
    cut = len(text) * 9 // 10
    return _piece("to train on", text[:cut]), _piece("to validate on", text[cut:])


def told(folder):
    """Lines about what was fetched."""
    return [f"{folder / FILE.name}, {human_bytes(FILE.size)}, checksum right"]


def _piece(what, text):
    def documents(start=0):
        return iter([text][start:])

    return GivenSource(f"Shakespeare {what}", documents, f"{FILE.sha256}, {len(text)} bytes")


if __name__ == "__main__":
    from data.command import run

    sys.exit(run(sys.modules[__name__], sys.argv[1:]))
