"""Kernel file locks: held by a process as long as it lives, so that no crash can leak one."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from remote.contract.files import open_own, open_regular


def try_lock(path: Path, patience: float = 0.0) -> Optional[int]:
    """A descriptor that holds the exclusive lock on `path`, or None where another process holds it.

    `patience`, in seconds, outlasts the moment for which `is_held` takes the lock to look. What is not a regular
    file is no lock of ours: it is moved aside.
    """
    descriptor = open_own(path, os.O_RDWR)
    until = time.monotonic() + patience
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
    """Whether some process holds the exclusive lock on `path`."""
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
    """Hold the exclusive lock on `path`, waiting for it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
