"""Rehearse jobs on their box, side by side, and refuse the launch of what would fail."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.box.launch_request import start
from orchestrator.box.poll import poll
from orchestrator.box.reports import RunReport
from orchestrator.box.transport import Transport
from orchestrator.checks.rehearsal import MOST_LINES, Outcome, judge, memory_objection, objections
from orchestrator.errors import AgentUnusable, Refused
from orchestrator.spec.models import Host, Job
from remote.contract.protocol import Request

POLL_EVERY = 0.3  # seconds
LOG_BYTES = 64 * 1024  # of a log, looked at for the cause


def rehearse(
    transport: Transport, request: Mapping[str, Any], jobs: Sequence[Job], price: float | None
) -> tuple[Outcome, ...]:
    """The outcome for each job, once all have ended. Whoever leaves before that ends them too."""
    address = {key: request[key] for key in ("root", "project", "rehearsal")}
    runs = start(transport, request).runs
    try:
        while not all(run.has_ended or run.is_lost for run in runs):
            time.sleep(POLL_EVERY)
            seen = poll(transport, address, "none", [(run.job, run.run_id) for run in runs])
            found = {(run.job, run.run_id): run for run in seen.runs}
            if found.keys() != {(run.job, run.run_id) for run in runs}:
                raise AgentUnusable(f"rehearsing on {transport.host}: the agent lost track of a rehearsal it started")
            runs = tuple(found[run.job, run.run_id] for run in runs)
    except BaseException:
        stop = {"runs": [[run.job, run.run_id] for run in runs], "by": "the end of `orch`"}
        transport.call(Request("stop", {**address, **stop}))
        raise
    logs = {run.job: _end_of_log(transport, address, run) for run in runs}
    ended = {run.job: run for run in runs}
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


def _end_of_log(transport: Transport, address: Mapping[str, Any], run: RunReport) -> str:
    args = {**address, "job": run.job, "run_id": run.run_id, "once": True, "lines": MOST_LINES}
    data = b""
    for frame in transport.stream(Request("follow", args)):
        data = (data + frame.data)[-LOG_BYTES:]
    return data.decode("utf-8", "replace")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().split("\n"))
