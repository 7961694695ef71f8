"""GPU slots as kernel file locks, shared by all projects under one root. Runs are served in order.

A GPU has twelve shares. Each share is a lock file. The worker inherits the descriptors of its locks, so a share is
taken as long as its supervisor or its worker lives. A host with `gpus = 0` has one device, its CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Sequence

from remote.contract.locks import try_lock
from remote.contract.placement import SHARES, choose, shares_of
from remote.host.ticket_queue import TicketQueue

CPU = "cpu"


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
        self._queue = TicketQueue(directory, name)

    def close(self) -> None:
        """Leave the queue."""
        self._queue.leave()

    def can_ever_give(self, gpus: float) -> bool:
        """Return whether the box has enough devices for `gpus`, ignoring other runs."""
        return self.devices == [CPU] or gpus <= len(self.devices)

    def try_take(self, gpus: float) -> Optional[Grant]:
        """Take a share of one device, or whole devices. Return None if they are taken or if other runs come first.

        Args:
            gpus: A whole number of devices, or a share of one.
        """
        return self._queue.if_first(lambda: self._take(gpus))

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
