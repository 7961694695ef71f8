"""Choose the devices of a job. The box locks them; the laptop uses the same rule to forecast their memory."""

from __future__ import annotations

from typing import List, Mapping, Optional, TypeVar

SHARES = 12  # per device, so that a job can ask for a half, third, quarter, sixth or twelfth

Device = TypeVar("Device")


def shares_of(gpus: float) -> int:
    """Return the shares that a job takes of each of its devices; `gpus` is a number of devices, or a part of one."""
    return SHARES if gpus >= 1 else round(gpus * SHARES)


def choose(free: Mapping[Device, int], gpus: float) -> Optional[List[Device]]:
    """Return the devices for a job that asks for `gpus`, or None if it has to wait.

    Devices with the most free shares come first, so two jobs with half a GPU each get two GPUs if there are two. Among
    equal devices, the first one is taken.

    Args:
        free: the free shares of each device, 0 to SHARES, in the order of the devices.
        gpus: more than 0; a whole number, or a part of one device.
    """
    count, shares = max(1, int(gpus)), shares_of(gpus)
    fitting = [device for device in free if free[device] >= shares]
    chosen = sorted(fitting, key=lambda device: -free[device])[:count]
    return chosen if len(chosen) == count else None
