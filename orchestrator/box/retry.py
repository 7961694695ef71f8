"""Retry requests after a lost connection.

This is safe because every request can be repeated: a launch names its run ids, a copy continues where it stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.box.transport import Frame, Handshake, Hop, Progress, Transport
from orchestrator.errors import AgentUnusable, HostTooSlow, HostUnreachable
from orchestrator.system.limits import CALL_S, TOO_SLOW

if TYPE_CHECKING:
    from remote.contract.requests import Request

T = TypeVar("T")
MAX_BACKOFF = 30.0  # seconds between two attempts
MAX_ONCE_BYTES = 64 << 20  # the largest stream that is kept in memory until it has ended
FRAME_COST = 1024  # the minimum bytes counted for a frame: even an empty one uses memory


@dataclass(frozen=True)
class Waiting:
    """A connection was lost; the next attempt follows in `delay` seconds."""

    error: HostUnreachable
    delay: float

    def __str__(self) -> str:
        return f"{self.error.message}; trying again in {self.delay:.0f} s, Ctrl-C gives up"


@dataclass
class Backoff:
    """Delays of 1, 2, 4 ... 30 seconds, each shortened by up to a quarter so that clients do not retry all at once."""

    delay: float = 0.0

    def next(self) -> float:
        """Advance to the next delay and return it, in seconds."""
        self.delay = min(MAX_BACKOFF, self.delay * 2 or 1.0)
        return self.delay

    def sleep(self) -> None:
        """Sleep for the current delay, shortened at random."""
        time.sleep(self.delay * random.uniform(0.75, 1.0))

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self.delay = 0.0


class RetryingTransport(Transport):
    """A transport that waits and tries again after a lost connection.

    It does not retry if the host was never reached or is too slow: that could take forever.
    """

    def __init__(self, transport: Transport, notify: Callable[[str], None]) -> None:
        """Wrap `transport`. `notify` gets a message before each wait."""
        self.host, self.checks_copies = transport.host, transport.checks_copies
        self._transport, self._notify = transport, notify
        self._was_reached = False

    def call(self, request: Request) -> Any:
        """Send one request and return the result. See `Transport.call`."""
        return self._retry(lambda: self._transport.call(request))

    def stream(self, request: Request) -> Iterator[Frame]:
        """Yield the frames of a stream. See `Transport.stream`.

        Only a stream that ends by itself (`once`) is retried; it is collected before its first frame is returned.
        `commands.watch.follow` continues other streams itself, from where they stopped.
        """
        if getattr(request.what, "once", False):
            return iter(self._retry(lambda: self._collect(request)))
        return self._transport.stream(request)

    def _collect(self, request: Request) -> list[Frame]:
        """Return all frames of a stream. Raise AgentUnusable if it is too large, HostTooSlow if it takes too long."""
        doing = f"reading {request.op!r} on {self.host}"
        frames: list[Frame] = []
        size, until = 0, time.monotonic() + CALL_S
        for frame in self._transport.stream(request):
            size += max(frame.size, FRAME_COST)
            if size > MAX_ONCE_BYTES:
                raise AgentUnusable(
                    f"{doing}: stopped after {MAX_ONCE_BYTES >> 20} MiB, the limit for one reply",
                    "check what the job writes to its log",
                )
            if time.monotonic() > until:
                raise HostTooSlow(f"{doing}: not finished within {CALL_S:g} s", TOO_SLOW)
            frames.append(frame)
        return frames

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""
        self._retry(lambda: self._transport.push(source, files, target, link_to))

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""
        self._retry(lambda: self._transport.upload(source, files, target, progress))

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""
        self._retry(lambda: self._transport.pull(source, target, files))

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host. See `Transport.route`."""
        return self._transport.route()

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the host."""
        return self._retry(self._transport.round_trip)

    def connection(self) -> str:
        """Return what connects to the host. See `Transport.connection`."""
        return self._transport.connection()

    def handshake(self) -> Handshake | None:
        """Return what the server and the client told each other. See `Transport.handshake`."""
        return self._transport.handshake()

    def close(self) -> None:
        """End the connection for good."""
        self._transport.close()

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it succeeds, or fails for a reason other than a lost connection."""
        backoff = Backoff()
        while True:
            try:
                result = attempt()
                self._was_reached = True
                return result
            except HostUnreachable as error:
                if not self._was_reached or isinstance(error, HostTooSlow):
                    raise
                self._notify(str(Waiting(error, backoff.next())))
                backoff.sleep()
