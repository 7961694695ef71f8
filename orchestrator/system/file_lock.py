"""A lock that processes and threads share, waited for within limits."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TICK_S = 0.02  # seconds between two attempts


class StillLocked(Exception):
    """Another process or thread holds the lock, and waiting for it has ended."""


@contextmanager
def file_lock(path: Path, limit_s: float, is_given_up: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created if it is missing. The kernel releases it if the process dies.

    Raises:
        StillLocked: It is not free within `limit_s` seconds, or `is_given_up` returns True before it is.
    """
    with open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        until = time.monotonic() + limit_s
        while not _is_taken(file.fileno()):
            if is_given_up() or time.monotonic() > until:
                raise StillLocked
            time.sleep(TICK_S)
        yield


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
