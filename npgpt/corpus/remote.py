"""Tables on a server, read from there piece by piece and never stored.

A parquet file begins with its rows and ends with an outline of where they are, so it can be read
over HTTP like a file on disk: seek, ask the server for a range of bytes, read. `RangeFile` does
the asking, a block at a time, and fetches the next block while this one is worked on.
"""

import contextlib
import io
import itertools
import json
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

from npgpt.checkpoint import write_atomic
from npgpt.corpus.network import Failure, content_range, network_errors, open_url, with_retries
from npgpt.corpus.parquet import open_parquet, row_group_documents
from npgpt.corpus.sources import Source, digest
from npgpt.errors import UserError

BLOCK = 4 << 20  # bytes fetched at a time
KEPT_BLOCKS = 3


class RangeFile(io.RawIOBase):
    """A file on a server that can be read and sought in, but is not fetched as a whole.

    Args:    remote, a download.RemoteFile of known size; log, called with lines of text.
    Raises:  UserError, when read, if a block can't be had.
    """

    def __init__(self, remote, log=print):
        self.remote, self.log = remote, log
        self._place = 0
        self._blocks = OrderedDict()  # number → bytes, the newest last
        self._ahead = None  # the number of a block that is being fetched, and its Future

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._place

    def seek(self, offset, whence=io.SEEK_SET):
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.remote.size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer):
        filled = 0
        while filled < len(buffer) and self._place < self.remote.size:
            number, offset = divmod(self._place, BLOCK)
            piece = self._block(number)[offset : offset + len(buffer) - filled]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._place += len(piece)
        return filled

    def _block(self, number):
        """A block, from memory or from the server; the one after it is asked for as well."""
        if number not in self._blocks:
            self._blocks[number] = self._arrived(number) or self._fetch_patiently(number)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            if (number + 1) * BLOCK < self.remote.size and number + 1 not in self._blocks:
                self._fetch_ahead(number + 1)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch_ahead(self, number):
        """Fetch a block in a thread of its own, one that does not keep the program from ending."""
        future = Future()

        def fetch():
            try:
                future.set_result(self._fetch(number))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=fetch, daemon=True).start()
        self._ahead = number, future

    def _arrived(self, number):
        """The block, if it was fetched ahead, and None if not, or in vain."""
        if self._ahead is None or self._ahead[0] != number:
            return None
        (_, future), self._ahead = self._ahead, None
        return None if future.exception() else future.result()

    def _fetch_patiently(self, number):
        try:
            return with_retries(lambda: self._fetch(number), self.log, lambda: len(self._blocks))
        except Failure as failure:
            raise UserError(
                f"could not read {self.remote.url} ({failure}): try again later; what has become "
                "tokens already is kept"
            ) from None

    def _fetch(self, number):
        """One block, in one request.

        Raises:  Failure.
        """
        start = number * BLOCK
        stop = min(start + BLOCK, self.remote.size)
        with open_url(self.remote.url, {"Range": f"bytes={start}-{stop - 1}"}) as response:
            if response.status != 206:
                raise Failure("the server does not send parts of files", passing=False)
            begin, total = content_range(response)
            if begin != start or total not in (None, self.remote.size):
                raise Failure("the server's file is not the one that it was", passing=False)
            with network_errors():
                data = response.read(stop - start)
        if len(data) != stop - start:
            raise Failure("the connection broke off")
        return data


class RemoteParquet(Source):
    """The rows of parquet files on a server, as documents.

    How many documents each group of rows holds is written to a file in a folder, when the group
    has been read. So `documents(n)` goes on after a crash without fetching what comes before.

    Args:    name; files, RemoteFiles of known size; folder for the counts, made if missing; first
             and stop, the numbers of the first document and of the one after the last, or None;
             field, the column that holds the text; log, called with lines of text.
    """

    def __init__(self, name, files, folder, first=0, stop=None, field="text", log=print):
        self.name = name
        self.files, self.folder, self.log = files, Path(folder), log
        self.first, self.stop, self.field = first, stop, field
        self.size_bytes = sum(file.size for file in files) if stop is None else None
        self._position = 0

    def documents(self, start=0):
        skip = self.first + start
        count = None if self.stop is None else max(0, self.stop - skip)
        return itertools.islice(self._read(skip), count)

    def position(self):
        return self._position

    def fingerprint(self):
        known = [(file.url, file.size, file.sha256) for file in self.files]
        return digest("remote parquet", known, self.field, self.first, self.stop)

    def _read(self, skip):
        """Yield the documents after the first `skip`."""
        before = 0  # bytes of earlier files
        for file in self.files:
            counts = _Counts(self.folder / f"{file.name}.json", file.url)
            if counts.total is not None and counts.total <= skip:  # all of it lies before
                skip -= counts.total
            else:
                skip = yield from self._read_file(file, counts, skip, before)
            before += file.size
            self._position = before

    def _read_file(self, file, counts, skip, before):
        """The same for one file; returns how many of the skip are left for the next one."""
        stream = RangeFile(file, self.log)
        parquet = open_parquet(stream, file.url, self.field)
        for group in range(parquet.num_row_groups):
            if counts.known.get(group, skip + 1) <= skip:
                skip -= counts.known[group]
                continue
            count = 0
            for document in filter(None, row_group_documents(parquet, group, file.url, self.field)):
                count += 1
                if count > skip:
                    self._position = before + stream.tell()
                    yield document
            skip = max(0, skip - count)
            counts.add(group, count, parquet.num_row_groups)
        return skip


class _Counts:
    """How many documents the groups of a file hold, of those that have been read; kept on disk.

    known, group → count; total, of all groups, None while some have not been read.
    """

    def __init__(self, path, url):
        self.path, self.url = path, url
        self.known, self.total = {}, None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text("utf-8"))
            if kept["url"] == url:
                self.known = dict(enumerate(kept["counts"]))
                self.total = kept["total"]

    def add(self, group, count, groups):
        """Note the count of one of so many groups."""
        if group == len(self.known):
            self.known[group] = count
            self.total = sum(self.known.values()) if len(self.known) == groups else None
            kept = {"url": self.url, "counts": list(self.known.values()), "total": self.total}
            write_atomic(self.path, json.dumps(kept).encode())
