"""Files from the network, whole or not at all.

What has come of a file lies beside it as `NAME.part`, and a download that is interrupted, by
Ctrl-C, a lost connection or a power cut, goes on where it stopped. Three things must not happen:

    Two files in one    The server says with each file what version it is (its ETag). We note it
                        beside the part, and ask for "the rest, if it is still this one": a
                        server whose file has changed then sends the whole of the new one. Or
                        we know the checksum, and find out in the end.
    A file cut short    The length is compared with what the server announced and with what the
                        recipe knows, the checksum with the recipe's; only then does the file get
                        its name.
    Two at once         A lock in the folder: the second process waits, and finds the file there.

network.py knows how a server is asked, and when again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from npgpt.checkpoint import write_atomic
from npgpt.corpus.network import (
    Failure,
    content_range,
    network_errors,
    number,
    open_url,
    with_retries,
)
from npgpt.errors import UserError
from npgpt.locks import locked
from npgpt.plan import human_bytes

CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """A file as a recipe knows it, to the bit. None for what is not known."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


def fetch(remote, folder, log=print):
    """Download a file, unless it is there already; go on with an earlier attempt if there is one.

    Args:    remote, a RemoteFile; folder, made if missing; log, called with lines of text.
    Returns: its path.
    Raises:  UserError if it can't be had; what has come of it is kept where that is of use.
    """
    path = Path(folder) / remote.name
    if _is_there(path, remote):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.parent / ".lock"
        with locked(lock, lambda: log(f"another process downloads to {folder}: waiting for it")):
            if not _is_there(path, remote):  # it may have come while we waited
                _Download(remote, path, log).run()
    except OSError as error:
        raise UserError(
            f"can't write {path} ({error.strerror or error}): "
            "choose another folder, with NPGPT_DATA for instance"
        ) from None
    return path


def verify(path, remote):
    """Compare a file with what is known of it, its checksum too.

    Args:    path; remote, a RemoteFile.
    Raises:  UserError if it is another file, or damaged.
    """
    size = os.path.getsize(path)
    if remote.size is not None and size != remote.size:
        raise UserError(
            f"{path} has {size:,} bytes, not {remote.size:,}: it is cut off, or another file; "
            "remove it, and it is downloaded anew"
        )
    if remote.sha256 is not None and file_sha256(path) != remote.sha256:
        raise UserError(
            f"{path} does not have the checksum that it should have: it is damaged, or another "
            "file; remove it, and it is downloaded anew"
        )


def file_sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Download:
    """One file on its way: what is known of it, and what has come of it."""

    def __init__(self, remote, path, log):
        self.remote, self.path, self.log = remote, path, log
        self.part = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")  # what the part is a part of
        self.pieced = self.have() > 0  # whether it comes from more than one answer
        self.furthest = 0  # bytes that have come in one piece or several, at the best time

    def have(self):
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self):
        """Fetch the file; give it its name when it is whole.

        Raises:  UserError; OSError if the folder can't be written.
        """
        size = "" if self.remote.size is None else f", {human_bytes(self.remote.size)}"
        there = f", of which {human_bytes(self.have())} are there" if self.have() else ""
        self.log(f"fetching {self.remote.url}{size}{there}")
        try:
            with_retries(self.attempt, self.log, lambda: self.furthest // CHUNK)
        except Failure as failure:
            raise UserError(
                f"could not fetch {self.remote.url} ({failure}): try again later, or download it "
                f"by hand and put it at {self.path}"
            ) from None
        except KeyboardInterrupt:
            self.log(f"stopped; {self.part} is kept, and the same command goes on with it")
            raise
        try:
            verify(self.part, self.remote)
        except UserError:
            self.discard()
            if not self.pieced:
                raise UserError(
                    f"what came from {self.remote.url} is not the file that it was: its size or "
                    f"its checksum is another; try again, or put the right one at {self.path}"
                ) from None
            self.log(f"the pieces of {self.path.name} do not fit together: fetching it anew")
            self.pieced = False
            self.run()
            return
        with open(self.part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)

    def attempt(self):
        """Make one request, and keep all that comes of it.

        Raises:  Failure if that is not the whole file.
        """
        have, headers = self.resumable()
        if have and have == self.remote.size:
            return
        self.check_room(self.remote.size)
        try:
            response = open_url(self.remote.url, headers)
        except Failure as failure:
            if failure.status != 416:
                raise
            self.discard()  # there is no byte after those that we have: it was another file
            raise Failure("what has come so far is of another file") from None
        with response:
            start, total = self.begin(response, have)
            self.receive(response, start, total)
        if total is not None and self.have() != total:
            raise Failure(f"the connection broke off after {human_bytes(self.have())}")

    def resumable(self):
        """How many bytes of the part can be kept, and the headers that ask for the rest.

        With a checksum the version does not matter: pieces of two are found out in the end. And
        not to ask for it is safer, as the machines of a large server may disagree about its name.
        """
        have, version = self.have(), None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text("utf-8"))
            if note["url"] == self.remote.url:
                version = note["version"]
        too_long = self.remote.size is not None and have > self.remote.size
        if not have or too_long or (version is None and self.remote.sha256 is None):
            return 0, {}
        headers = {"Range": f"bytes={have}-"}
        return have, headers if self.remote.sha256 else {**headers, "If-Range": version}

    def begin(self, response, have):
        """Read the head of an answer; make the part ready for what follows.

        Returns: where the body begins in the file; the file's length, None if not announced.
        Raises:  Failure if this is not the file; UserError if the disk is too small for it.
        """
        size, headers = self.remote.size, response.headers
        start, total = 0, number(headers.get("Content-Length"))
        if response.status == 206:
            start, total = content_range(response)
            if start != have:
                self.discard()
                raise Failure("the server sent another part than the one asked for")
        if headers.get_content_type() == "text/html" and (total is None or total != size):
            raise Failure("the server sent a web page in place of the file", passing=False)
        if size is not None and total not in (None, size):
            raise Failure(f"the file has {total:,} bytes there, not {size:,}", passing=False)
        self.check_room(total)
        if start:
            self.pieced = True
            return start, total
        if have:
            self.log("the server sends the file from its beginning")
        tag = headers.get("ETag", "W/")
        weak = tag.startswith("W/")  # such a tag does not promise the same bytes
        version = headers.get("Last-Modified") if weak else tag
        self.part.unlink(missing_ok=True)
        write_atomic(self.note, json.dumps({"url": self.remote.url, "version": version}).encode())
        return start, total

    def receive(self, response, start, total):
        """Write the body behind what is there."""
        limit = self.remote.size or total
        # No bar where nobody watches: a file or a pipe gets the lines alone.
        bar = tqdm(
            total=limit, initial=start, desc=self.path.name, unit="B", unit_scale=True,
            dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        with bar, self.full_disk(), open(self.part, "ab") as file:
            while chunk := _read(response):
                file.write(chunk)
                start += len(chunk)
                self.furthest = max(self.furthest, start)
                bar.update(len(chunk))
                if limit is not None and start > limit:
                    raise Failure(f"more than {limit:,} bytes came", passing=False)

    def check_room(self, total):
        """Refuse what does not fit on the disk, before it is filled.

        Raises:  UserError.
        """
        free = shutil.disk_usage(self.path.parent).free
        needed = 0 if total is None else total - self.have()
        if needed > free:
            raise UserError(
                f"{self.path} needs {human_bytes(needed)} more, and {human_bytes(free)} are free: "
                "make room, or choose another folder, with NPGPT_DATA for instance"
            )

    @contextlib.contextmanager
    def full_disk(self):
        """What to say when another program has filled the disk in the meantime."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{self.part} can't grow ({error.strerror}): make room on that disk; the same "
                "command then goes on with it"
            ) from None

    def discard(self):
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _is_there(path, remote):
    """Whether the file is there; raises UserError if what is there can't be the file."""
    if not path.is_file():
        return False
    verify(path, RemoteFile(remote.name, remote.url, remote.size))
    return True


def _read(response):
    with network_errors():
        return response.read(CHUNK)
