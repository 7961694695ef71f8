"""What a worker reports in small files of its own: failure.json and checkpoints/best.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


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
