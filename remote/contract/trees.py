"""The hash of a tree of files. It is the same on laptop and box."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Dict, Iterable, Iterator, Mapping, NamedTuple, Optional, Union

from remote.contract.files import open_to_read, read_bytes
from remote.contract.protocol import AgentError

HEAD_BYTES = 4096
READ_BYTES = 1 << 20
MANIFEST_BYTES = 1 << 30  # the manifest of a million files has 200 MB
_AnyPath = Union[str, bytes, Path]


class TreeEntry(NamedTuple):
    """One file of a tree."""

    kind: str  # "file", "exec" or "link"
    sha256: str  # of the content, or of the target of the link


class Reading(NamedTuple):
    """The result of reading one file."""

    entry: TreeEntry
    size: int  # bytes; 0 for a link
    head: bytes  # the first bytes of a file


def manifest(entries: Mapping[str, TreeEntry]) -> bytes:
    """Return the canonical text of a tree: equal for equal trees on every machine, different for different trees."""
    rows = [[_portable(path), *entries[path]] for path in sorted(entries, key=os.fsencode)]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def manifest_path(tree: Path) -> Path:
    """Return the file with the manifest of a snapshot on the box, next to its directory."""
    return tree.with_name(tree.name + ".json")


def read_manifest(tree: Path) -> Optional[Dict[str, TreeEntry]]:
    """Return the entries of a snapshot on the box; None if its manifest is missing or does not match its name."""
    data = read_bytes(manifest_path(tree), MANIFEST_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != tree.name:
        return None
    rows = json.loads(data.decode("ascii"))
    return {
        os.fsdecode(path.encode("utf-8", "surrogateescape")): TreeEntry(kind, digest) for path, kind, digest in rows
    }


def tree_hash(entries: Mapping[str, TreeEntry]) -> str:
    """Return 64 hex digits that identify the names, kinds and contents of a tree."""
    return hashlib.sha256(manifest(entries)).hexdigest()


def read(path: _AnyPath, head_bytes: int = HEAD_BYTES) -> Reading:
    """Read one file once.

    Args:
        path: A regular file or a symlink. A symlink is not followed.
        head_bytes: How many of the first bytes to return, at most READ_BYTES.

    Raises:
        AgentError: `not_a_file`: it is neither a regular file nor a symlink.
        OSError: It cannot be read.
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
    """Return the entries of all files below `directory`, or only of those in `names`. Raise as `read` does."""
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
    """Return the name as its bytes define it, independent of the locale of this machine."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")
