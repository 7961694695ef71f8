"""The checksum of a file's content, as the box and the laptop compute it.

BLAKE2b is in every Python, and takes about 1 s for 1 GB on any CPU. SHA-256 takes two to three times as long where the
CPU has no instructions for it.
"""

from __future__ import annotations

import hashlib
import re

CHECKSUM = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20  # bytes of one read


def new_hash() -> hashlib.blake2b:
    """Return a new hash object, whose hex digest is a checksum."""
    return hashlib.blake2b(digest_size=32)
