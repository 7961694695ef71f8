"""Make SIGTERM and SIGHUP end a command as Ctrl-C does, so that all its clean-up code runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Ending:
    """The signal that interrupted the command."""

    number: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """Return 128 plus the signal's number, as shells do: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


@contextmanager
def ending_cleanly() -> Iterator[Ending]:
    """Raise KeyboardInterrupt in the block at the first SIGTERM or SIGHUP, and ignore later ones.

    A signal that is ignored already stays ignored, so `nohup` works.
    """
    ending = Ending()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        ending.number = number
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `orchestrator.program` leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
