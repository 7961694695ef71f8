"""A queue of runs that wait for something on their box, in order. A ticket is a file that its run keeps locked.

The kernel releases the lock when the run's supervisor ends, so no dead run holds up the others.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Callable, Optional, TypeVar

from remote.contract.files import open_own, remove
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.paths import NAME, QUEUE, RUN_ID, ProjectPaths, RunPaths

T = TypeVar("T")
ANNOUNCED_S = 10.0  # seconds for which a place is kept for a supervisor that has not started yet


def ticket_name(run: RunPaths) -> str:
    """Return the run's name in a queue. Names sort by launch time, like run ids."""
    return f"{run.run_id}.{run.job}"


def run_of_ticket(paths: ProjectPaths, ticket: str) -> Optional[RunPaths]:
    """Return the run of the project with this name in a queue; None if it is not the name of a ticket."""
    run_id, _, job = ticket.partition(".")
    return paths.run(job, run_id) if RUN_ID.fullmatch(run_id) and NAME.fullmatch(job) else None


def announce(directory: Path, name: str) -> None:
    """Keep a place in the queue until the supervisor takes it, so that the runs of one launch start in order."""
    ticket = directory / QUEUE / name
    ticket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(open_own(ticket, os.O_WRONLY))


class TicketQueue:
    """The place of one run in a queue, which it joins.

    Args:
        directory: The directory of what the runs wait for.
        name: The run's name, from `ticket_name`.
        is_coming: Whether the run of a ticket that nobody has locked still comes to lock it.
    """

    def __init__(self, directory: Path, name: str, is_coming: Callable[[str], bool] = lambda ticket: False) -> None:
        self._is_coming = is_coming
        self._allocation = directory / "allocate.lock"
        self._ticket = directory / QUEUE / name
        self._ticket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._allocation):
            self._ticket_lock = try_lock(self._ticket, timeout=5)
            if self._ticket_lock is not None:
                os.pwrite(self._ticket_lock, b"taken\n", 0)

    def leave(self) -> None:
        """Leave the queue."""
        with locked(self._allocation):
            remove(self._ticket)
        if self._ticket_lock is not None:
            os.close(self._ticket_lock)
            self._ticket_lock = None

    def if_first(self, take: Callable[[], Optional[T]]) -> Optional[T]:
        """Return what `take` returns, or None if other runs come first. Meanwhile no other run takes anything."""
        with locked(self._allocation):
            return take() if self._is_first() else None

    def _is_first(self) -> bool:
        for path in sorted(self._ticket.parent.iterdir()):
            if path == self._ticket:
                return True
            if is_held(path) or _is_announced(path) or self._is_coming(path.name):
                return False
            _remove_ticket(path)  # its supervisor died
        return True


def _is_announced(ticket: Path) -> bool:
    """Return whether no supervisor has taken the ticket yet, and one may still start."""
    try:
        found = ticket.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return False  # not made by a launch
    return found.st_size == 0 and abs(time.time() - found.st_mtime) < ANNOUNCED_S


def _remove_ticket(path: Path) -> None:
    try:
        remove(path)
    except OSError:
        pass  # for example a directory: it is not ours, and no run waits for it
