"""Data that is sent to a box: its files, what is left out, and the hash of its content.

The hash of a file is kept in orch's cache, by size, date and inode: a large directory that has not changed is not read
again at each launch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import OrchError, SpecError
from orchestrator.system import cache
from remote.contract import datasets, trees
from remote.contract.datasets import DataEntry
from remote.contract.files import read_json, sha256_of
from remote.contract.records import write_record
from remote.contract.schema import Malformed, from_json

SETTLED_S = 2.0  # a file changed more recently than this may change again with the same date
MAX_CACHE = 1 << 29  # bytes
Progress = Callable[[int], None]  # gets the bytes that have been read


@dataclass(frozen=True)
class Dataset:
    """A file or a directory that is sent.

    Attributes:
        directory: The directory of the files.
        name: The name of a single file in it; "" for the complete directory.
        entries: The files and links, by their paths.
        skipped: What is not sent, and why.
    """

    directory: Path
    name: str
    entries: Mapping[str, DataEntry]
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes of the files in bytes; a link has 0."""
        return {name: entry.size for name, entry in self.entries.items()}

    @property
    def size(self) -> int:
        """Return the size of all files in bytes."""
        return sum(self.sizes.values())

    @property
    def listing(self) -> str:
        """Return the digest by which the box checks that everything has arrived."""
        return datasets.digest(self.entries)


def examine(path: Path) -> Dataset:
    """Return the data at `path`. A link to it is followed; those inside are sent as links.

    Raises:
        SpecError: There is nothing to send, or it cannot be read.
    """
    doing = f"reading the data {path}"
    place = Path(os.path.realpath(path))
    try:
        if place.is_file():
            return Dataset(place.parent, place.name, {place.name: datasets.look(os.fsencode(place))})
        if not place.is_dir():
            what = "neither a file nor a directory" if os.path.lexists(place) else "no such file or directory"
            raise SpecError(f"{doing}: {what}", "check the path; it is relative to the current directory")
        found = dict(datasets.below(os.fsencode(place)))
    except OSError as error:
        raise SpecError(f"{doing}: {error.filename}: {error.strerror}", "make it readable") from None
    skipped = {name: why for name, entry in found.items() if (why := _why_skipped(name, entry))}
    entries = {name: entry for name, entry in found.items() if name not in skipped}
    if not entries:
        raise SpecError(f"{doing}: it contains no files")
    return Dataset(place, "", entries, tuple(skipped.items()))


def _why_skipped(name: str, entry: DataEntry) -> str:
    parts = name.split("/")
    if ".git" in parts:
        return "git's own data"
    if entry.kind == "other":
        return "not a regular file"
    if entry.kind == "link":
        leads_to = os.path.normpath(os.path.join(os.path.dirname(name), entry.target))
        if os.path.isabs(entry.target) or leads_to.split("/")[0] == "..":
            return f"a link out of the directory, to {entry.target}"
    return ""


# --- the hash of the content -------------------------------------------------------------------------


def _read_known(value: Any) -> dict[str, tuple[str, str]]:
    """Read the well-formed entries: path to what the file looked like, and its hash."""
    entries = value.items() if isinstance(value, dict) else ()
    return {
        name: (pair[0], pair[1])
        for name, pair in entries
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
    }


@dataclass(frozen=True)
class _Known:
    json_head: ClassVar[dict[str, int]] = {"schema": 1}
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict, metadata={"read": _read_known})


def content_hash(data: Dataset, progress: Progress = lambda size: None) -> str:
    """Return 64 hex digits that identify names and contents.

    Args:
        data: The data.
        progress: Called after each file that was read.

    Raises:
        OrchError: A file changes or is removed meanwhile, or cannot be read.
    """
    record = cache.directory() / f"{cache.DATA_PREFIX}{sha256(os.fsencode(data.directory)).hexdigest()[:32]}.json"
    known = _read_cache(record)
    now: dict[str, tuple[str, str]] = {}
    entries: dict[str, trees.TreeEntry] = {}
    read = 0
    for name, entry in data.entries.items():
        if entry.kind == "link":
            entries[os.fsdecode(name.encode("utf-8", "surrogateescape"))] = trees.TreeEntry(
                "link", sha256(entry.target.encode("utf-8", "surrogateescape")).hexdigest()
            )
            continue
        looks, digest, is_settled = _hash(data.directory / name, known.get(name))
        if is_settled:
            now[name] = (looks, digest)
        entries[name] = trees.TreeEntry("file", digest)
        read += entry.size
        progress(read)
    if now != known:
        write_record(record, _Known(now))
    elif known:
        os.utime(record)  # in use: not to be removed from the cache
    return trees.tree_hash(entries)


def _read_cache(record: Path) -> dict[str, tuple[str, str]]:
    try:
        return dict(from_json(_Known, read_json(record, MAX_CACHE) or {}, longest=None).files)
    except Malformed:
        return {}


def _hash(path: Path, known: tuple[str, str] | None) -> tuple[str, str, bool]:
    """Return what a file looks like, its hash, and whether both may be kept."""
    try:
        with path.open("rb") as file:
            looks = _looks(os.fstat(file.fileno()))
            if known is not None and known[0] == looks:
                return looks, known[1], True
            began = time.time()
            digest = sha256_of(file)
            found = os.fstat(file.fileno())
    except OSError as error:
        raise OrchError(f"reading the data {path}: {error.strerror}", "run the command again") from None
    if _looks(found) != looks:
        raise OrchError(f"reading the data {path}: it changes while it is read", "wait until it is complete")
    return looks, digest, began - found.st_mtime > SETTLED_S


def _looks(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
