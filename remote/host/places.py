"""The places of a group: at most so many of its runs run at a time on a box (`orch launch --at-once`).

Each place is a lock file. As with GPU slots, the worker inherits the lock, so a place is taken as long as the run's
supervisor or its worker lives, and neither a crash nor a reboot can leak one. Runs are served in launch order: a run
whose environment takes longer than that of a later one still comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional

from remote.contract.locks import try_lock
from remote.host.slots import Grant
from remote.host.ticket_queue import TicketQueue


class Places:
    """The places of a group for one waiting run, which joins the queue.

    Args:
        directory: The directory of the group.
        count: The number of places.
        name: The run's name in the queue.
        is_coming: Whether an announced run, by its name in the queue, will still ask for a place.
    """

    def __init__(self, directory: Path, count: int, name: str, is_coming: Callable[[str], bool]) -> None:
        self._directory, self._count = directory, count
        self._queue = TicketQueue(directory, name, is_coming)

    def close(self) -> None:
        """Leave the queue."""
        self._queue.leave()

    def try_take(self) -> Optional[Grant]:
        """Take a place. Return None if all are taken or if other runs come first."""
        return self._queue.if_first(self._take)

    def _take(self) -> Optional[Grant]:
        locks = (try_lock(self._directory / f"place.{number}.lock") for number in range(self._count))
        return next((Grant((), [lock]) for lock in locks if lock is not None), None)
