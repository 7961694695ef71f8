"""Find the files of a job's dataset: a glob that follows links to directories, within bounds and without circles."""

from __future__ import annotations

import os
import re
from fnmatch import translate
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Pattern, Sequence, Set, Tuple

MAX_ENTRIES = 10_000_000  # files and directories that one search looks at; a link may lead to a whole disk
LOOKED_AT = 20_000  # files, to tell which kinds are there if data is missing
MAX_KINDS = 4

Directory = Tuple[int, int]  # device and inode


def find_files(directory: Path, pattern: str, most: int) -> List[Path]:
    """Return up to `most` files and directories below `directory` that match a glob.

    `**` stands for any number of directories, links to directories included. Each directory is entered once, however
    many links lead to it.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    search = _Search(parts)
    found = []
    for path in search.matches(str(directory), 0):
        found.append(Path(path))
        if len(found) >= most:
            break
    return found


class _Search:
    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = list(parts)
        self._names: List[Optional[Pattern[str]]] = [
            None if part == "**" else re.compile(translate(part)) for part in parts
        ]
        self._entered: Set[Tuple[int, Directory]] = set()  # the directories in which a `**` was looked for
        self._entries = 0

    def matches(self, top: str, at: int) -> Iterator[str]:
        """Yield the paths below `top` that match the parts of the pattern from number `at` on."""
        waiting = [(top, at)]  # not recursive: directories may be nested by the thousand
        while waiting:
            directory, at = waiting.pop()
            if at == len(self._parts):
                yield directory
                continue
            name = self._names[at]
            if name is None:
                if not self._enter(directory, at):
                    continue
                waiting += [(path, at) for path, is_dir in reversed(self._entries_of(directory)) if is_dir]
                waiting.append((directory, at + 1))
                continue
            is_last = at + 1 == len(self._parts)
            below = []
            for path, is_dir in self._entries_of(directory):
                if name.match(os.path.basename(path)):
                    if is_last:
                        yield path
                    elif is_dir:
                        below.append((path, at + 1))
            waiting += reversed(below)

    def _enter(self, directory: str, at: int) -> bool:
        """Return whether this directory, under whatever name, has not been searched for the part `at` yet."""
        try:
            stat = os.stat(directory)
        except OSError:
            return False
        key = (at, (stat.st_dev, stat.st_ino))
        if key in self._entered:
            return False
        self._entered.add(key)
        return True

    def _entries_of(self, directory: str) -> List[Tuple[str, bool]]:
        """Return the paths in a directory, in order, and whether each is a directory or a link to one."""
        if self._entries >= MAX_ENTRIES:
            return []
        try:
            with os.scandir(directory) as entries:
                found = [(entry.path, _is_dir(entry)) for entry in entries]
        except OSError:
            return []
        self._entries += len(found)
        return sorted(found)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def what_is_in(directory: Path) -> List[Tuple[str, int]]:
    """Return the commonest patterns of files below, with their counts: `("output/*.pt", 10000)`."""
    counts: Dict[str, int] = {}
    for path in find_files(directory, "**/*", LOOKED_AT):
        relative = path.relative_to(directory)
        if not path.is_dir():
            kind = str(relative.parent / ("*" + relative.suffix))
            counts[kind] = counts.get(kind, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:MAX_KINDS]
