"""Files as the interface: whole or absent when written, tolerated when torn. Standard library alone."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, Optional, Union

MAX_JSON_BYTES = 4 * 1024 * 1024  # a run's documents are kilobytes; anything larger is not one of ours
MAX_RECORD_BYTES = 64 * 1024  # of what a worker or a supervisor writes about a run: a state, a heartbeat, metrics
MAX_INT = 2**63 - 1
MAX_LEVELS = 32  # of nesting, far below what would exhaust the stack
TEMP_PREFIX = ".tmp-"  # what a crash may leave behind; never shipped home


# --- opening: the only place of `remote` that opens files which a worker or a neighbour could have made ----------


def open_regular(path: Union[str, Path], flags: int = os.O_RDONLY, follow: bool = False) -> int:
    """Open a regular file and return its descriptor; it is made with mode 0600 where `flags` say O_CREAT.

    Never blocks: a FIFO, a socket, a device or a directory raises OSError, and so does a symlink unless `follow`.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(str(path), flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def open_to_read(path: Union[str, Path], follow: bool = False) -> IO[bytes]:
    """Open a regular file to read bytes. Raises as `open_regular`."""
    return os.fdopen(open_regular(path, follow=follow), "rb")


def open_own(path: Path, flags: int) -> int:
    """Open one of our own files to write, as `open_regular` with O_CREAT; anything else of that name is moved aside."""
    try:
        return open_regular(path, flags | os.O_CREAT)
    except OSError:
        if not displace(path):
            raise
        return open_regular(path, flags | os.O_CREAT)


def displace(path: Path) -> bool:
    """Move what is not a regular file aside, to `<name>.displaced-<hex>` beside it. False where nothing was moved."""
    try:
        if stat.S_ISREG(os.lstat(str(path)).st_mode):
            return False
        os.rename(str(path), f"{path}.displaced-{os.urandom(4).hex()}")
    except OSError:
        return False
    return True


def read_bytes(path: Path, limit: int, follow: bool = False) -> Optional[bytes]:
    """Return the content of a regular file; None where it cannot be read or has more than `limit` bytes."""
    try:
        descriptor = open_regular(path, follow=follow)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        return os.read(descriptor, size + 1) if size <= limit else None  # one more: it may have just grown
    except OSError:
        return None
    finally:
        os.close(descriptor)


# --- writing -----------------------------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes, durable: bool = False) -> None:
    """Replace `path` by `data` in one step; `durable` also waits for the disk."""
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
    """A name in the directory of `path` that no other writer uses. (tempfile takes the agent 10 ms to import.)"""
    return path.with_name(TEMP_PREFIX + os.urandom(8).hex())


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable (a rename is not, until its directory is synced)."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """One line of strict JSON; a number that is not finite, or beyond 63 bits, becomes null."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def write_json(path: Path, value: Mapping[str, Any], durable: bool = False) -> None:
    write_atomic(path, to_json(value), durable)


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Optional[Dict[str, Any]]:
    """The JSON object in `path`, or None where it is absent, larger than `limit` bytes, or not an object.

    `path` must be a regular file itself: a symlink is not followed.
    """
    data = read_bytes(path, limit)
    return None if data is None else parse_object(data)


def append_jsonl(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    """Append one line with one write, on a line of its own even after a torn one; `durable` also waits for the disk.

    Raises OSError, without blocking, where `path` is anything but a regular file.
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
    """Raises OSError where only a part of the line fits on the disk; the next one then begins after a newline."""
    written = os.write(descriptor, line)
    if written < len(line):
        os.write(descriptor, line[written:])


def read_jsonl(path: Path, limit: Optional[int] = None) -> Iterator[Dict[str, Any]]:
    """The objects in `path` (in its first `limit` bytes), line by line; a torn or foreign line is passed over."""
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


def read_jsonl_end(path: Path, size: int = 1 << 20) -> List[Dict[str, Any]]:
    """The objects in the last `size` bytes of `path`."""
    records = (parse_object(line) for line in end_lines(path, size))
    return [record for record in records if record is not None]


def end_lines(path: Path, size: int) -> List[bytes]:
    """The lines that begin in the last `size` bytes of a regular file; none where it cannot be read."""
    try:
        with open_to_read(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            return file.read(size).split(b"\n")[1 if start else 0 :]
    except OSError:
        return []


def parse_object(data: bytes) -> Optional[Dict[str, Any]]:
    """The JSON object in `data`, or None for anything else or for one nested too deeply.

    A number that is not finite, or that 63 bits cannot hold, becomes None, as `to_json` would have written it.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_number, parse_float=_parse_float, parse_int=_parse_int
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value, MAX_LEVELS) else None


def _no_number(text: str) -> None:
    return None


def _parse_float(text: str) -> Optional[float]:
    number = float(text)
    return number if math.isfinite(number) else None


def _parse_int(text: str) -> Optional[int]:
    return _bounded(int(text)) if len(text) < 21 else None  # longer ones take Python quadratic time


def _bounded(number: int) -> Optional[int]:
    return number if -MAX_INT <= number <= MAX_INT else None


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass


def sha256_file(path: Path) -> str:
    """The SHA-256 of a regular file, or of the one that a symlink leads to. Raises OSError for anything else."""
    digest = hashlib.sha256()
    with open_to_read(path, follow=True) as file:
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
