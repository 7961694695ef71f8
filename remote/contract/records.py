"""Read and write the files of a run that hold one record each, as a dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Type, TypeVar

from remote.contract.files import MAX_JSON_BYTES, read_json, write_json
from remote.contract.schema import Malformed, from_json, to_json

T = TypeVar("T")


def read_record(kind: Type[T], path: Path, limit: int = MAX_JSON_BYTES) -> Optional[T]:
    """Return the record in `path` as the dataclass `kind`; its malformed fields have their defaults.

    Return None if `path` holds no JSON object of at most `limit` bytes, or a field without a default is malformed.
    """
    value = read_json(path, limit)
    try:
        return None if value is None else from_json(kind, value, problems=[])
    except Malformed:
        return None


def write_record(path: Path, record: Any, durable: bool = False) -> None:
    """Write the dataclass `record`. Raise OSError as `write_atomic` does."""
    write_json(path, to_json(record), durable)
