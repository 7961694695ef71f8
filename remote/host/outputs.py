"""Which files in work/ are outputs of the run: those that it added or changed.

work.json says what work/ was made from. A file with the size and the modification time that it has there is unchanged.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from remote.contract.files import read_json
from remote.contract.paths import OUTPUT_FOLDERS, TREE_HASH, ProjectPaths, RunPaths
from remote.contract.records import read_record
from remote.contract.run_record import RunRecord
from remote.contract.run_report import OutputSummary
from remote.contract.schema import Malformed

CACHES = {
    **dict.fromkeys((".cache", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".ipynb_checkpoints"), "a cache"),
    **dict.fromkeys((".venv", "venv", "node_modules"), "installed packages"),
}
SILENT_CACHE = "__pycache__"  # in every package: not mentioned
VENV_MARK = "pyvenv.cfg"
MAX_FILES = 1_000_000  # that are counted at the end of a run
MAX_LISTED = 200_000  # that are listed by name then


@dataclass(frozen=True)
class WorkspaceRecord:
    """What is in work.json: what work/ was made from."""

    tree: Optional[str] = field(default=None, metadata={"pattern": TREE_HASH})
    prepared: Optional[str] = None  # the key of the `prepare` whose files beside its code were added
    links: Dict[str, str] = field(default_factory=dict)  # path in work/ to its target


@dataclass(frozen=True)
class OutputFile:
    """A line of outputs.jsonl: a file that belonged to the job when the run ended."""

    path: str  # in the run directory
    bytes: int


class Outputs:
    """Tells outputs of one run from what it was given."""

    def __init__(self, run: RunPaths) -> None:
        self._run, self.root = run, os.fsencode(run.work)
        paths = ProjectPaths.of_run(run)
        record = read_record(WorkspaceRecord, run.workspace) or WorkspaceRecord()
        made_from = [paths.prepared_additions(record.prepared)] if record.prepared and is_key(record.prepared) else []
        made_from += [paths.tree(record.tree)] if record.tree else []
        self._made_from = [os.fsencode(path) for path in made_from]
        self._links = {os.fsencode(os.path.normpath(path)) for path in record.links}
        self._patterns = _patterns(run)

    def why_left_out(self, name: bytes, found: os.stat_result) -> Optional[str]:
        """Return why a file or directory is not an output.

        Args:
            name: Its path in work/.
            found: Its lstat.

        Returns:
            None if it is one, or a directory that may hold outputs; "" if it needs no mention, for example because it
            is unchanged; else the reason.
        """
        if name in self._links:
            return ""
        base = os.path.basename(os.fsdecode(name))
        if stat.S_ISDIR(found.st_mode):
            if base == SILENT_CACHE:
                return ""
            if os.path.exists(os.path.join(self.root, name, os.fsencode(VENV_MARK))):
                return "installed packages"
            return CACHES.get(base)
        if self._is_unchanged(name, found):
            return ""
        parts = os.fsdecode(name).split("/")
        return None if not self._patterns or any(matches(parts, pattern) for pattern in self._patterns) else ""

    def _is_unchanged(self, name: bytes, found: os.stat_result) -> bool:
        return any(
            is_same(os.path.join(place, name), os.path.join(self.root, name), found) for place in self._made_from
        )

    def files(self) -> Iterator[Tuple[bytes, os.stat_result]]:
        """Yield the path in work/ and the lstat of each output that is a regular file."""
        waiting: List[bytes] = [b""]
        while waiting:
            directory = waiting.pop()
            try:
                names = os.listdir(os.path.join(self.root, directory))
            except OSError:
                continue
            for base in names:
                name = os.path.join(directory, base)
                try:
                    found = os.lstat(os.path.join(self.root, name))
                except OSError:
                    continue
                if self.why_left_out(name, found) is not None:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(name)
                elif stat.S_ISREG(found.st_mode):
                    yield name, found

    def listed(self) -> Optional[List[OutputFile]]:
        """Return all files that belong to the job; None if they are too many to list."""
        found = [(b"work/" + name, status.st_size) for name, status in islice(self.files(), MAX_LISTED)]
        for folder in OUTPUT_FOLDERS[1:]:
            found += islice(_regular_files(self._run, folder), MAX_LISTED)
        return None if len(found) >= MAX_LISTED else [OutputFile(_text(name), size) for name, size in found]

    def summary(self) -> OutputSummary:
        """Return the number, the total size and the three largest of the outputs, of at most MAX_FILES."""
        count = size = 0
        largest: List[Tuple[int, str]] = []
        for name, found in self.files():
            count, size = count + 1, size + found.st_size
            largest = sorted([*largest, (found.st_size, os.fsdecode(name))], reverse=True)[:3]
            if count >= MAX_FILES:
                break
        return OutputSummary(count, size, tuple((name, one) for one, name in largest))


def _regular_files(run: RunPaths, folder: str) -> Iterator[Tuple[bytes, int]]:
    """Yield the path in the run directory and the size of each regular file below one of its folders."""
    root = os.fsencode(run.root)
    for base, _, names in os.walk(os.path.join(root, os.fsencode(folder))):
        for name in names:
            path = os.path.join(base, name)
            try:
                found = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield os.path.relpath(path, root), found.st_size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def is_key(key: str) -> bool:
    """Return whether `key` is the key of a `prepare`: it becomes a part of a path."""
    return len(key) == 32 and not key.strip("0123456789abcdef")


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a glob, or is below a directory that does. `**` stands for any directories."""
    if not pattern:
        return True
    if not parts:
        return False
    if pattern[0] == "**":
        return any(matches(parts[start:], pattern[1:]) for start in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _patterns(run: RunPaths) -> List[List[str]]:
    try:
        record = RunRecord.read(read_json(run.run))
    except Malformed:
        return []
    return [[part for part in pattern.split("/") if part not in ("", ".")] for pattern in record.job.outputs]


def is_same(original: bytes, path: bytes, found: os.stat_result) -> bool:
    """Return whether the file or link at `path`, whose lstat is `found`, is an unchanged copy of `original`."""
    try:
        before = os.lstat(original)
    except OSError:
        return False
    if stat.S_IFMT(before.st_mode) != stat.S_IFMT(found.st_mode):
        return False
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(original) == os.readlink(path)
    return (before.st_size, before.st_mtime_ns) == (found.st_size, found.st_mtime_ns)
