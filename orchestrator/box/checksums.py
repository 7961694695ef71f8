"""Checksums of files: those that a box reports, and those of this machine's copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import AgentUnusable
from remote.contract.content_hash import CHECKSUM, CHUNK_BYTES, new_hash
from remote.contract.replies import ChecksumsReply

MOST_FILES = 2000  # in one request
FileName = tuple[str, str, str]  # job, run id, path in the run directory


class Checksum(NamedTuple):
    """The checksum of a file on the box, and the version of the file that it is of."""

    size: int  # bytes
    mtime_ns: int
    checksum: str


def collect_checksums(
    host: str, files: Sequence[FileName], ask: Callable[[Sequence[FileName]], ChecksumsReply]
) -> dict[FileName, Checksum]:
    """Request the checksums of all files, and return those that the box could make.

    Raises:
        AgentUnusable: A reply is about no file or about too many, or an entry is malformed.
    """
    found: dict[FileName, Checksum] = {}
    at = 0
    while at < len(files):
        asked = files[at : at + MOST_FILES]
        reply = ask(asked)
        if not 0 < len(reply.files) <= len(asked):
            raise AgentUnusable(f"asking {host} for checksums: the reply is about {len(reply.files)} files")
        for name, entry in zip(asked, reply.files, strict=False):
            if entry is not None:
                found[name] = _read(host, entry)
        at += len(reply.files)
    return found


def _read(host: str, entry: object) -> Checksum:
    if isinstance(entry, list) and len(entry) == 3:
        size, mtime, checksum = entry
        if type(size) is type(mtime) is int and isinstance(checksum, str) and CHECKSUM.fullmatch(checksum):
            return Checksum(size, mtime, checksum)
    raise AgentUnusable(f"asking {host} for checksums: malformed entry in the reply")


def checksum_of(path: Path, size: int) -> str:
    """Return the checksum of the file at `path`; "" if there is none of `size` bytes. Raise OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size:
            return ""
        made = new_hash()
        while chunk := file.read(CHUNK_BYTES):
            made.update(chunk)
    return made.hexdigest()
