"""What a worker reports beside its heartbeat: metrics.jsonl, failure.json and checkpoints/best.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

from remote.contract.files import JsonObject
from remote.contract.protocol import SCHEMA
from remote.contract.schema import read_fields


@dataclass(frozen=True)
class MetricsLine:
    """A line of metrics.jsonl, and what is in latest_metrics.json: the result of one validation."""

    time: float = 0.0  # seconds since the epoch
    epoch: Optional[int] = None
    step: Optional[int] = None  # over all epochs
    goals: Dict[str, bool] = field(default_factory=dict)  # whether each of them holds
    values: JsonObject = field(default_factory=dict)  # the metrics by name; in the file they are beside the rest

    def to_json(self) -> JsonObject:
        head = {"schema": SCHEMA, "time": self.time, "epoch": self.epoch, "step": self.step}
        return {**head, **self.values, "goals": self.goals}

    @classmethod
    def from_json(cls, value: JsonObject) -> MetricsLine:
        """Return the line. Malformed fields have their defaults."""
        values = {
            name: item for name, item in value.items() if name not in ("schema", "time", "epoch", "step", "goals")
        }
        return read_fields(cls, {**value, "values": values}, problems=[])


@dataclass(frozen=True)
class FailureRecord:
    """What is in failure.json: the reason that the worker gives for its failure."""

    attempt: int
    reason: str = ""  # one word, such as `non_finite`
    detail: str = ""  # a sentence


@dataclass(frozen=True)
class BestCheckpoint:
    """What is in checkpoints/best.json."""

    checkpoint: str  # its file name
    score: Tuple[float, ...] = ()  # compared in this order
