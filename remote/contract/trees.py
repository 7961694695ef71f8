"""The hash of a tree of files, the same on laptop and box."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Dict, Iterable, Iterator, Mapping, NamedTuple, Optional, Union

from remote.contract.files import open_to_read
from remote.contract.protocol import AgentError

HEAD_BYTES = 4096
READ_BYTES = 1 << 20
_AnyPath = Union[str, bytes, Path]


class TreeEntry(NamedTuple):
    kind: str  # "file", "exec" or "link"
    sha256: str  # of the bytes, or of the link's target


class Reading(NamedTuple):
    entry: TreeEntry
    size: int  # bytes; 0 for a link
    head: bytes  # the first bytes of a file


def manifest(entries: Mapping[str, TreeEntry]) -> bytes:
    """The canonical text of a tree: the same for the same tree on every machine, different for any other."""
    rows = [[_portable(path), *entries[path]] for path in sorted(entries, key=os.fsencode)]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def tree_hash(entries: Mapping[str, TreeEntry]) -> str:
    """64 hex digits that stand for names, kinds and contents of a tree."""
    return hashlib.sha256(manifest(entries)).hexdigest()


def read(path: _AnyPath, head_bytes: int = HEAD_BYTES) -> Reading:
    """One file, read once, and its first `head_bytes`, at most READ_BYTES.

    Raises AgentError for what is no regular file or symlink, OSError as `open` does.
    """
    name = os.fsencode(path)
    mode = os.lstat(name).st_mode
    if stat.S_ISLNK(mode):
        return Reading(TreeEntry("link", hashlib.sha256(os.readlink(name)).hexdigest()), 0, b"")
    if not stat.S_ISREG(mode):
        raise AgentError("not_a_file", f"{os.fsdecode(name)} is neither a regular file nor a symlink")
    digest, head, size = hashlib.sha256(), b"", 0
    with open_to_read(os.fsdecode(name)) as file:
        executable = os.fstat(file.fileno()).st_mode & 0o111
        for chunk in iter(lambda: file.read(READ_BYTES), b""):
            head = head or chunk[:head_bytes]
            size += len(chunk)
            digest.update(chunk)
    return Reading(TreeEntry("exec" if executable else "file", digest.hexdigest()), size, head)


def scan(directory: _AnyPath, names: Optional[Iterable[str]] = None) -> Dict[str, TreeEntry]:
    """The entries of `directory`: every file below it, or those in `names`. Raises as `read` does."""
    root = os.fsencode(directory)
    found = _below(root) if names is None else (os.fsencode(name) for name in names)
    return {os.fsdecode(name): read(os.path.join(root, name)).entry for name in found}


def _below(root: bytes) -> Iterator[bytes]:
    for base, directories, files in os.walk(root, onerror=_raise):
        links = [name for name in directories if os.path.islink(os.path.join(base, name))]
        for name in files + links:
            yield os.path.relpath(os.path.join(base, name), root)


def _raise(error: OSError) -> None:
    raise error


def _portable(path: str) -> str:
    """The name by its bytes, whatever this machine's locale makes of them."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")
