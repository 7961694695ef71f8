"""The reports of a worker besides its heartbeat: metrics.jsonl, failure.json and checkpoints/best.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

from remote.contract.files import JsonObject
from remote.contract.protocol import SCHEMA
from remote.contract.schema import read_fields


@dataclass(frozen=True)
class MetricsLine:
    """The result of one validation: a line of metrics.jsonl, or the content of latest_metrics.json."""

    time: float = 0.0  # seconds since the epoch
    epoch: Optional[int] = None
    step: Optional[int] = None  # over all epochs
    goals: Dict[str, bool] = field(default_factory=dict)  # whether each is met, by its metric
    values: JsonObject = field(
        default_factory=dict
    )  # the metrics by name; in the file they are beside the other fields

    def to_json(self) -> JsonObject:
        """Return the line."""
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
    """The content of failure.json: the reason that the worker gives for its failure."""

    attempt: int
    reason: str = ""  # one word, such as `non_finite`
    detail: str = ""  # a sentence


@dataclass(frozen=True)
class BestCheckpoint:
    """The content of checkpoints/best.json."""

    checkpoint: str  # its file name
    score: Tuple[float, ...] = ()  # compared number by number; higher is better
