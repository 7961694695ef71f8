"""The position of a run in its training, as used in heartbeat.json, the worker's API and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Position:
    """A place in the training. `epoch` and `step` count from 1, `step` within its epoch; None if not reported."""

    epoch: Optional[int] = None
    epochs: Optional[int] = None
    step: Optional[int] = None
    steps: Optional[int] = None  # in each epoch

    def fraction_done(self) -> Optional[float]:
        """Return the share of all epochs that is done, 0 to 1, or None if the counts are missing."""
        epoch, epochs, step, steps = self.epoch, self.epochs, self.step, self.steps
        if not epoch or not epochs or epoch < 0 or epochs < 0:
            return None
        if epoch > epochs:
            return 1.0
        within = min(1.0, max(0, step) / steps) if step and steps and steps > 0 else 0.0
        return min(1.0, (epoch - 1 + within) / epochs)

    def steps_done(self) -> Optional[int]:
        """Return the number of steps over all epochs, or that within the epoch if the rest is not reported."""
        if self.step is None or self.epoch is None or self.steps is None:
            return self.step
        return self.step + (self.epoch - 1) * self.steps
