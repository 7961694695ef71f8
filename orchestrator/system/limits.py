"""Time limits for a box: how long it may stay silent, and how long an operation may take in total."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_S = 60.0  # seconds without a byte of the reply
CALL_S = 300.0  # seconds for one request in total: connect, log in, install the agent, reply
STREAM_SILENCE_S = 30.0  # seconds; the agent sends a frame, if only an empty one, every few seconds
TOO_SLOW = "the host or the network is too slow: check both"  # a hint of error messages
FRAME_S = 150.0  # seconds from the end of one frame to the end of the next


@contextmanager
def calling_after(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Call `action` in another thread if the block takes longer than `seconds`."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class TooSlow(TimeoutError):
    """The total time limit has passed although data was still arriving."""


class LimitedReader(io.RawIOBase):
    """The output of a command, read with time limits. Subclasses implement `receive`.

    Reading raises TimeoutError after `silence_s` seconds without a byte, and TooSlow after the limit set by `allow`.
    """

    def __init__(self, silence_s: float) -> None:
        super().__init__()
        self.silence_s = silence_s
        self._limit_s = self._until = float("inf")

    def allow(self, seconds: float) -> None:
        """Limit the total time from now on: reads after `seconds` raise TooSlow."""
        self._limit_s, self._until = seconds, time.monotonic() + seconds

    def readable(self) -> bool:
        """Return True, as `io.BufferedReader` requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the bytes that arrive next and return their number, 0 at the end of the output."""
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
        """Return up to `size` bytes, b"" at the end of the output, None if nothing came for `wait_s` seconds."""
        raise NotImplementedError
