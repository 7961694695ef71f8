"""samples.jsonl: the resources that a run uses, and those that are free on the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from remote.contract.nvidia import Gpu

_OMIT = {"omit": True}


def _cards(gpus: Tuple[Gpu, ...]) -> List[Dict[str, Optional[int]]]:
    """Return the cards with nvidia-smi's names (docs/run-directory.md)."""
    return [
        {
            "index": gpu.index,
            "utilization.gpu": gpu.utilization,
            "memory.used": gpu.used,
            "memory.total": gpu.total,
            "temperature.gpu": gpu.temperature,
        }
        for gpu in gpus
    ]


@dataclass(frozen=True)
class LoadSample:
    """A line of samples.jsonl."""

    time: float  # seconds since the epoch
    processes: int
    rss_bytes: int
    memory_available_bytes: Optional[int]
    disk_free_bytes: int
    gpus: Tuple[Gpu, ...] = field(metadata={"write": _cards})  # all cards of the machine
    cpu_percent: Optional[float] = field(default=None, metadata=_OMIT)  # 100 is one core; since the previous sample
