"""Rehearse jobs on their box, side by side, and refuse the launch of what would fail."""

from __future__ import annotations

import time
from collections.abc import Sequence

from orchestrator.box.client import Box
from orchestrator.checks.rehearsal import MOST_LINES, Outcome, judge, memory_objection, objections
from orchestrator.errors import AgentUnusable, Refused
from orchestrator.spec.models import Host, Job
from remote.contract.requests import NONE, LaunchRequest
from remote.contract.run_report import RunReport

POLL_EVERY = 0.3  # seconds
LOG_BYTES = 64 * 1024  # of a log, looked at for the cause


def rehearse(box: Box, request: LaunchRequest, jobs: Sequence[Job], price: float | None) -> tuple[Outcome, ...]:
    """Return the outcome for each job, once all have ended. Whoever leaves before that ends them too.

    Args:
        box: The box, with its rehearsals in the place of its runs.
        request: What starts the rehearsals.
        jobs: The jobs as jobs.toml has them, in the order of the request.
        price: The host's, in USD an hour, if that is known.
    """
    runs = box.launch(request).runs
    names = [(run.job, run.run_id) for run in runs]
    try:
        while not all(run.has_ended or run.is_lost for run in runs):
            time.sleep(POLL_EVERY)
            found = {(run.job, run.run_id): run for run in box.status(NONE, names).runs}
            if found.keys() != set(names):
                raise AgentUnusable(f"rehearsing on {box.host}: the agent lost track of a rehearsal it started")
            runs = tuple(found[name] for name in names)
    except BaseException:
        box.stop(names, "the end of `orch`")
        raise
    ended = {run.job: run for run in runs}
    logs = {run.job: _end_of_log(box, run) for run in runs}
    return tuple(judge(job, ended[job.name], logs[job.name], price) for job in jobs)


def refuse_failed(host: Host, jobs: Sequence[Job], outcomes: Sequence[Outcome], memory: int | None) -> None:
    """Raise Refused, the cause first and the worker's own words below it, unless every job may be started.

    `memory` is what the box has available, in bytes, if that is known.
    """
    said: list[str] = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        where = f"rehearsing {job.name} on {host.name}"
        if outcome.verdict == "failed":
            said.append(f"{where}: {outcome.reason}\n{_indented(outcome.log)}".rstrip())
        said += [f"{where}: {objection}" for objection in objections(job, outcome)]
    too_much = memory_objection(outcomes, memory)
    if too_much:
        said.append(f"rehearsing on {host.name}: {too_much}")
    if said:
        hint = "nothing was started; fix it and launch again (rehearse = false skips the rehearsal)"
        raise Refused("\n".join(said), hint)


def _end_of_log(box: Box, run: RunReport) -> str:
    data = b""
    for piece in box.follow(run.job, run.run_id, lines=MOST_LINES, once=True):
        data = (data + piece.data)[-LOG_BYTES:]
    return data.decode("utf-8", "replace")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().split("\n"))
