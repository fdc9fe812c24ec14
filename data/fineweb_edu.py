"""FineWeb-Edu: ten billion tokens of that part of the web which teaches something.

Pages of Common Crawl that a classifier found to be of educational value: this is the sample of
some ten billion tokens (GPT-2's), 9.7 million pages in 14 parquet files of 28.5 GB together. They
are not downloaded: what is read of them becomes tokens as it arrives, a group of pages after
another, and only the tokens are kept. Whoever stops in between goes on with the group where it
was. The first 2,000 pages are for validation.

    python -m pip install -e ".[data]"      # pyarrow, which reads parquet
    python -m data.fineweb_edu              # can it be reached? shows the first page
    python train.py --data fineweb-edu

To keep the files themselves, download them by hand, and give --data their folder.

Source: Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at
Scale", arXiv:2406.17557.
"""

import sys

from npgpt.corpus.download import RemoteFile
from npgpt.corpus.remote import RemoteParquet
from npgpt.plan import human_bytes

NAME = "fineweb-edu"
ORIGIN = "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu"
LICENCE = "ODC-By 1.0, and the terms of use of Common Crawl"
REVISION = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
VALID_DOCUMENTS = 2000
SIZES = (
    2_152_819_114, 2_152_222_432, 2_151_796_315, 2_152_437_524, 2_152_338_550, 2_152_189_947,
    2_152_689_867, 2_150_686_637, 2_151_274_846, 2_151_913_277, 2_152_798_864, 2_152_323_681,
    2_152_069_689, 540_632_672,
)  # fmt: skip
FILES = tuple(
    RemoteFile(
        f"{number:03}_00000.parquet",
        f"{ORIGIN}/resolve/{REVISION}/sample/10BT/{number:03}_00000.parquet",
        size,
    )
    for number, size in enumerate(SIZES)
)


def sources(folder, log=print):
    """The pages, to be read from the server when they are asked for.

    Args:    folder for notes of how far the reading has come; log, called with lines of text.
    Returns: the Source to train on, the Source to validate on: a document is a page.
    """
    log(f"{NAME} is read over the network: {human_bytes(sum(SIZES))} if all of it is wanted")
    train = RemoteParquet(NAME, FILES, folder, first=VALID_DOCUMENTS, log=log)
    valid = RemoteParquet(f"{NAME}, the first pages", FILES, folder, stop=VALID_DOCUMENTS, log=log)
    return train, valid


def told(folder):
    """Lines about what is read."""
    return [f"{len(FILES)} parquet files, {human_bytes(sum(SIZES))}, read when they are needed"]


if __name__ == "__main__":
    from data.command import run

    sys.exit(run(sys.modules[__name__], sys.argv[1:]))
