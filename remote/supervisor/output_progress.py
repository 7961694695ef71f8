"""The progress of a program according to the signs in its output: epoch, step, and the time that is left."""

from __future__ import annotations

import math
from typing import Optional, Tuple

from remote.contract.position import Position
from remote.supervisor.forms import TRAIN, Sign

MOST_ETA = 3650 * 86400.0  # seconds; more is no estimate


class OutputProgress:
    """Follows the position of one attempt.

    Attributes:
        position: Where the program is. `epoch` counts from 1, also if the program counts from 0.
        phase: `train`, or the title of the bar that it shows.
    """

    def __init__(self, before: Position, epochs: Optional[int] = None, steps: Optional[int] = None) -> None:
        """Start.

        Args:
            before: What an earlier supervisor has seen of the same attempt.
            epochs: How many there are in the run, if the output does not tell.
            steps: The same for a program that reports no epochs.
        """
        self.position, self.phase = before, TRAIN
        self._epochs, self._steps = epochs, steps
        self._counts_from_zero = False
        self._has_epochs_bar = False
        self._has_run_bar = False  # one that counts the steps of the complete run
        self._end: Optional[float] = None  # monotonic time at which the run ends, according to its output
        self._first: Optional[Tuple[float, float]] = None  # monotonic seconds and the share done, when first seen

    def take(self, sign: Sign, depth: int, now: float) -> bool:
        """Take one sign. Return whether it has changed the position, the phase or the time left.

        Args:
            sign: What a line said.
            depth: How deep its bar is nested in other bars.
            now: Monotonic time, in seconds.
        """
        if not sign.has_position or (sign.is_bar and not self._is_ours(sign, depth)):
            return False
        before = (self.position, self.phase, self._end)
        if sign.counts_epochs:
            self._take_epochs_bar(sign)
        elif sign.is_fraction:
            if not self._has_run_bar and sign.epoch is not None:
                self._enter(max(1, math.ceil(sign.epoch)), sign.epochs)
        elif sign.epoch is not None:
            self._counts_from_zero |= sign.epoch == 0
            self._enter(int(sign.epoch) + self._counts_from_zero, sign.epochs)
        phase = sign.phase or TRAIN
        if phase != self.phase:  # another bar: the steps of the last one no longer count
            self.phase, self.position = phase, Position(self.position.epoch, self.position.epochs)
        self._take_step(sign)
        self._take_eta(sign, now)
        done = self.share_done()
        if done is not None and (self._first is None or done < self._first[1]):
            self._first = (now, done)
        return before != (self.position, self.phase, self._end)

    def learn(self, epochs: Optional[int], steps: Optional[int]) -> None:
        """Take how many epochs and steps the run has, as far as they are not known yet."""
        self._epochs, self._steps = self._epochs or epochs, self._steps or steps

    def share_done(self) -> Optional[float]:
        """Return the share of the run that is done, from 0 to 1; None if it is not known."""
        at = self.position
        if at.epoch is None and at.step is not None and at.steps and self.phase == TRAIN:
            return min(1.0, at.step / at.steps)
        return at.fraction_done()

    def eta(self, now: float) -> Optional[float]:
        """Return the seconds that are left: as a bar of the complete run says, or by the pace so far."""
        if self.phase != TRAIN:
            return None
        if self._end is not None:
            return min(max(0.0, self._end - now), MOST_ETA)
        done = self.share_done()
        if done is None or self._first is None or done <= self._first[1]:
            return None
        began, done_then = self._first
        return min((1.0 - done) * (now - began) / (done - done_then), MOST_ETA)

    def _is_ours(self, sign: Sign, depth: int) -> bool:
        """Return whether a bar shows the position. A nested one does if the outer bar counts epochs."""
        return depth == 0 or sign.counts_epochs or sign.epoch is not None or self._has_epochs_bar

    def _take_epochs_bar(self, sign: Sign) -> None:
        self._has_epochs_bar = True
        done = int(sign.epoch or 0)
        self._enter(min(done + 1, sign.epochs or done + 1), sign.epochs)
        is_done = sign.epochs is not None and done >= sign.epochs
        if is_done and self.position.steps:
            self.position = self._at(self.position.steps, self.position.steps)

    def _enter(self, epoch: int, epochs: Optional[int]) -> None:
        """Enter an epoch: the steps of another one no longer count."""
        at = self.position
        total = epochs or at.epochs or self._epochs
        if total is not None and epoch > total:
            total = None
        is_same = at.epoch == epoch
        self.position = Position(epoch, total, at.step if is_same else None, at.steps if is_same else None)

    def _take_step(self, sign: Sign) -> None:
        if sign.counts_epochs:
            return
        if sign.step is not None:
            steps = sign.steps or self.position.steps or (self._steps if self.position.epoch is None else None)
            self.position = self._at(sign.step, steps if steps is None or steps >= sign.step else None)
            self._has_run_bar |= sign.is_bar and self.position.epoch is None and self.phase == TRAIN

    def _take_eta(self, sign: Sign, now: float) -> None:
        """Take the time left: that of a bar if the bar counts the complete run, any other time if a line says `eta`."""
        is_of_run = sign.counts_epochs or not sign.is_bar or self.position.epoch is None
        if sign.eta_s is not None and is_of_run:
            self._end = now + sign.eta_s
        elif sign.step is not None and sign.is_bar and not self._has_epochs_bar:
            self._end = None

    def _at(self, step: Optional[int], steps: Optional[int]) -> Position:
        return Position(self.position.epoch, self.position.epochs, step, steps)
