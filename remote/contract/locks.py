"""Kernel file locks. The kernel releases a lock when its process ends, so a crash cannot leak one."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from remote.contract.files import open_own, open_regular


def try_lock(path: Path, timeout: float = 0.0) -> Optional[int]:
    """Take the exclusive lock on `path`.

    Args:
        path: The lock file. It is created if needed; if something else has that name, it is moved aside.
        timeout: Seconds to wait for the lock. `is_held` takes a lock for a moment; a short wait outlasts that.

    Returns:
        The descriptor that holds the lock, or None if another process holds it.
    """
    descriptor = open_own(path, os.O_RDWR)
    until = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(0.02)


def is_held(path: Path) -> bool:
    """Return whether a process holds the exclusive lock on `path`."""
    try:
        descriptor = open_regular(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the exclusive lock on `path`, and hold it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
