"""Where the files of a copy wait until their directory is complete, so that nobody takes half a directory for a whole.

    results/.mirror/.incoming/<job>/<run-id>/    laid out like the run; an interrupted copy continues there

A new directory appears in the copy in one step, with all its files. In a directory that exists, the new and changed
files are put in place together, once all of them have arrived.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from orchestrator.errors import OrchError
from remote.contract.paths import OUTPUT_FOLDERS, PARTIAL

INCOMING = ".incoming"  # the folder of all runs that are being copied: one transfer writes to many of them
BATCH_BYTES = 1 << 30  # after this many bytes, the directories that are complete are put in place
SEED_BYTES = 1 << 20  # from this size on, only the differences of a changed file are sent
WAIT_S = 0.2  # between two looks whether another command has finished
INCOMPLETE = "files in it were deleted on the box during the copy; what has arrived waits for the next orch sync"
Batch = dict[str, int]  # file to its size in bytes


class Arrivals:
    """The files of one run that are being copied."""

    def __init__(self, folder: Path, root: Path, former: Path) -> None:
        """Set up the paths.

        Args:
            folder: Where the files wait.
            root: The copy of the run.
            former: Where an earlier version has them wait. They are moved from there.
        """
        self.folder, self._root, self._former = folder, root, former

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other commands from copying the same run. Remove it at the end if it is empty."""
        descriptor = self._lock()
        try:
            yield
        finally:
            _remove_empty_folders(self.folder)
            for folder in self.folder.parents[:2]:  # those of the job and of all runs
                with suppress(OSError):
                    folder.rmdir()
            os.close(descriptor)

    def _lock(self) -> int:
        while True:
            try:
                self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._former.is_dir() and not self.folder.exists():
                    self._former.rename(self.folder)
                self.folder.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:  # another command has removed an empty folder
                continue
            while not _is_locked(descriptor):
                time.sleep(WAIT_S)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.folder.lstat()):
                    return descriptor
            os.close(descriptor)  # the other command has removed it

    def waiting(self) -> tuple[int, int]:
        """Return how many files wait here, and their bytes."""
        sizes = [_size(path) for path in _files(self.folder)]
        return len(sizes), sum(sizes)

    def received(self, name: str) -> int:
        """Return the bytes of a file that are here."""
        return _size(self.folder / name)

    def present(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Return which of the files wait here, with what distinguishes each from another one of its name."""
        found = {}
        for name in names:
            with suppress(OSError, ValueError):
                status = (self.folder / name).lstat()
                found[name] = (status.st_ino, status.st_mtime_ns)
        return found

    def batches(self, files: Mapping[str, int]) -> Iterator[Batch]:
        """Group files so that those which must appear together are in one batch. Remove what else waits here.

        Args:
            files: The files to copy, and their sizes in bytes.
        """
        for path in _files(self.folder):
            if _without_partial(path.relative_to(self.folder)) not in files:
                path.unlink()
        units: dict[str, Batch] = {}
        exists: dict[str, bool] = {}
        for name, size in files.items():
            units.setdefault(self._unit(name, exists), {})[name] = size
        batch: Batch = {}
        for unit in units.values():
            if batch and sum(batch.values()) + sum(unit.values()) > BATCH_BYTES:
                yield batch
                batch = {}
            batch.update(unit)
        if batch:
            yield batch

    def _unit(self, name: str, exists: dict[str, bool]) -> str:
        """Return the highest directory above a file that is not in the copy yet; else the directory of the file.

        The files of orch itself are one unit, which comes first.
        """
        parts = name.split("/")
        if parts[0] not in OUTPUT_FOLDERS:
            return ""
        for depth in range(2, len(parts)):
            directory = "/".join(parts[:depth])
            if directory not in exists:
                exists[directory] = os.path.isdir(self._root / directory)
            if not exists[directory]:
                return directory
        return "/".join(parts[:-1])

    def seed(self, batch: Batch) -> None:
        """Link the present copies of large files here: the copy then needs only the differences, and replaces them."""
        for name, size in batch.items():
            place = self.folder / name
            if size >= SEED_BYTES and not os.path.lexists(place) and _size(self._root / name) >= SEED_BYTES:
                with suppress(OSError):  # for example a file system without hard links
                    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    os.link(self._root / name, place, follow_symlinks=False)

    def put_in_place(
        self, batch: Batch, failed: Mapping[str, str], shrinking: Collection[str], live: Collection[str]
    ) -> set[str]:
        """Move the files of a batch that was copied to the copy of the run.

        Args:
            batch: The files.
            failed: Those that could not be copied. The others in their directory are useful without them.
            shrinking: Directories from which the job has deleted files that had arrived.
            live: Directories that are put in place although they change during the copy.

        Returns:
            New directories that wait here, because files in them were deleted on the box during the copy.
        """
        arrived = {name for name in batch if os.path.lexists(self.folder / name)}
        deleted = {_parent(name) for name in batch if name not in failed and name not in arrived}
        present = {_parent(name) for name in batch}
        changing = (deleted | {directory for directory in shrinking if directory in present}).difference(live)
        waiting = {directory for directory in changing if self._is_new(directory)}
        # A directory above one that waits cannot be moved as a whole.
        divided = {str(parent): True for directory in waiting for parent in PurePosixPath(directory).parents}
        for name in batch:
            if name not in arrived or (waiting and any(str(each) in waiting for each in PurePosixPath(name).parents)):
                continue
            unit = self._unit(name, dict(divided))
            if "/" in unit and unit not in divided and not os.path.lexists(self._root / unit):
                _move(self.folder / unit, self._root / unit)
            elif os.path.lexists(self.folder / name):  # otherwise it was moved with its directory
                _move(self.folder / name, self._root / name)
        return waiting

    def _is_new(self, directory: str) -> bool:
        parts = directory.split("/")
        return len(parts) > 1 and parts[0] in OUTPUT_FOLDERS and not os.path.isdir(self._root / directory)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def make_directory(path: Path) -> None:
    """Make a directory. Raise OrchError if a link or a file is in its place, or if the disk does not allow it."""
    for directory in (path.parent, path):
        if directory.is_symlink():
            raise OrchError(f"copying into {directory}: it is a symlink, which may lead anywhere", "move it away")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OrchError(f"making the directory {path}: {error.strerror}", "move away what is there") from None


def _is_locked(descriptor: int) -> bool:
    """Try to take the lock. Return True also if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OrchError(f"moving {source} to {target}: results/ is on two file systems", "make it one") from None
        raise


def _files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in names)


def _without_partial(path: Path) -> str:
    """Return the name of the file that a path in the folder belongs to, also if only a part of it is there."""
    return "/".join(part for part in path.parts if part != PARTIAL)


def _remove_empty_folders(folder: Path) -> None:
    for base, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(base)


def _size(path: Path) -> int:
    with suppress(OSError, ValueError):
        return path.lstat().st_size
    return 0
