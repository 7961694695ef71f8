"""Prevent core dumps of processes that hold secrets."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Prevent core dumps of this process and of every process that it starts.

    With a limit of 0 the kernel writes no file, but still starts a program that core_pattern pipes dumps to (core(5)).
    With a limit of 1 byte it does neither: the limit is too small for a file, and tells the kernel not to start that
    program (fs/coredump.c of Linux).
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if most == 0 else 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    except (OSError, ValueError):
        pass  # the system does not allow even a lower limit
