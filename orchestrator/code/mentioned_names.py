"""Which variables the code of a snapshot mentions: to notice a mistyped one before a run takes it for nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.code.snapshot import CodeSnapshot

MAX_FILE = 1 << 20  # bytes; a larger file is data rather than code
MAX_TOTAL = 32 << 20  # bytes of all files that are read
_READS = re.compile(rb"environ|getenv|\$\{?[A-Z]")  # of Python, C, Node and shells
_NAMES = re.compile(rb"(?<![A-Za-z0-9_])[A-Z][A-Z0-9_]{2,63}(?![A-Za-z0-9_])")


@dataclass(frozen=True)
class Mentions:
    """Which of the wanted names the code has, and names of files that read the environment: these may be meant.

    `is_complete` is False if not all of the code was read.
    """

    found: frozenset[str]
    others: tuple[str, ...] = ()
    is_complete: bool = True


def find_mentions(snapshot: CodeSnapshot, names: Collection[str]) -> Mentions:
    """Look for each name as a whole word in the files of the snapshot."""
    wanted = {name: re.compile(rb"(?<![A-Za-z0-9_])" + name.encode() + rb"(?![A-Za-z0-9_])") for name in names}
    found: set[str] = set()
    others: dict[str, None] = {}
    left = MAX_TOTAL
    for path in snapshot.files:
        size = snapshot.sizes.get(path, 0)
        if not 0 < size <= MAX_FILE:
            continue
        left -= size
        if left < 0 or len(found) == len(wanted):
            break
        data = _content(os.path.join(snapshot.directory, path))
        found |= {name for name, pattern in wanted.items() if name not in found and pattern.search(data)}
        if _READS.search(data):
            others |= dict.fromkeys(match.decode() for match in _NAMES.findall(data))
    return Mentions(frozenset(found), tuple(others), left >= 0)


def _content(path: str) -> bytes:
    """Return a text file; nothing for a binary one, or one that has been removed since the snapshot."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE)
    except OSError:
        return b""
    return b"" if b"\0" in data[:1024] else data
