"""The listing of a directory with data: equal on laptop and box if names, sizes and dates are the same."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Dict, Iterator, Mapping, NamedTuple, Tuple

from remote.contract.paths import PARTIAL


class DataEntry(NamedTuple):
    """One file of a dataset. Dates count in seconds, because not every copy keeps more."""

    kind: str  # "file", "link" or "other"
    size: int = 0  # bytes
    mtime: int = 0  # seconds since the epoch
    target: str = ""  # of a link


def look(path: bytes) -> DataEntry:
    """Return what is at `path`. Raise OSError if nothing is, or if it cannot be read."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return DataEntry("link", target=_text(os.readlink(path)))
    if stat.S_ISREG(found.st_mode):
        return DataEntry("file", found.st_size, int(found.st_mtime))
    return DataEntry("other")


def below(directory: bytes) -> Iterator[Tuple[str, DataEntry]]:
    """Yield the path and the entry of everything below a directory, except directories. Links are not followed.

    Raises:
        OSError: A directory cannot be read.
    """
    for base, directories, files in os.walk(directory, onerror=_raise):
        directories[:] = [name for name in directories if name != os.fsencode(PARTIAL)]
        links = [name for name in directories if os.path.islink(os.path.join(base, name))]
        for name in files + links:
            path = os.path.join(base, name)
            yield _text(os.path.relpath(path, directory)), look(path)


def digest(entries: Mapping[str, DataEntry]) -> str:
    """Return 64 hex digits that identify a listing."""
    rows: Dict[str, Tuple[object, ...]] = {name: tuple(entries[name]) for name in sorted(entries)}
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()


def _text(name: bytes) -> str:
    """Return the name as its bytes define it, independent of the locale of this machine."""
    return name.decode("utf-8", "surrogateescape")


def _raise(error: OSError) -> None:
    raise error
