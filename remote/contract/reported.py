"""The reports of a worker besides its heartbeat: metrics.jsonl, failure.json and checkpoints/best.json.

Where a worker writes no heartbeat and no metrics itself, the supervisor writes them from the worker's output, and marks
them with `"source": "output"`. A file without that mark is the worker's: the supervisor leaves it alone.
"""

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


@dataclass(frozen=True)
class FilePosition:
    """How far a file of metrics was read."""

    offset: int = field(default=0, metadata={"least": 0})  # bytes
    rows: int = field(default=0, metadata={"least": 0})


@dataclass(frozen=True)
class OutputRecord:
    """The content of output.json: how far the supervisor has read the metrics in the worker's output."""

    json_head: ClassVar[Dict[str, int]] = {"schema": SCHEMA}
    attempt: int = 0
    log: int = field(default=0, metadata={"least": 0})  # offset in the log
    files: Dict[str, FilePosition] = field(default_factory=dict)  # by path
