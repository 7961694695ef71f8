"""Receive files from a box: limits for time and size, obstacles on this machine, leftovers of interrupted copies."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.errors import CopyFailed, DiskFull, HostTooSlow
from orchestrator.system.cache import ABANDONED_S
from orchestrator.text import size_text
from remote.contract.files import TEMP_PREFIX
from remote.contract.paths import PARTIAL, STAGING_PREFIX

GROWTH_BYTES = 1 << 30  # a file may double and grow by this much between its listing and its copy
COPY_BASE_S = 600.0  # seconds that a copy of any size may take
SLOWEST_BYTES_S = 256 << 10  # bytes per second; a slower copy is ended, and can be resumed later
FILE_S = 0.05  # extra seconds for each file: many small files take long even in a fast network
LOOK_S = 5.0  # the minimum seconds between two measurements of the received bytes
LOOK_SHARE = 20  # the minimum time between them, as a multiple of the last one's duration: a mirror may have many files
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Allowance:
    """The limits of one copy: seconds, bytes of a single file, bytes in total. `listed` describes the files."""

    seconds: float
    file_bytes: int
    total_bytes: int
    listed: str

    @classmethod
    def of(cls, files: Mapping[str, int]) -> Allowance:
        """Return the limits for files with these sizes in bytes. Files of a running job may grow (`GROWTH_BYTES`)."""
        total = sum(files.values())
        largest = max(files.values(), default=0)
        seconds = COPY_BASE_S + total / SLOWEST_BYTES_S + FILE_S * len(files)
        listed = f"{len(files)} file{'' if len(files) == 1 else 's'} with {size_text(total)} in all"
        return cls(seconds, 2 * largest + GROWTH_BYTES, 2 * total + GROWTH_BYTES, listed)


@dataclass
class Watch:
    """The limits of a copy in progress. Call `check` often: it raises if a limit is exceeded."""

    doing: str
    allowance: Allowance
    folders: Sequence[Path] = ()  # their growth since the start counts as received
    _began: float = field(default_factory=time.monotonic)
    _next_measurement: float = 0.0  # monotonic time
    _size_before: int = 0  # bytes

    def __post_init__(self) -> None:
        self._size_before = self._measure()

    def check(self) -> None:
        """Raise HostTooSlow or CopyFailed if a limit is exceeded. Cheap: sizes are measured only every few seconds."""
        now = time.monotonic()
        if now - self._began > self.allowance.seconds:
            raise HostTooSlow(
                f"{self.doing}: not finished within {self.allowance.seconds:.0f} s,"
                f" the limit for {self.allowance.listed}",
                "check the network, then run the command again: it continues where it stopped",
            )
        if now >= self._next_measurement:
            received = self._measure() - self._size_before
            if received > self.allowance.total_bytes:
                raise CopyFailed(
                    f"{self.doing}: stopped after {size_text(received)}, much more than the box had listed",
                    "check what the run writes on the box",
                )

    def _measure(self) -> int:
        """Return the bytes in the folders now, and set the time of the next measurement."""
        began = time.monotonic()
        size = sum(map(_size_of, self.folders))
        now = time.monotonic()
        self._next_measurement = now + max(LOOK_S, LOOK_SHARE * (now - began))
        return size


def folders_of(target: Path, files: Iterable[str]) -> list[Path]:
    """Return the folders that files are copied to, without those that are in another of them."""
    found: list[tuple[str, ...]] = []
    for parts in sorted({tuple(name.split("/")[:-1]) for name in files}):
        if not found or parts[: len(found[-1])] != found[-1]:
            found.append(parts)
    return [target.joinpath(*parts) for parts in found]


def _size_of(folder: Path) -> int:
    """Return the bytes of disk that `folder` uses. Ignore files that are deleted in the meantime."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
    return total


def partial_failure(doing: str, files: Mapping[str, int], failures: Mapping[str, str]) -> CopyFailed:
    """Return the error for a copy in which some files failed and all others were copied."""
    name, reason = next(iter(failures.items()))
    message = f"{doing}: {len(failures)} of {len(files)} files failed: {name!r}: {reason}"
    return CopyFailed(message, "all other files were copied", failures, rest_copied=True)


def disk_full(doing: str, target: Path) -> DiskFull:
    """Return the error for a full disk on this machine."""
    try:
        free = f"{size_text(shutil.disk_usage(target).free)} free"
    except OSError:
        free = "no space"
    return DiskFull(
        f"{doing}: the disk of this machine is full: {free} at {target}",
        "free disk space, then run orch sync again: it continues where it stopped",
    )


def obstacles(target: Path, files: Mapping[str, int]) -> dict[str, str]:
    """Return which of `files` cannot be written below `target`, with the reasons.

    Symlinks in the place of folders and empty directories in the place of files are removed.
    """
    folders: dict[PurePosixPath, str] = {PurePosixPath("."): ""}  # folder to why it cannot be written; empty if it can
    found: dict[str, str] = {}
    for name in files:
        for folder in reversed(PurePosixPath(name).parents):
            if folder not in folders:
                folders[folder] = folders[folder.parent] or _in_the_way(target / folder, is_folder=True)
        found[name] = folders[PurePosixPath(name).parent] or _in_the_way(target / name, is_folder=False)
    return {name: reason for name, reason in found.items() if reason}


def _in_the_way(path: Path, is_folder: bool) -> str:
    """Return why a folder or a file cannot be written at `path`; "" if it can."""
    try:
        there = path.lstat()
        if is_folder and stat.S_ISLNK(there.st_mode):
            path.unlink()  # a symlink may lead out of the mirror
        elif is_folder:
            return "" if stat.S_ISDIR(there.st_mode) else f"{path} is in the way (not a directory); remove it"
        elif stat.S_ISDIR(there.st_mode):
            path.rmdir()  # succeeds only if it is empty
    except FileNotFoundError:
        pass
    except ValueError:
        return "not a valid file name"
    except OSError as error:
        in_the_way = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        return f"{path} is in the way (a directory); remove it" if in_the_way else f"{error.strerror} on this machine"
    return ""


# --- temporary files -------------------------------------------------------------------------------------


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Make a folder in `target` for files that are being copied, and remove it afterwards.

    First remove folders that killed processes left. Each process locks its folder, so folders in use are kept.
    """
    _remove_abandoned(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # another process is removing it as abandoned, or the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    for folder in target.glob(f"{STAGING_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)


def remove_partials(target: Path, files: Collection[str]) -> None:
    """After a complete copy of `files`, remove partial files next to them, and old temporary files.

    Files of the run itself, `files`, stay even if their names look temporary; so do all in the folders of its job.
    Partial files in other folders may belong to another command, which copies other runs to the same target.
    """
    _remove_abandoned(target)
    now = time.time()
    for folder in {os.path.dirname(name) for name in files}:
        shutil.rmtree(target / folder / PARTIAL, ignore_errors=True)
    for path in target.glob(f"{TEMP_PREFIX}*"):
        with suppress(OSError):
            if path.name not in files and now - path.lstat().st_mtime > ABANDONED_S:
                path.unlink()
