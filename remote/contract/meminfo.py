"""The memory of a Linux machine, as /proc/meminfo reports it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Memory:
    """The memory of the machine, in bytes."""

    total: int
    available: int


def parse_meminfo(text: str) -> Optional[Memory]:
    """Return the memory in the text of /proc/meminfo, or None if it does not have both figures."""
    found = dict(re.findall(r"(?m)^(MemTotal|MemAvailable):\s+([0-9]{1,15}) kB", text))
    if len(found) < 2:
        return None
    return Memory(int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024)
