"""Following runs: until they show a sign of life, until they end, byte by byte; through lost connections.

A host that answers too slowly is treated as one that is out of reach, and is asked again: its runs are not affected,
and the user sees each try and can press Ctrl-C. What is asked for once is not asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.box.known_runs import KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.box.retry import Backoff, Waiting
from orchestrator.commands.overview import Overview, ask, believe
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.errors import AgentUnusable, HostTooSlow, HostUnreachable, OrchError
from orchestrator.system.concurrency import as_completed
from remote.contract.protocol import Queued
from remote.contract.run_report import RunReport

CONFIRM_S = 8.0  # that a launch waits for the first sign of life; importing torch takes most of them
POLL_EVERY = 1.0  # seconds
WATCH_EVERY = 2.0


@dataclass(frozen=True)
class LogBytes:
    offset: int  # of the first byte of `data` in the log
    data: bytes


@dataclass(frozen=True)
class Standing:
    report: RunReport


Event = LogBytes | Standing | Waiting


def follow(project: Project, target: Target, lines: int, offset: int | None, once: bool = False) -> Iterator[Event]:
    """The log from byte `offset`, or its last `lines` lines, to the run's end, each byte exactly once.

    A lost connection is taken up again where it broke, for as long as it takes; one that was never made is an error,
    and so is a host that is too slow where the log is asked for `once`.
    """
    run_id = target.run_id
    backoff = Backoff()
    connected = False
    while True:
        try:
            for piece in (
                project.box(target.host).at(target.address.where).follow(target.job, run_id, offset, lines, once)
            ):
                connected = True
                backoff.reset()
                if piece.report is not None:
                    _require_belief(project, target, piece.report)
                    run_id = piece.report.run_id  # a later launch of the job must not change what is followed
                    yield Standing(piece.report)
                if piece.data:
                    yield LogBytes(piece.offset, piece.data)
                offset = piece.offset + len(piece.data)
            return
        except HostUnreachable as error:
            if not connected or (once and isinstance(error, HostTooSlow)):
                raise
            yield Waiting(error, backoff.next())
            backoff.sleep()


def _require_belief(project: Project, target: Target, report: RunReport) -> None:
    """Raise AgentUnusable unless the host may speak for the run that it reports."""
    answer = believe(project, HostStatus(target.host, (report,)), target.address, named=True)
    if not answer.runs:
        why = f": {answer.notes[0]}" if answer.notes else ""
        raise AgentUnusable(
            f"following {target.job} on {target.host}: the reply is about {report.job} {report.run_id}{why}"
        )


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


def overviews(look: Callable[[Overview | None], Iterator[Overview]]) -> Iterator[Overview]:
    """Yield what `look` sees, every other second, until no run that can be seen is running any more.

    `look` is given what was seen before. A host that cannot be reached is no end: its runs go on, and are seen when it
    is back.
    """
    seen: Overview | None = None
    while True:
        for seen in look(seen):  # noqa: B020 - each look begins with what the one before it saw
            yield seen
        if seen is None or _is_over(seen):
            return
        time.sleep(WATCH_EVERY)


def _is_over(seen: Overview) -> bool:
    return not any(host.error for host in seen.hosts) and all(run.has_ended or run.is_lost for run in seen.runs)


# --- the first sign of life -------------------------------------------------------------------------


def confirm(project: Project, runs: Sequence[RunReport]) -> tuple[RunReport, ...]:
    """The runs once each has shown a sign of life, waits its turn or has ended; or after CONFIRM_S.

    They are launched, whatever the connection does now: where it is lost, or the host too slow, they are as they were
    last heard of.
    """
    until = time.monotonic() + CONFIRM_S
    latest = {(run.job, run.run_id): run for run in runs}
    while time.monotonic() < until and not all(_is_settled(run) for run in latest.values()):
        time.sleep(0.2)
        try:
            for run in refresh(project, list(latest.values())):
                latest[run.job, run.run_id] = run
        except HostUnreachable as error:
            if isinstance(error, HostTooSlow) or time.monotonic() + POLL_EVERY >= until:
                project.say_waiting(f"{error.message}; the run was launched, but no sign of life has been seen yet")
                break
            project.say_waiting(str(Waiting(error, POLL_EVERY)))
            time.sleep(POLL_EVERY)
    return tuple(latest.values())


def _is_settled(run: RunReport) -> bool:
    shows_life = run.heartbeat is not None or run.log_bytes > 0
    return run.has_ended or run.is_lost or isinstance(run.state, Queued) or shows_life


def refresh(project: Project, runs: Sequence[RunReport]) -> Iterator[RunReport]:
    """Yield the same runs as they stand now, one exchange a host, as the hosts answer.

    Raise the first error of a host once all others have been heard.
    """
    hosts = list(dict.fromkeys(str(run.host) for run in runs))
    for host in hosts:
        project.transport(host)  # made here: the threads below share them
    known = [_known(project, run) for run in runs]
    errors: list[OrchError] = []
    for answer in as_completed(hosts, lambda host: ask(project, host, "none", known)):
        assert answer is not None  # there are no ticks
        now = {(run.job, run.run_id): run for run in answer.runs}
        if answer.error:
            errors.append(answer.error)
        yield from (now[run.job, run.run_id] for run in runs if (run.job, run.run_id) in now)
    if errors:
        raise errors[0]


def _known(project: Project, run: RunReport) -> KnownRun:
    """Our record of the run; made from its report where it could not be written."""
    host = str(run.host)
    made = KnownRun(run.job, run.run_id, host, project.address(host), state=run.state)
    return project.known.get(run.job, run.run_id) or made
