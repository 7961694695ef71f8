"""Files from a box: how much may come, what is in the way here, and what an interrupted copy left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.errors import CopyFailed, HostTooSlow
from orchestrator.system.cache import ABANDONED_S
from orchestrator.text import size_text
from remote.contract.files import TEMP_PREFIX

GROWTH_BYTES = 1 << 30  # by which a file may grow between its listing and its copy, beside doubling
COPY_BASE_S = 600.0  # seconds that every copy may take, whatever its size
SLOWEST_BYTES_S = 256 << 10  # bytes a second; a slower copy is ended, and resumes when it is asked for again
FILE_S = 0.05  # seconds more for each file: many small ones take long, however fast the network is
LOOK_S = 5.0  # seconds between two looks at how much has come
LOOK_SHARE = 20  # and at least so many times as long as the last look took: a mirror may hold very many files
STAGING_PREFIX = f"{TEMP_PREFIX}incoming-"
PARTIAL = f"{TEMP_PREFIX}partial"  # the folders of rsync's --partial-dir
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Allowance:
    """What one copy may take: seconds, bytes of a single file, bytes in all; `listed` says for what."""

    seconds: float
    file_bytes: int
    total_bytes: int
    listed: str

    @classmethod
    def of(cls, files: Mapping[str, int]) -> Allowance:
        """Derived from the listed sizes; a running job's files may double, and grow by `GROWTH_BYTES`."""
        total = sum(files.values())
        largest = max(files.values(), default=0)
        seconds = COPY_BASE_S + total / SLOWEST_BYTES_S + FILE_S * len(files)
        listed = f"{len(files)} file{'' if len(files) == 1 else 's'} with {size_text(total)} in all"
        return cls(seconds, 2 * largest + GROWTH_BYTES, 2 * total + GROWTH_BYTES, listed)


@dataclass
class Watch:
    """Ends a copy that takes more than its allowance; `check` raises."""

    doing: str
    allowance: Allowance
    target: Path | None = None  # what is in it counts, beside what was there at the start
    _began: float = field(default_factory=time.monotonic)
    _look_at: float = 0.0  # when how much has come is measured again
    _before: int = 0

    def __post_init__(self) -> None:
        self._before = self._measured()

    def check(self) -> None:
        """Raise HostTooSlow or CopyFailed where a limit is exceeded. Cheap: it measures every few seconds."""
        now = time.monotonic()
        if now - self._began > self.allowance.seconds:
            raise HostTooSlow(
                f"{self.doing}: not finished within {self.allowance.seconds:.0f} s,"
                f" the limit for {self.allowance.listed}",
                "check the network, then run the command again: it continues where it stopped",
            )
        if now >= self._look_at:
            came = self._measured() - self._before
            if came > self.allowance.total_bytes:
                raise CopyFailed(
                    f"{self.doing}: stopped after {size_text(came)}, much more than the box had listed",
                    "check what the run writes on the box",
                )

    def _measured(self) -> int:
        """Bytes in the target now; sets when to look again."""
        began = time.monotonic()
        size = _size_of(self.target)
        now = time.monotonic()
        self._look_at = now + max(LOOK_S, LOOK_SHARE * (now - began))
        return size


def _size_of(folder: Path | None) -> int:
    """Bytes of disk that `folder` takes; what vanishes meanwhile is passed over."""
    total = 0
    for base, _, names in os.walk(folder) if folder else ():
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
    return total


def not_all(doing: str, files: Mapping[str, int], failures: Mapping[str, str]) -> CopyFailed:
    """The error for the files that failed, all others having come."""
    name, reason = next(iter(failures.items()))
    message = f"{doing}: {len(failures)} of {len(files)} files failed: {name!r}: {reason}"
    return CopyFailed(message, "all other files were copied", failures, rest_copied=True)


def no_room(doing: str, target: Path) -> CopyFailed:
    """The error for a full disk here."""
    try:
        free = f"{size_text(shutil.disk_usage(target).free)} free"
    except OSError:
        free = "no room"
    return CopyFailed(
        f"{doing}: the disk of this machine is full: {free} at {target}",
        "free disk space, then run orch sync again: it continues where it stopped",
    )


def obstacles(target: Path, files: Mapping[str, int]) -> dict[str, str]:
    """The names that cannot be written below `target`, each with the reason."""
    folders: dict[PurePosixPath, str] = {PurePosixPath("."): ""}  # to why nothing can be written into it
    found: dict[str, str] = {}
    for name in files:
        for folder in reversed(PurePosixPath(name).parents):
            if folder not in folders:
                folders[folder] = folders[folder.parent] or _in_the_way(target / folder, is_folder=True)
        found[name] = folders[PurePosixPath(name).parent] or _in_the_way(target / name, is_folder=False)
    return {name: reason for name, reason in found.items() if reason}


def _in_the_way(path: Path, is_folder: bool) -> str:
    """Why a folder, or a file, cannot be written at `path`; empty if it can."""
    try:
        there = path.lstat()
        if is_folder and stat.S_ISLNK(there.st_mode):
            path.unlink()  # it may lead out of the mirror
        elif is_folder:
            return "" if stat.S_ISDIR(there.st_mode) else f"{path} is in the way (not a directory); remove it"
        elif stat.S_ISDIR(there.st_mode):
            path.rmdir()  # an empty one holds nothing
    except FileNotFoundError:
        pass
    except ValueError:
        return "not a valid file name"
    except OSError as error:
        in_the_way = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        return f"{path} is in the way (a directory); remove it" if in_the_way else f"{error.strerror} on this machine"
    return ""


# --- what is half done -----------------------------------------------------------------------------------


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder in `target` for files on their way, gone afterwards.

    One that a killed process left is removed first; a lock on each tells those that are in use.
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
        with suppress(OSError):  # another process takes it for abandoned; or a file system without locks
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
    """Remove what was kept to resume from, now that everything has come, and temporary files of killed processes.

    `files` are the names that the run itself has, which stay.
    """
    now = time.time()
    for base, folders, names in os.walk(target):
        if PARTIAL in folders:
            folders.remove(PARTIAL)
            shutil.rmtree(os.path.join(base, PARTIAL), ignore_errors=True)
        for path in (os.path.join(base, name) for name in names if name.startswith(TEMP_PREFIX)):
            with suppress(OSError):
                if os.path.relpath(path, target) not in files and now - os.lstat(path).st_mtime > ABANDONED_S:
                    os.unlink(path)
