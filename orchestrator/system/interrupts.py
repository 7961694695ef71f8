"""SIGTERM and SIGHUP end a command as Ctrl-C does: through every clean-up on the way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Ending:
    """How an interrupted command ends: 128 and the signal's number, as a shell says it."""

    number: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


@contextmanager
def ending_cleanly() -> Iterator[Ending]:
    """Within the block the first SIGTERM or SIGHUP raises KeyboardInterrupt, and later ones do nothing.

    A signal that is ignored stays so, as `nohup` asks for.
    """
    ending = Ending()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        ending.number = number
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
