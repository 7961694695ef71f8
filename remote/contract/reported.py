"""The reports of a worker besides its heartbeat: metrics.jsonl, failure.json and checkpoints/best.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Tuple

from remote.contract.protocol import SCHEMA


@dataclass(frozen=True)
class MetricsLine:
    """The result of one validation: a line of metrics.jsonl, or the content of latest_metrics.json.

    `values` has the metrics by name and the `time` in seconds since the epoch, unless a metric has that name. Metrics
    that are named like a field below are not written: epoch and step identify the line.
    """

    json_head: ClassVar[Dict[str, int]] = {"schema": SCHEMA}
    epoch: Optional[int] = None
    step: Optional[int] = None  # over all epochs
    goals: Dict[str, bool] = field(default_factory=dict)  # whether each is met, by its metric
    values: Dict[str, Any] = field(default_factory=dict, metadata={"rest": True})


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
