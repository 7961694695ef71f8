"""Follow runs through lost connections: their logs, their start, their end.

A host that answers too slowly is treated like one that cannot be reached, and is asked again. Its runs are not
affected, and the user sees each attempt and can press Ctrl-C.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.box.known_runs import KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.box.retry import Backoff, Waiting
from orchestrator.commands.ask import accept, ask
from orchestrator.commands.overview import Overview
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.errors import AgentUnusable, HostTooSlow, HostUnreachable, OrchError
from orchestrator.system.concurrency import as_completed
from remote.contract.run_report import RunReport

POLL_EVERY = 1.0  # seconds
WATCH_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class LogBytes:
    """A piece of a log, which starts at byte `offset`."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class RunUpdate:
    """A run as its host reports it now."""

    report: RunReport


Event = LogBytes | RunUpdate | Waiting


def follow(
    project: Project, target: Target, lines: int, offset: int | None, once: bool = False, fold: bool = False
) -> Iterator[Event]:
    """Yield the log of a run until the run ends, each byte at most once, and a report with each change of the run.

    After a lost connection, follow continues where it stopped, and retries until the host is back.

    Args:
        project: The project that has the run.
        target: The run.
        lines: How many of the last lines to begin with, if `offset` is None.
        offset: The byte of the log to begin with.
        once: Yield only what the log has now.
        fold: Leave out what the program drew over, such as all but the last frames of a progress bar.

    Raises:
        HostUnreachable: The first connection failed.
        HostTooSlow: The host is too slow, and the log is read `once`.
        AgentUnusable: The host reports another run.
    """
    run_id = target.run_id
    backoff = Backoff()
    connected = False
    while True:
        try:
            box = project.box(target.host).at(target.address.where)
            for piece in box.follow(target.job, run_id, offset, lines, once, fold):
                connected = True
                backoff.reset()
                if piece.report is not None:
                    _require_accepted(project, target, piece.report)
                    run_id = piece.report.run_id  # a later launch of the job must not change what is followed
                    yield RunUpdate(piece.report)
                if piece.data:
                    yield LogBytes(piece.offset, piece.data)
                offset = piece.offset + len(piece.data)
            return
        except HostUnreachable as error:
            if not connected or (once and isinstance(error, HostTooSlow)):
                raise
            yield Waiting(error, backoff.next())
            backoff.sleep()


def _require_accepted(project: Project, target: Target, report: RunReport) -> None:
    """Record the report. Raise AgentUnusable if the host may not report this run."""
    answer = accept(project, HostStatus(target.host, (report,)), target.address, named=True)
    if not answer.runs:
        why = f": {answer.notes[0]}" if answer.notes else ""
        raise AgentUnusable(
            f"following {target.job} on {target.host}: the reply is about {report.job} {report.run_id}{why}"
        )


def wait(project: Project, runs: Sequence[RunReport]) -> Iterator[RunUpdate | Waiting]:
    """Yield reports of the runs, every POLL_EVERY seconds, until each run has ended or is lost."""
    backoff = Backoff()
    latest = {(run.job, run.run_id): run for run in runs}
    while not all(run.has_ended or run.is_lost for run in latest.values()):
        time.sleep(POLL_EVERY)
        try:
            for run in refresh(project, list(latest.values())):
                latest[run.job, run.run_id] = run
                yield RunUpdate(run)
            backoff.reset()
        except HostUnreachable as error:
            yield Waiting(error, backoff.next())
            backoff.sleep()


def overviews(ask_hosts: Callable[[Overview | None], Iterator[Overview]]) -> Iterator[Overview]:
    """Yield overviews, every WATCH_EVERY seconds, until all runs have ended or are lost.

    Continues while a host cannot be reached, since its runs may still be running, but not for one that refuses the
    login, for example: another try would fail too.

    Args:
        ask_hosts: Returns new overviews, and is given the previous one.
    """
    latest: Overview | None = None
    while True:
        for latest in ask_hosts(latest):  # noqa: B020 - each call is given the last overview of the one before
            yield latest
        if latest is None or _is_over(latest):
            return
        time.sleep(WATCH_EVERY)


def _is_over(overview: Overview) -> bool:
    if any(isinstance(host.error, HostUnreachable) for host in overview.hosts):
        return False
    failed = {host.host for host in overview.hosts if host.error}
    return all(run.has_ended or run.is_lost or run.host in failed for run in overview.runs)


# --- the start ----------------------------------------------------------------------------------------


def refresh(project: Project, runs: Sequence[RunReport]) -> Iterator[RunReport]:
    """Yield the runs as they are now, in the order in which the hosts answer, with one request for each host.

    Raises:
        OrchError: A host failed. Raised after all hosts have answered; only the first error is raised.
    """
    hosts = list(dict.fromkeys(str(run.host) for run in runs))
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    known = [_known(project, run) for run in runs]
    errors: list[OrchError] = []
    for answer in as_completed(hosts, lambda host: ask(project, host, "none", known)):
        assert answer is not None  # None is yielded only with a tick
        now = {(run.job, run.run_id): run for run in answer.runs}
        if answer.error:
            errors.append(answer.error)
        yield from (now[run.job, run.run_id] for run in runs if (run.job, run.run_id) in now)
    if errors:
        raise errors[0]


def _known(project: Project, run: RunReport) -> KnownRun:
    """Return the record of a run, or one made from its report if none could be written."""
    host = str(run.host)
    return project.known.get(run.job, run.run_id) or KnownRun(
        run.job, run.run_id, host, project.address(host), launched_here=True, state=run.state
    )
