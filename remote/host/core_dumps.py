"""Core dumps of processes that hold secrets: none are written."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Let neither this process nor what it starts leave a core dump.

    A limit of 0 keeps the kernel from writing a file, and says nothing to a program that core_pattern pipes the dump
    to (core(5)). A limit of 1 byte does both: it is too small for a file, and the kernel takes it as the sign not to
    start that program (fs/coredump.c of Linux).
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if most == 0 else 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    except (OSError, ValueError):
        pass  # it stays as it is where the system does not allow even a lower one
