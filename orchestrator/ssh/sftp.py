"""File copies of the `fabric` client: push, upload and pull by SFTP, with the same results as by rsync.

SFTP has no checksums, so the agent computes them: of files that may be linked or kept, and of the part that an
interrupted copy has left.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator.ssh.sftp_protocol import (
    DISK_SPACE,
    LSTAT,
    REALPATH,
    Attributes,
    SftpChannel,
    SftpReply,
    extended,
    request,
)
from remote.contract.requests import FilePart

PIECE_BYTES = 256 << 20  # of one checksum: only the pieces after the last equal one are sent again
ASK_BYTES = 1 << 30  # that the box reads for one request: seconds, even from a slow disk
ASK_PIECES = 10_000
FILES_AT_ONCE = 64  # open files; servers allow about a hundred
READ_BYTES = 1 << 20
T = TypeVar("T")


class Pair(NamedTuple):
    """A file here and one on the box, and how many of their first bytes to compare."""

    here: Path
    there: bytes
    size: int


@dataclass
class Sftp:
    """An SFTP session on a box, and checksums by its agent."""

    host: str
    channel: SftpChannel
    digests: Callable[[Sequence[FilePart]], Sequence[str | None]]
    _is_inside: dict[bytes, bool] = field(default_factory=dict)  # of directories, whether no link leads to them

    def attributes(self, paths: Iterable[bytes]) -> list[tuple[Attributes | None, SftpReply]]:
        """Return what is at each path on the box, None if nothing can be seen there, and the replies."""
        replies = self.channel.ask((None, request(LSTAT, path)) for path in paths)
        return [
            (None if reply.code else self.channel.parsed(reply, SftpReply.attributes), reply) for _, reply in replies
        ]

    def free_bytes(self, path: bytes) -> int | None:
        """Return the bytes that this user can still write at `path` on the box; None if the server does not tell."""
        if DISK_SPACE not in self.channel.extensions:
            return None
        reply = self.channel.one(extended(DISK_SPACE, path))
        return None if reply.code else self.channel.parsed(reply, SftpReply.free_bytes)

    def inside(self, root: bytes, names: Iterable[str]) -> list[str]:
        """Return those of `names`, relative to `root` on the box, whose directories are reached without symlinks."""
        names = list(names)
        parents = {name: os.path.join(root, os.fsencode(name).rpartition(b"/")[0]).rstrip(b"/") for name in names}
        unknown = [path for path in dict.fromkeys([root, *parents.values()]) if path not in self._is_inside]
        found = dict(self.channel.ask((path, request(REALPATH, path)) for path in unknown))
        real = {path: self._path_in(reply) for path, reply in found.items()}
        if root in real:
            self._real_root = real[root]
        for path in unknown:
            self._is_inside[path] = real[path] == self._real_root + path[len(root) :]
        return [name for name in names if self._is_inside[parents[name]]]

    def same_bytes(self, pairs: Sequence[Pair]) -> list[int]:
        """Return for each pair how many of the first bytes are equal: all, or a multiple of PIECE_BYTES."""
        pieces = [
            (number, at, min(PIECE_BYTES, pair.size - at))
            for number, pair in enumerate(pairs)
            for at in range(0, pair.size, PIECE_BYTES)
        ]
        equal, differs = [0] * len(pairs), set()
        for group in _groups(pieces):
            self.channel.watch.check()
            there = self.digests([(os.fsdecode(pairs[number].there), at, size) for number, at, size in group])
            for (number, at, size), digest in zip(group, there, strict=True):
                if number not in differs and digest is not None and digest == _digest(pairs[number].here, at, size):
                    equal[number] = at + size
                else:
                    differs.add(number)
        return equal

    def _path_in(self, reply: SftpReply) -> bytes:
        return b"" if reply.code else self.channel.parsed(reply, SftpReply.string)

    _real_root: bytes = b""


def in_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in groups of at most FILES_AT_ONCE."""
    for at in range(0, len(items), FILES_AT_ONCE):
        yield items[at : at + FILES_AT_ONCE]


def _groups(pieces: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    group: list[tuple[int, int, int]] = []
    total = 0
    for piece in pieces:
        if group and (total + piece[2] > ASK_BYTES or len(group) >= ASK_PIECES):
            yield group
            group, total = [], 0
        group.append(piece)
        total += piece[2]
    if group:
        yield group


def _digest(path: Path, start: int, size: int) -> str | None:
    """Return the sha256 of a part of a file here; None if it cannot be read completely."""
    digest = hashlib.sha256()
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            file.seek(start)
            while size > 0 and (chunk := file.read(min(size, READ_BYTES))):
                digest.update(chunk)
                size -= len(chunk)
    except OSError:
        return None
    return None if size else digest.hexdigest()
