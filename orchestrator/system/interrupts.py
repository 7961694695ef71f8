"""Make SIGTERM and SIGHUP end a command as Ctrl-C does, so that all its clean-up code runs; Ctrl-Z shows the cursor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
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


SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


@contextmanager
def showing_cursor_when_stopped(is_hidden: Callable[[], bool]) -> Iterator[None]:
    """Show the cursor of the terminal while the block is stopped by Ctrl-Z, if `is_hidden` returns True then."""
    if not sys.stderr.isatty() or signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        hidden = is_hidden()
        if hidden:
            os.write(sys.stderr.fileno(), SHOW_CURSOR)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns when the shell continues the command
        signal.signal(signal.SIGTSTP, stop)
        if hidden and is_hidden():
            os.write(sys.stderr.fileno(), HIDE_CURSOR)

    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
