"""Files as the interface: whole or absent when written, tolerated when torn. Standard library alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

MAX_JSON_BYTES = 4 * 1024 * 1024  # a run's documents are kilobytes; anything larger is not one of ours
MAX_INT = 2**63 - 1
MAX_LEVELS = 32  # of nesting, far below what would exhaust the stack
TEMP_PREFIX = ".tmp-"  # what a crash may leave behind; never shipped home


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


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """The JSON object in `path`, or None where it is absent, oversized, or not an object."""
    try:
        with open(str(path), "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError:
        return None
    return parse_object(data) if len(data) <= MAX_JSON_BYTES else None


def append_jsonl(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    """Append one line with one write, on a line of its own even after a torn one; `durable` also waits for the disk."""
    descriptor = os.open(str(path), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
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


def read_jsonl(path: Path) -> Iterator[Dict[str, Any]]:
    """The objects in `path`, line by line; a torn or foreign line is passed over."""
    try:
        file = open(str(path), "rb")  # noqa: SIM115 - closed below; only the opening may fail quietly
    except OSError:
        return
    with file:
        while True:
            line = file.readline(MAX_JSON_BYTES)
            if not line:
                return
            record = parse_object(line)
            if record is not None:
                yield record


def read_jsonl_end(path: Path, size: int = 1 << 20) -> List[Dict[str, Any]]:
    """The objects in the last `size` bytes of `path`."""
    try:
        with open(str(path), "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            lines = file.read(size).split(b"\n")
    except OSError:
        return []
    records = (parse_object(line) for line in lines[1 if start else 0 :])
    return [record for record in records if record is not None]


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
    digest = hashlib.sha256()
    with open(str(path), "rb") as file:
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
