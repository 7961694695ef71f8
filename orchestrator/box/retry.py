"""Going on when a lost connection is back: what was asked is asked again, and nothing is done twice.

Every request is idempotent: a launch names its run ids, a copy goes on where it stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.box.transport import Frame, Hop, Transport
from orchestrator.errors import AgentUnusable, HostTooSlow, HostUnreachable
from orchestrator.system.limits import CALL_S, TOO_SLOW
from remote.contract.requests import Request

T = TypeVar("T")
LONGEST_BACKOFF = 30.0  # seconds between two tries to reach a host again
MOST_ONCE_BYTES = 64 << 20  # of a stream that is asked for once, and kept until it has ended
FRAME_COST = 1024  # bytes that a frame counts for at least: it takes as much memory, however little it says


@dataclass(frozen=True)
class Waiting:
    """The connection is gone; the next try comes in `delay` seconds."""

    error: HostUnreachable
    delay: float

    def __str__(self) -> str:
        return f"{self.error.message}; trying again in {self.delay:.0f} s, Ctrl-C gives up"


@dataclass
class Backoff:
    """1, 2, 4 ... 30 seconds, each shortened by up to a quarter so that many clients do not come back at once."""

    delay: float = field(default=0.0)

    def next(self) -> float:
        self.delay = min(LONGEST_BACKOFF, self.delay * 2 or 1.0)
        return self.delay

    def sleep(self) -> None:
        time.sleep(self.delay * random.uniform(0.75, 1.0))

    def reset(self) -> None:
        self.delay = 0.0


class RetryingTransport(Transport):
    """A transport that outlasts a lost connection.

    A host that was never reached is an error at once, and so is one that is reached but too slow: it could hold us
    for ever.
    """

    def __init__(self, transport: Transport, say: Callable[[str], None]) -> None:
        self.host = transport.host
        self._transport, self._say = transport, say
        self._was_reached = False

    def call(self, request: Request) -> dict[str, Any]:
        return self._persist(lambda: self._transport.call(request))

    def stream(self, request: Request) -> Iterator[Frame]:
        """Anew from its beginning, where it is asked for `once`: no frame is given out before all have come, and all
        together are limited. Else as it is: whoever follows a log knows from where to take it up again
        (`commands.watch.follow`).
        """
        if getattr(request.what, "once", False):
            return iter(self._persist(lambda: self._collected(request)))
        return self._transport.stream(request)

    def _collected(self, request: Request) -> list[Frame]:
        """Return a whole stream. Raise AgentUnusable if it is too large, HostTooSlow if it does not end in time."""
        doing = f"reading {request.op!r} on {self.host}"
        frames: list[Frame] = []
        size, until = 0, time.monotonic() + CALL_S
        for frame in self._transport.stream(request):
            size += max(frame.size, FRAME_COST)
            if size > MOST_ONCE_BYTES:
                raise AgentUnusable(
                    f"{doing}: stopped after {MOST_ONCE_BYTES >> 20} MiB, the limit for one reply",
                    "check what the job writes to its log",
                )
            if time.monotonic() > until:
                raise HostTooSlow(f"{doing}: not finished within {CALL_S:g} s", TOO_SLOW)
            frames.append(frame)
        return frames

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        self._persist(lambda: self._transport.push(source, files, target, link_to))

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        self._persist(lambda: self._transport.pull(source, target, files))

    def route(self) -> tuple[Hop, ...]:
        return self._transport.route()

    def round_trip(self) -> float:
        return self._persist(self._transport.round_trip)

    def close(self) -> None:
        self._transport.close()

    def _persist(self, attempt: Callable[[], T]) -> T:
        backoff = Backoff()
        while True:
            try:
                result = attempt()
                self._was_reached = True
                return result
            except HostUnreachable as error:
                if not self._was_reached or isinstance(error, HostTooSlow):
                    raise
                self._say(str(Waiting(error, backoff.next())))
                backoff.sleep()
