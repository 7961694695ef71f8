"""How long a box may take: without a sign of life, and in all."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_S = 60.0  # seconds without a byte of an answer
CALL_S = 300.0  # seconds for one question in all: connecting, logging in, installing the agent, the answer
STREAM_SILENCE_S = 30.0  # the agent sends a frame every few seconds, if only an empty one
TOO_SLOW = "the host or the network is too slow: check both"  # the hint
FRAME_S = 150.0  # seconds from the end of one frame to the end of the next


@contextmanager
def calling_after(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Call `action` from another thread if the block is not left within `seconds`."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class TooSlow(TimeoutError):
    """The total limit has passed, though something was still coming."""


class LimitedReader(io.RawIOBase):
    """What a command says, within limits. Raises TimeoutError after `silence_s` seconds without a byte of it."""

    def __init__(self, silence_s: float) -> None:
        super().__init__()
        self.silence_s = silence_s
        self._limit_s = self._until = float("inf")

    def allow(self, seconds: float) -> None:
        """From now on `seconds` in all: TooSlow afterwards."""
        self._limit_s, self._until = seconds, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        silent_until = time.monotonic() + self.silence_s
        while True:
            now = time.monotonic()
            if now >= self._until:
                raise TooSlow(f"not finished within {self._limit_s:g} s, though it still sends now and then")
            data = self.receive(len(buffer), min(silent_until, self._until) - now)
            if data is not None:
                buffer[: len(data)] = data
                return len(data)
            if time.monotonic() >= silent_until:
                raise TimeoutError(f"no answer for {self.silence_s:g} s")

    def receive(self, size: int, wait_s: float) -> bytes | None:
        """Up to `size` bytes, empty at the end; None if nothing came within (at most) `wait_s` seconds."""
        raise NotImplementedError
