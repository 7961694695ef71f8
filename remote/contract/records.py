"""Read and write files that contain one record, as dataclasses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Type, TypeVar

from remote.contract.files import MAX_JSON_BYTES, read_json, write_json
from remote.contract.schema import Malformed, from_json, to_json

T = TypeVar("T")


def read_record(kind: Type[T], path: Path, limit: int = MAX_JSON_BYTES) -> Optional[T]:
    """Read a record.

    Args:
        kind: The dataclass.
        path: The file.
        limit: The largest size that is read, in bytes.

    Returns:
        The record, with defaults for malformed fields. None if the file cannot be read, is larger than `limit`, is not
        a JSON object, or has a malformed field without a default. Only `limit` limits the length of a text.
    """
    value = read_json(path, limit)
    try:
        return None if value is None else from_json(kind, value, problems=[], longest=None)
    except Malformed:
        return None


def write_record(path: Path, record: Any, durable: bool = False) -> None:
    """Write the dataclass `record`. Raise OSError as `write_atomic` does."""
    write_json(path, to_json(record), durable)
