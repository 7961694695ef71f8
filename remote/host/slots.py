"""GPU slots as kernel file locks, shared by all projects under one root. Runs are served in order.

A GPU has twelve shares. Each share is a lock file. The worker inherits the descriptors of its locks, so a share is
taken as long as its supervisor or its worker lives. A host with `gpus = 0` has one device, its CPU.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import List, Optional, Sequence

from remote.contract.files import open_own, remove
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.paths import QUEUE, RunPaths
from remote.contract.placement import SHARES, choose, shares_of

CPU = "cpu"
ANNOUNCED_S = 10.0  # seconds for which a place is kept for a supervisor that has not started yet


class Grant:
    """Shares of devices. They are taken until `release`, and until all processes with their descriptors have ended."""

    def __init__(self, devices: Sequence[str], descriptors: Sequence[int]) -> None:
        self.devices = list(devices)
        self.descriptors = list(descriptors)

    @property
    def cuda_visible_devices(self) -> str:
        """Return the value for the job. It is "" for a job on the CPU, so that it sees no GPU."""
        return ",".join(device[len("gpu") :] for device in self.devices if device != CPU)

    def release(self) -> None:
        """Close our descriptors of the locks."""
        while self.descriptors:
            os.close(self.descriptors.pop())


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


def ticket_name(run: RunPaths) -> str:
    """Return the run's name in the queue. Names sort by launch time, like run ids."""
    return f"{run.run_id}.{run.job}"


def announce(directory: Path, name: str) -> None:
    """Keep a place in the queue until the supervisor takes it, so that the runs of one launch start in order."""
    ticket = directory / QUEUE / name
    ticket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(open_own(ticket, os.O_WRONLY))


class Slots:
    """The devices of a box for one waiting run, which joins the queue.

    Args:
        directory: The directory of the lock files.
        devices: `gpu0`, `gpu1`, ... or `cpu`.
        name: The run's name in the queue, from `ticket_name`.
    """

    def __init__(self, directory: Path, devices: Sequence[str], name: str) -> None:
        self.directory = directory
        self.devices = list(devices)
        self._allocation = directory / "allocate.lock"
        self._ticket = directory / QUEUE / name
        self._ticket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._allocation):
            self._ticket_lock = try_lock(self._ticket, timeout=5)
            if self._ticket_lock is not None:
                os.pwrite(self._ticket_lock, b"taken\n", 0)

    def close(self) -> None:
        """Leave the queue."""
        with locked(self._allocation):
            remove(self._ticket)
        if self._ticket_lock is not None:
            os.close(self._ticket_lock)
            self._ticket_lock = None

    def can_ever_give(self, gpus: float) -> bool:
        """Return whether the box has enough devices for `gpus`, ignoring other runs."""
        return self.devices == [CPU] or gpus <= len(self.devices)

    def try_take(self, gpus: float) -> Optional[Grant]:
        """Take a share of one device, or whole devices. Return None if they are taken or if other runs come first.

        Args:
            gpus: A whole number of devices, or a share of one.
        """
        with locked(self._allocation):
            return self._take(gpus) if self._is_first() else None

    def _is_first(self) -> bool:
        for path in sorted(self._ticket.parent.iterdir()):
            if path == self._ticket:
                return True
            if is_held(path) or _is_announced(path):
                return False
            _remove_ticket(path)  # its supervisor died
        return True

    def _take(self, gpus: float) -> Optional[Grant]:
        if self.devices == [CPU]:
            gpus = min(gpus, 1.0)  # the job may ask for more GPUs on other hosts
        locks = {device: self._lock_free_shares(device) for device in self.devices}
        chosen = choose({device: len(free) for device, free in locks.items()}, gpus) or []
        kept = [lock for device in chosen for lock in locks[device][: shares_of(gpus)]]
        for lock in (lock for free in locks.values() for lock in free if lock not in kept):
            os.close(lock)
        return Grant(sorted(chosen), kept) if kept else None

    def _lock_free_shares(self, device: str) -> List[int]:
        locks = (try_lock(self.directory / f"{device}.{share:02d}.lock") for share in range(SHARES))
        return [lock for lock in locks if lock is not None]
