"""Following runs: until they show a sign of life, until they end, byte by byte; through lost connections."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import AgentUnusable, HostUnreachable
from orchestrator.poll import poll
from orchestrator.project import Project, Target
from orchestrator.reports import RunReport, read_report
from orchestrator.transport import Frame
from remote.protocol import Queued, Request

HEARTBEAT_PATIENCE = 8.0  # seconds that a launch waits for the first sign of life; importing torch takes most of them
POLL_EVERY = 1.0  # seconds
LONGEST_BACKOFF = 30.0  # seconds between two tries to reach a host again


@dataclass(frozen=True)
class LogBytes:
    offset: int  # of the first byte of `data` in the log
    data: bytes


@dataclass(frozen=True)
class Standing:
    report: RunReport


@dataclass(frozen=True)
class Waiting:
    """The connection is gone; the next try comes in `delay` seconds."""

    error: HostUnreachable
    delay: float


Event = LogBytes | Standing | Waiting


def follow(project: Project, target: Target, lines: int, offset: int | None, once: bool = False) -> Iterator[Event]:
    """The log from byte `offset`, or its last `lines` lines, to the run's end, each byte exactly once.

    A lost connection is taken up again where it broke, for as long as it takes; one that was never made is an error.
    """
    wanted: dict[str, Any] = {**project.address(target.host), "job": target.job, "run_id": target.run_id, "once": once}
    backoff = Backoff()
    connected = False
    while True:
        try:
            request = Request("follow", {**wanted, "offset": offset, "lines": lines})
            for frame in project.transport(target.host).stream(request):
                connected = True
                backoff.reset()
                if "report" in frame.head:
                    report = read_report(target.host, frame.head["report"])
                    wanted["run_id"] = report.run_id  # a later launch of the job must not change what is followed
                    yield Standing(report)
                piece = log_bytes(target.host, frame)
                if piece.data:
                    yield piece
                offset = piece.offset + len(piece.data)
            return
        except HostUnreachable as error:
            if not connected:
                raise
            yield Waiting(error, backoff.next())
            backoff.sleep()


def log_bytes(host: str, frame: Frame) -> LogBytes:
    """The piece of the log in a frame, empty in many. Raises AgentUnusable where it does not say which piece."""
    offset = frame.head.get("offset")
    if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        raise AgentUnusable(f"reading a stream from {host}: a frame of the log is at {offset!r:.100}")
    return LogBytes(offset, frame.data)


def wait(project: Project, runs: Sequence[RunReport]) -> Iterator[Standing | Waiting]:
    """Every change of the runs, until each has ended or is lost."""
    backoff = Backoff()
    latest = {(run.job, run.run_id): run for run in runs}
    while not all(run.has_ended or run.is_lost for run in latest.values()):
        time.sleep(POLL_EVERY)
        try:
            for run in refresh(project, list(latest.values())):
                latest[run.job, run.run_id] = run
                yield Standing(run)
            backoff.reset()
        except HostUnreachable as error:
            yield Waiting(error, backoff.next())
            backoff.sleep()


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


# --- the first sign of life -------------------------------------------------------------------------


def confirm(project: Project, runs: Sequence[RunReport]) -> tuple[RunReport, ...]:
    """The runs once each has shown a sign of life, waits its turn or has ended; or after HEARTBEAT_PATIENCE."""
    until = time.monotonic() + HEARTBEAT_PATIENCE
    latest = tuple(runs)
    while time.monotonic() < until and not all(_is_settled(run) for run in latest):
        time.sleep(0.2)
        latest = tuple(refresh(project, latest))
    return latest


def _is_settled(run: RunReport) -> bool:
    return run.has_ended or run.is_lost or isinstance(run.state, Queued) or run.heartbeat is not None


def refresh(project: Project, runs: Sequence[RunReport]) -> Iterator[RunReport]:
    """The same runs as they stand now: one exchange a host."""
    now = {}
    for host in dict.fromkeys(str(run.host) for run in runs):
        mine = [(run.job, run.run_id) for run in runs if run.host == host]
        reports = poll(project.transport(host), project.address(host), "none", mine)
        now.update({(run.job, run.run_id): run for run in reports})
    yield from (now.get((run.job, run.run_id), run.model_copy(update={"supervised": False})) for run in runs)
