"""Rehearse jobs on their box, in parallel, and refuse to launch jobs that would fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from orchestrator.box.client import Box
from orchestrator.checks.rehearsal import (
    MAX_LINES,
    Outcome,
    forecast_problems,
    judge,
    last_line,
    memory_problem,
    waiting,
)
from orchestrator.errors import AgentUnusable, BeingRehearsed, OrchError, Refused
from orchestrator.spec.models import Host, Job
from remote.contract.launches import LaunchRequest
from remote.contract.requests import NONE
from remote.contract.run_report import RunReport

ShowProgress = Callable[[str, bool], None]  # shows a waiting user what is being done, and whether that may take long
POLL_EVERY = 0.3  # seconds
LOOK_EVERY = 1.0  # seconds between two looks at a log
OTHERS_S = 360.0  # how long to wait for the rehearsals of another launch: they have 300 s
LINE_BYTES = 4096  # the end of a log in which its last line is searched
LOG_BYTES = 64 * 1024  # how much of the end of a log is searched for the cause of a failure


def rehearse(
    box: Box, request: LaunchRequest, jobs: Sequence[Job], price: float | None, show_progress: ShowProgress
) -> tuple[Outcome, ...]:
    """Run the rehearsals and return the outcome for each job. Any error, Ctrl-C included, stops those that have begun.

    Args:
        box: The box, addressing its rehearsals instead of its runs.
        request: The request that starts the rehearsals.
        jobs: The jobs of jobs.toml, in the order of the request.
        price: The price of the host in USD per hour, if it is known.
        show_progress: Called now and then with a line about those that still run.

    Raises:
        AgentUnusable: The agent no longer reports a rehearsal that it started.
    """
    names = [(entry.job.name, entry.run_id) for entry in request.runs]
    logs = _LastLines(box)
    try:
        runs = _start(box, request, show_progress)
        while not all(run.has_ended or run.is_lost for run in runs):
            show_progress(waiting(runs, logs.of(runs)), True)
            time.sleep(POLL_EVERY)
            found = {(run.job, run.run_id): run for run in box.status(NONE, names).runs}
            if found.keys() != set(names):
                raise AgentUnusable(f"rehearsing on {box.host}: the agent lost track of a rehearsal it started")
            runs = tuple(found[name] for name in names)
    except BaseException:
        with suppress(OrchError):  # such as: none has begun; what went wrong first is shown
            box.stop(names, "the end of `orch`")
        raise
    ended = {run.job: run for run in runs}
    ends = {run.job: _end_of_log(box, run) for run in runs}
    return tuple(judge(job, ended[job.name], ends[job.name], price) for job in jobs)


def _start(box: Box, request: LaunchRequest, show_progress: ShowProgress) -> tuple[RunReport, ...]:
    """Start the rehearsals, as soon as those of a launch that was interrupted are over."""
    until = time.monotonic() + OTHERS_S
    while True:
        try:
            return box.launch(request).runs
        except BeingRehearsed as error:
            if time.monotonic() > until:
                raise
            show_progress(f"waiting: {error.message}", True)
            time.sleep(LOOK_EVERY)


class _LastLines:
    """Reads the last lines of the logs of rehearsals."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._lines: dict[str, str] = {}
        self._sizes: dict[str, int] = {}  # of the logs, when they were read
        self._read_at = -LOOK_EVERY

    def of(self, runs: Sequence[RunReport]) -> Mapping[str, str]:
        """Return the last line of each log, by job. A log is read if it has grown, but not at every call."""
        if time.monotonic() - self._read_at >= LOOK_EVERY:
            self._read_at = time.monotonic()
            for run in runs:
                if not run.has_ended and run.log_bytes != self._sizes.get(run.job, 0):
                    self._sizes[run.job] = run.log_bytes
                    with suppress(OrchError):  # it is only for show
                        end = max(0, run.log_bytes - LINE_BYTES)
                        pieces = self._box.follow(run.job, run.run_id, offset=end, once=True)
                        self._lines[run.job] = last_line(b"".join(piece.data for piece in pieces)[-LINE_BYTES:])
        return self._lines


def refuse_failed(host: Host, jobs: Sequence[Job], outcomes: Sequence[Outcome], memory: int | None) -> None:
    """Raise Refused if a rehearsal failed, or forecasts that its run cannot succeed.

    The message has the cause and, below it, the end of the worker's log.

    Args:
        host: The host of the rehearsals.
        jobs: The jobs that were rehearsed.
        outcomes: Their outcomes, in the same order.
        memory: The memory that the box has available, in bytes, if it is known.
    """
    problems: list[str] = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        where = f"rehearsing {job.name} on {host.name}"
        if outcome.verdict == "failed":
            problems.append(f"{where}: {outcome.reason}\n{_indented(outcome.log)}".rstrip())
        problems += [f"{where}: {problem}" for problem in forecast_problems(job, outcome)]
    too_little_memory = memory_problem(outcomes, memory)
    if too_little_memory:
        problems.append(f"rehearsing on {host.name}: {too_little_memory}")
    if problems:
        hint = "nothing was started; fix it and run the command again (rehearse = false skips the rehearsal)"
        raise Refused("\n".join(problems), hint)


def _end_of_log(box: Box, run: RunReport) -> str:
    data = b""
    for piece in box.follow(run.job, run.run_id, lines=MAX_LINES, once=True):
        data = (data + piece.data)[-LOG_BYTES:]
    return data.decode("utf-8", "replace")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().split("\n"))
