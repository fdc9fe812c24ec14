"""TinyStories: 2.7 million short stories, told with the words that a small child knows.

Ronen Eldan and Yuanzhi Li let GPT-4 tell them, to find out how small a model can be that still
speaks coherent English. A story has some two hundred tokens, and begins, as stories do, once
upon a time. This is the second version, of which GPT-4 wrote all: one file of 2.2 GB to train on,
one of 22.5 MB to validate on.

    python -m data.tinystories
    python train.py --data tinystories --preset tinystories-4m

The sizes and checksums are those that Hugging Face publishes for this revision of the files.

Source: Eldan & Li 2023, "TinyStories: How Small Can Language Models Be and Still Speak Coherent
English?", arXiv:2305.07759.
"""

import sys

from npgpt.corpus.download import RemoteFile, fetch, verify
from npgpt.corpus.sources import FileSource
from npgpt.plan import human_bytes

NAME = "tinystories"
ORIGIN = "https://huggingface.co/datasets/roneneldan/TinyStories"
LICENCE = "CDLA-Sharing-1.0, https://cdla.dev/sharing-1-0"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
TRAIN = RemoteFile(
    "TinyStoriesV2-GPT4-train.txt",
    f"{ORIGIN}/resolve/{REVISION}/TinyStoriesV2-GPT4-train.txt",
    size=2_227_753_162,
    sha256="6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
)
VALID = RemoteFile(
    "TinyStoriesV2-GPT4-valid.txt",
    f"{ORIGIN}/resolve/{REVISION}/TinyStoriesV2-GPT4-valid.txt",
    size=22_502_601,
    sha256="6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
)


def sources(folder, log=print):
    """Fetch the two files, those that are not there.

    Args:    folder for the files; log, called with lines of text.
    Returns: the Source to train on, the Source to validate on: a document is a story.
    Raises:  UserError if one of them can't be had.
    """
    paths = [fetch(file, folder, log) for file in (VALID, TRAIN)]  # the small one first
    valid, train = (FileSource(path, {path.name: path}) for path in paths)
    return train, valid


def told(folder):
    """Check the files, and return lines about them; raises UserError if one is damaged."""
    lines = []
    for file in (TRAIN, VALID):
        verify(folder / file.name, file)
        lines.append(f"{folder / file.name}, {human_bytes(file.size)}, checksum right")
    return lines


if __name__ == "__main__":
    from data.command import run

    sys.exit(run(sys.modules[__name__], sys.argv[1:]))
