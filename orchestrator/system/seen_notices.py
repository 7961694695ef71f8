"""Which notices the user has seen before, so that a launch does not repeat them. Kept in the user's cache of orch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.system import cache
from remote.contract.files import write_atomic

MAX_KEPT = 1000  # notices of one project
DIGITS = 16  # of the hash of a notice


class SeenNotices:
    """The notices of one project that were shown. Without a usable cache, every notice counts as new."""

    def __init__(self, directory: Path) -> None:
        """Use the notices of the project in `directory`."""
        self._name = f"{cache.NOTICES_PREFIX}{_hash(str(directory))}"

    def new(self, notices: Sequence[str]) -> list[bool]:
        """Return for each notice whether it is new, and remember it by its content."""
        try:
            path = cache.directory() / self._name
            seen = path.read_text(encoding="ascii", errors="replace").split() if path.exists() else []
            hashes = [_hash(notice) for notice in notices]
            added = [each for each in dict.fromkeys(hashes) if each not in seen]
            if added:
                write_atomic(path, "\n".join([*seen, *added][-MAX_KEPT:]).encode())
        except (OrchError, OSError):
            return [True] * len(notices)
        return [each in added for each in hashes]


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
