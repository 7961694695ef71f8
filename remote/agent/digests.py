"""The checksums of parts of files, so that the laptop can tell which bytes both sides have already."""

from __future__ import annotations

import hashlib
from typing import Optional

from remote.contract.files import open_to_read
from remote.contract.replies import DigestsReply
from remote.contract.requests import DigestsRequest

READ_BYTES = 1 << 20


def digests(request: DigestsRequest) -> DigestsReply:
    """Return the sha256 of each part; None for a part that cannot be read completely."""
    return DigestsReply(tuple(_digest(path, start, size) for path, start, size in request.parts))


def _digest(path: str, start: int, size: int) -> Optional[str]:
    digest = hashlib.sha256()
    try:
        with open_to_read(path) as file:
            file.seek(start)
            while size > 0:
                chunk = file.read(min(size, READ_BYTES))
                if not chunk:
                    return None
                digest.update(chunk)
                size -= len(chunk)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return digest.hexdigest()
