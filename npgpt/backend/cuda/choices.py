"""Choices that were made by a clock, kept so that they are made only once on a machine.

A clock never says the same thing twice. What it decided is written down, and read by the next
process: so that a run that is resumed, or done again, adds its numbers in the same order.
"""

import contextlib
import json
import os
import re
from pathlib import Path

from npgpt.folders import user_cache


class Choices:
    """A small table on the disk. Where it can't be written, it lasts as long as the process.

    Args:    name, of the table: all that makes another table necessary, versions and device.
    """

    def __init__(self, name):
        root = Path(os.environ.get("NPGPT_CACHE") or user_cache())
        self.path = root / "choices" / f"{re.sub('[^a-z0-9.-]', '-', name.lower())}.json"
        self.table = {}
        # A damaged or missing file is an empty table: all it costs is to choose once more.
        with contextlib.suppress(OSError, ValueError):
            table = json.loads(self.path.read_text("utf-8"))
            self.table = table if isinstance(table, dict) else {}

    def get(self, key):
        """The bytes that were kept for a key, or None."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return bytes.fromhex(self.table[_text(key)])
        return None

    def keep(self, key, value):
        """Keep bytes for a key."""
        self.table[_text(key)] = value.hex()
        part = self.path.with_suffix(f".part{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.table, indent=0), "utf-8")
            os.replace(part, self.path)


def _text(key):
    return " ".join(map(str, key))
