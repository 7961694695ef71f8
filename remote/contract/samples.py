"""samples.jsonl: the resources that a run uses, and those that are free on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from remote.contract.files import JsonObject
from remote.contract.nvidia import Gpu
from remote.contract.schema import fields_to_json


@dataclass(frozen=True)
class LoadSample:
    """A line of samples.jsonl."""

    time: float  # seconds since the epoch
    processes: int
    rss_bytes: int
    memory_available_bytes: Optional[int]
    disk_free_bytes: int
    gpus: Tuple[Gpu, ...]  # all cards of the machine
    cpu_percent: Optional[float] = None  # of one core, since the previous sample

    def to_json(self) -> JsonObject:
        """Return the line. The keys of cards are nvidia-smi's names (docs/run-directory.md)."""
        line = {**fields_to_json(self), "gpus": [_card(card) for card in self.gpus]}
        return {key: value for key, value in line.items() if key != "cpu_percent" or value is not None}


def _card(card: Gpu) -> Dict[str, Optional[int]]:
    return {
        "index": card.index,
        "utilization.gpu": card.utilization,
        "memory.used": card.used,
        "memory.total": card.total,
        "temperature.gpu": card.temperature,
    }
