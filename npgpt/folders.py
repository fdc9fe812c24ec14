"""Where npgpt keeps, outside of the project, what it can make or fetch again."""

import os
import sys
from pathlib import Path


def user_cache():
    """The folder in which this system keeps what programs can make again: npgpt's part of it."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "npgpt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "npgpt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npgpt"


def data_folder(name):
    """The folder of a data set that is downloaded: NAME in $NPGPT_DATA, or in the user's cache.

    Args:    name, of the data set.
    Returns: a Path, which may not exist yet.
    """
    root = os.environ.get("NPGPT_DATA")
    return (Path(root).expanduser() if root else user_cache() / "data") / name
