"""What this machine knows of the files that it copied, and which of them may be deleted here.

    results/.mirror/<job>/<run-id>.files    one record for each run, outside of what is copied from boxes

A file of a copy is deleted only if this machine copied it, nobody has changed it here, and the box shows that the job
deleted it. docs/run-directory.md has the complete rule.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import OUTPUT_FOLDERS, RunPaths
from remote.contract.protocol import Restarting, Running, Starting
from remote.contract.records import write_record
from remote.contract.schema import Malformed, from_json

if TYPE_CHECKING:
    from orchestrator.box.inventory import Inventory

MAX_RECORD = 1 << 29  # bytes
MAX_LIST = 1 << 27  # bytes of outputs.jsonl that are read
CHANGED = "the job deleted it, but it was changed here"


class Version(NamedTuple):
    """A state of a file, by which changes are noticed."""

    size: int  # bytes
    mtime_ns: int


class CopiedFile(NamedTuple):
    """A file that was copied: as the box listed it, and as it was here after the copy."""

    there: Version
    here: Version


def _read_files(value: Any) -> dict[str, CopiedFile]:
    """Read the well-formed entries, and ignore the others: a file without an entry is never deleted."""
    entries = value.items() if isinstance(value, dict) else ()
    return {
        name: CopiedFile(*(Version(*version) for version in versions))
        for name, versions in entries
        if isinstance(versions, list) and len(versions) == 2 and all(map(_is_version, versions))
    }


def _is_version(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


@dataclass(frozen=True)
class _Record:
    """The record of a run. `identity` and `work` are those of the inventory that its files are from."""

    json_head: ClassVar[dict[str, int]] = {"schema": 1}
    identity: str = ""
    work: str = ""
    files: Mapping[str, CopiedFile] = field(default_factory=dict, metadata={"read": _read_files})


class CopiedFiles:
    """The files of one run that were copied to this machine."""

    def __init__(self, path: Path, root: Path) -> None:
        """Read the record at `path` of the copy at `root`. A missing or damaged one counts as empty."""
        self._path, self._root = path, root
        try:
            self._before = from_json(_Record, read_json(path, MAX_RECORD) or {}, longest=None)
        except Malformed:
            self._before = _Record()
        self._files: dict[str, CopiedFile] = dict(self._before.files)

    def changed(self, listed: Inventory) -> dict[str, int]:
        """Return the files whose copy is missing or out of date, with their sizes in bytes."""
        return {name: size for name, size in listed.files.items() if not self._is_current(name, listed)}

    def _is_current(self, name: str, listed: Inventory) -> bool:
        here, there = _version(self._root / name), Version(listed.files[name], listed.times.get(name, -1))
        if here is None:
            return False
        known = self._files.get(name)
        if known is not None and known == (there, here):
            return True
        whole = there.mtime_ns - there.mtime_ns % 10**9  # as a copy program without nanoseconds sets it
        return here.size == there.size and here.mtime_ns in (there.mtime_ns, whole)

    def expect(self, listed: Inventory) -> None:
        """Record the files that are about to be copied, so that they are known even if the copy is interrupted."""
        if (listed.identity, listed.work) != (self._before.identity, self._before.work):
            # Another directory: what was copied from the former one is not there, and nothing says that it was deleted.
            self._files = {name: file for name, file in self._files.items() if name in listed.files}
        on_mounts = [f"{mount}/" for mount in listed.mounts]  # an unmounted directory looks as if it were empty
        for name, size in listed.files.items():
            there = Version(size, listed.times.get(name, -1))
            if not name.startswith(tuple(on_mounts)) and (name not in self._files or self._files[name].there != there):
                self._files[name] = CopiedFile(there, there)
        self._save(listed)

    def finish(self, listed: Inventory) -> None:
        """Record how the copied files are now."""
        for name in listed.files:
            here = _version(self._root / name)
            if name in self._files and here is not None:
                self._files[name] = self._files[name]._replace(here=here)
        self._save(listed)

    def _save(self, listed: Inventory) -> None:
        now = _Record(listed.identity, listed.work, dict(self._files))
        if listed.identity and now != self._before:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_record(self._path, now)
            self._before = now

    # --- deletions ---------------------------------------------------------------------------------------

    def delete(self, listed: Inventory, now: Inventory) -> tuple[int, list[tuple[str, str]]]:
        """Delete the copies of files that the job deleted. Call it after `finish`.

        Args:
            listed: The inventory that was copied.
            now: A new inventory: a file that was just renamed may be missing in one.

        Returns:
            How many files were deleted, and those that were kept although the job deleted them, with the reasons.
        """
        if (now.identity, now.work) != (listed.identity, listed.work):
            return 0, []
        deleted, kept = 0, []
        for name in self.gone(now):
            file = self._files.pop(name)
            place = self._root / name
            here = _version(place)
            if here is None or not _is_below(place, self._root):
                continue
            if here not in (file.here, file.there):
                kept.append((name, CHANGED))
                continue
            place.unlink()
            deleted += 1
            _remove_empty(place.parent, self._root)
        self._save(now)
        return deleted, kept

    def gone(self, listed: Inventory) -> list[str]:
        """Return the files that the job deleted, according to the box."""
        if not (listed.identity and listed.is_whole):
            return []
        left_out = {name for name, _ in listed.left_out}
        missing = [
            name
            for name in self._files
            if name not in listed.files and _is_output(name, listed) and not _is_at_or_below(name, left_out)
        ]
        if not missing:
            return []
        if listed.report.has_ended:
            # Only what was gone at the end: later, it is no longer the job that deletes.
            at_end = files_at_end(self._root, listed)
            return [] if at_end is None else [name for name in missing if name not in at_end]
        is_live = listed.report.supervised and isinstance(listed.report.state, (Starting, Running, Restarting))
        return missing if is_live else []


def _is_output(name: str, listed: Inventory) -> bool:
    folder = name.split("/")[0]
    return folder in OUTPUT_FOLDERS and (folder != OUTPUT_FOLDERS[0] or listed.work != "")


def _is_at_or_below(name: str, others: set[str]) -> bool:
    return name in others or any(str(parent) in others for parent in PurePosixPath(name).parents)


def files_at_end(root: Path, listed: Inventory) -> set[str] | None:
    """Return the files that the run had at its end, by its outputs.jsonl; None if that is not here completely."""
    path = RunPaths(root).output_list
    size = listed.files.get(path.name)
    found = _version(path)
    if size is None or found is None or found.size != size or size > MAX_LIST:
        return None
    names = [record.get("path") for record in read_jsonl(path)]
    return {name for name in names if isinstance(name, str)}


def _version(path: Path) -> Version | None:
    """Return the version of a regular file; None if there is none."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return Version(found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _is_below(path: Path, root: Path) -> bool:
    """Return whether no directory between `root` and the file is a symlink."""
    return os.path.realpath(path.parent) == os.path.join(os.path.realpath(root), path.parent.relative_to(root))


def _remove_empty(directory: Path, root: Path) -> None:
    """Remove a directory and those above it that have become empty, but not those of OUTPUT_FOLDERS."""
    for place in _below_outputs(directory, root):
        try:
            place.rmdir()
        except OSError:
            return


def _below_outputs(directory: Path, root: Path) -> Iterator[Path]:
    while len(directory.relative_to(root).parts) > 1:
        yield directory
        directory = directory.parent
