"""Read and write files so that a reader sees a complete file or none.

Readers tolerate files that are missing, damaged or of another kind: a worker could have made them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Union

MAX_JSON_BYTES = 4 * 1024 * 1024  # the files of a run have a few kilobytes; a larger one was not written by orch
MAX_RECORD_BYTES = 64 * 1024  # size of one record about a run: a state, a heartbeat, metrics
MAX_INT = 2**63 - 1
MAX_LEVELS = 32  # levels of nesting; far below what would exhaust the stack
JsonObject = Dict[str, Any]  # an object as read from, or to be written to, JSON
TEMP_PREFIX = ".tmp-"  # begins the names of temporary files; a crash may leave some, and none is downloaded


# --- opening: only here does `remote` open files that a worker or another user could have made -------------------


def open_regular(path: Union[str, Path], flags: int = os.O_RDONLY, follow: bool = False) -> int:
    """Open a regular file and return its descriptor. Never block.

    Args:
        path: The file.
        flags: As for `os.open`. With O_CREAT, a missing file is created with mode 0600.
        follow: Follow a symlink.

    Raises:
        OSError: It is a FIFO, a socket, a device, a directory or (without `follow`) a symlink, or cannot be opened.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(str(path), flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def open_to_read(path: Union[str, Path], follow: bool = False) -> IO[bytes]:
    """Open a regular file to read bytes. Raise OSError as `open_regular` does."""
    return os.fdopen(open_regular(path, follow=follow), "rb")


def open_own(path: Path, flags: int) -> int:
    """Open one of our own files to write, as `open_regular` does with O_CREAT.

    If something else has that name, move it aside first.
    """
    try:
        return open_regular(path, flags | os.O_CREAT)
    except OSError:
        if not displace(path):
            raise
        return open_regular(path, flags | os.O_CREAT)


def displace(path: Path) -> bool:
    """Rename `path` to `<name>.displaced-<hex>` if it is not a regular file. Return whether it was renamed."""
    try:
        if stat.S_ISREG(os.lstat(str(path)).st_mode):
            return False
        os.rename(str(path), f"{path}.displaced-{os.urandom(4).hex()}")
    except OSError:
        return False
    return True


def read_bytes(path: Path, limit: int, follow: bool = False) -> Optional[bytes]:
    """Return the content of a regular file, or None if it cannot be read or has more than `limit` bytes."""
    try:
        descriptor = open_regular(path, follow=follow)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        return os.read(descriptor, size + 1) if size <= limit else None  # one byte more: the file may have grown
    except OSError:
        return None
    finally:
        os.close(descriptor)


# --- writing -----------------------------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes, durable: bool = False) -> None:
    """Replace the content of `path` by `data` in one step. With `durable`, wait until it is on disk.

    Raises:
        OSError: It cannot be written. `path` is unchanged then.
    """
    temp = temp_beside(path)
    try:
        with open(os.open(str(temp), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(str(temp), str(path))
    except BaseException:
        remove(temp)
        raise
    if durable:
        sync_directory(path.parent)


def temp_beside(path: Path) -> Path:
    """Return an unused name in the directory of `path`. Importing tempfile instead would cost the agent 10 ms."""
    return path.with_name(TEMP_PREFIX + os.urandom(8).hex())


def sync_directory(path: Path) -> None:
    """Sync the directory `path` to disk: without this, a rename in it is not durable."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """Return one line of strict JSON. A number that is not finite or needs more than 63 bits becomes null."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def write_json(path: Path, value: Mapping[str, Any], durable: bool = False) -> None:
    """Write `value` as `to_json` formats it. Raise OSError as `write_atomic` does."""
    write_atomic(path, to_json(value), durable)


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Optional[JsonObject]:
    """Return the JSON object in `path`, or None if the file is missing, larger than `limit` bytes, or not an object.

    A symlink is not followed.
    """
    data = read_bytes(path, limit)
    return None if data is None else parse_object(data)


def append_jsonl(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    """Append one line with one write. With `durable`, wait until it is on disk.

    If the last line of the file is incomplete, start a new line first.

    Raises:
        OSError: `path` is not a regular file, or cannot be written. Never blocks.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        _write_whole(descriptor, (b"\n" if torn else b"") + to_json(record))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(descriptor: int, line: bytes) -> None:
    """Write the line. Raise OSError if only a part of it fits on the disk; the next append then starts a new line."""
    written = os.write(descriptor, line)
    if written < len(line):
        os.write(descriptor, line[written:])


def read_jsonl(path: Path, limit: Optional[int] = None) -> Iterator[JsonObject]:
    """Yield the objects in `path`, or in its first `limit` bytes, line by line. Skip a line that is not an object."""
    try:
        file = open_to_read(path)
    except OSError:
        return
    with file:
        left = math.inf if limit is None else limit
        while left > 0:
            line = file.readline(int(min(left, MAX_JSON_BYTES)))
            if not line:
                return
            left -= len(line)
            record = parse_object(line)
            if record is not None:
                yield record


def read_jsonl_end(path: Path, size: int = 1 << 20) -> List[JsonObject]:
    """Return the objects in the last `size` bytes of `path`."""
    records = (parse_object(line) for line in end_lines(path, size))
    return [record for record in records if record is not None]


def end_lines(path: Path, size: int) -> List[bytes]:
    """Return the lines that begin in the last `size` bytes of a regular file; none if it cannot be read."""
    try:
        with open_to_read(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            return file.read(size).split(b"\n")[1 if start else 0 :]
    except OSError:
        return []


def parse_object(data: bytes) -> Optional[JsonObject]:
    """Return the JSON object in `data`, or None if it is not an object or is nested too deeply.

    A number that is not finite or needs more than 63 bits becomes None, as in `to_json`.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_number, parse_float=_parse_float, parse_int=_parse_int
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_shallow(value, MAX_LEVELS) else None


def _no_number(text: str) -> None:
    return None


def _parse_float(text: str) -> Optional[float]:
    number = float(text)
    return number if math.isfinite(number) else None


def _parse_int(text: str) -> Optional[int]:
    return _bounded(int(text)) if len(text) < 21 else None  # Python takes quadratic time for longer ones


def _bounded(number: int) -> Optional[int]:
    return number if -MAX_INT <= number <= MAX_INT else None


def is_shallow(value: Any, levels: int) -> bool:
    """Return whether a JSON value is nested at most `levels` deep: a number has one level, a list of numbers two."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_shallow(item, levels - 1) for item in inner)


class DiskSpace(NamedTuple):
    """The space of one file system."""

    free: int  # bytes that this user may still write
    total: int
    inodes_free: int
    inodes: int  # 0: this file system does not count them


def disk_space(path: Path) -> DiskSpace:
    """Return the space of the file system of `path`. Raise OSError if it cannot be read."""
    found = os.statvfs(str(path))
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files)


def children(directory: Path) -> List[Path]:
    """Return what is in a directory, sorted; nothing if it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hex. Follow a symlink. Raise OSError for anything else."""
    with open_to_read(path, follow=True) as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of an open file, in hex."""
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
