"""Wait for events of the kernel instead of polling: a process ends, a file in a directory changes.

Not every machine has them (Linux; pidfd also needs Python 3.9), and changes by other machines on a network file system
make none. So each caller also polls, more rarely.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Sequence, Set

from remote.host.process import is_alive

MODIFIED, MOVED_TO, CREATED = 0x2, 0x80, 0x100  # inotify(7)


def open_process(pid: int, known_as: str) -> int:
    """Return a descriptor that is readable once the process has ended.

    Returns:
        The descriptor; -1 if the process has ended already, or if the machine has no such descriptors.
    """
    pidfd_open = getattr(os, "pidfd_open", None)
    if pidfd_open is None or pid <= 0:
        return -1
    try:
        descriptor = int(pidfd_open(pid))
    except OSError:
        return -1
    if is_alive(pid, known_as):  # else another process may have its pid by now
        return descriptor
    os.close(descriptor)
    return -1


def open_directory(path: Path) -> int:
    """Return a descriptor that is readable once a file directly in the directory was written, made or replaced.

    Returns:
        The descriptor, which `drain` makes unreadable until the next change; -1 if the machine has no inotify.
    """
    try:
        import ctypes

        library = ctypes.CDLL(None)
        descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if descriptor < 0:
            return -1
        if library.inotify_add_watch(descriptor, os.fsencode(str(path)), MODIFIED | MOVED_TO | CREATED) >= 0:
            return descriptor
        os.close(descriptor)
    except (ImportError, OSError, AttributeError):
        pass
    return -1


def wait(descriptors: Sequence[int], seconds: float) -> Set[int]:
    """Wait until one of the descriptors is readable, but at most `seconds`. Return those that are; -1 never is."""
    poller = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll(seconds * 1000)}


def drain(descriptor: int) -> None:
    """Read what a descriptor that does not block has now."""
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except OSError:
        pass
