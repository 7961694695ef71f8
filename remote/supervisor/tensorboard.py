"""Read the scalars of TensorBoard's event files, without TensorBoard and without protobuf.

A file is a series of records: the length of the data (8 bytes, little endian), a checksum of it (4), the data, and a
checksum of that (4). The data is a message `Event` in the encoding of protocol buffers. Read are its `step` (field 2)
and, in its `summary` (5), each `value` (1) with its `tag` (1) and its number: `simple_value` (2), or a `tensor` (8)
with one element, as TensorFlow 2 writes it. See record_writer.h, event.proto, summary.proto and tensor.proto of
TensorFlow. The checksums are not verified: a damaged record is malformed, or has a wrong number.
"""

from __future__ import annotations

import struct
from typing import IO, Dict, Iterator, List, Optional, Tuple, Union

from remote.supervisor.output_files import Row

LONGEST_EVENT = 1 << 20  # bytes; images and graphs are longer, and are skipped
LONGEST_RECORD = 1 << 31  # bytes; a larger length is damage
LONGEST_TAG = 200  # bytes
MOST_EVENTS = 5000  # in one look
_FLOAT, _DOUBLE = 1, 2  # DataType of a tensor

Field = Tuple[int, Union[int, bytes]]


def read(file: IO[bytes], offset: int, most_bytes: int) -> Tuple[int, List[Row]]:
    """Read complete records.

    Args:
        file: The event file.
        offset: Where a record begins.
        most_bytes: After so many bytes no further record is begun.

    Returns:
        The offset behind the last record, and the scalars, those of one step in one row. After damage the offset is the
        end of the file, because where the next record begins is not known.

    Raises:
        OSError: The file cannot be read.
    """
    size = file.seek(0, 2)
    end, rows = offset + most_bytes, []  # type: Tuple[int, List[Row]]
    for _ in range(MOST_EVENTS):
        if offset + 12 > size or offset >= end:
            break
        file.seek(offset)
        head = file.read(12)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 12 or length > LONGEST_RECORD:
            return size, rows
        if offset + length + 16 > size:
            break  # it is being written
        if length <= LONGEST_EVENT:
            _add(rows, _event(file.read(length)))
        offset += length + 16
    return offset, rows


def _add(rows: List[Row], row: Row) -> None:
    if not row.values:
        return
    if rows and rows[-1].step == row.step:
        rows[-1].values.update(row.values)
    else:
        rows.append(row)


def _event(data: bytes) -> Row:
    step: Optional[int] = 0  # which is not written
    values: Dict[str, float] = {}
    try:
        for number, value in fields(data):
            if number == 2 and isinstance(value, int):
                step = value if value < 1 << 62 else None
            elif number == 5 and isinstance(value, bytes):
                values.update(_scalar(item) for key, item in fields(value) if key == 1 and isinstance(item, bytes))
    except (ValueError, struct.error):
        return Row(None, None, {})
    values.pop("", None)
    return Row(None, step, values)


def _scalar(data: bytes) -> Tuple[str, float]:
    """Return the tag and the number of one value; the tag is empty if it is no scalar."""
    tag, found = "", None  # type: str, Optional[float]
    for number, value in fields(data):
        if isinstance(value, int):
            continue
        if number == 1 and len(value) <= LONGEST_TAG:
            tag = value.decode("utf-8", "replace")
        elif number == 2 and len(value) == 4:
            found = struct.unpack("<f", value)[0]
        elif number == 8:
            found = _tensor(value)
    return (tag, found) if found is not None else ("", 0.0)


def _tensor(data: bytes) -> Optional[float]:
    kind, numbers = 0, b""
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):  # tensor_content, float_val, double_val
            numbers = value
    form, size = ("<f", 4) if kind == _FLOAT else ("<d", 8)
    return struct.unpack(form, numbers)[0] if kind in (_FLOAT, _DOUBLE) and len(numbers) == size else None


def fields(data: bytes) -> Iterator[Field]:
    """Yield the fields of a message: their numbers, and integers or bytes (also those of fixed-size numbers).

    Raises:
        ValueError: It is malformed.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            size, at = _varint(data, at)
        if size < 0 or at + size > len(data):
            raise ValueError("malformed message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("malformed message")
