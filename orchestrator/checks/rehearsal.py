"""The rehearsal of a job: what is asked of the box, what its outcome means, what it forecasts. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from orchestrator.spec.models import Host, Job
from orchestrator.text import duration, size_text
from remote.contract import tracebacks
from remote.contract.protocol import ENV_REHEARSAL, Failed, Stopped, Succeeded
from remote.contract.run_record import JobRecord
from remote.contract.run_report import Forecast, RunReport

LIMIT_S = 300.0  # for the job's own process
SLOT_PATIENCE_S = 20.0  # a GPU that others use is not waited for: the run itself will queue
CAUSE_LINES = 40  # of the log, shown below the cause; more where a traceback is longer
MOST_LINES = 400  # of the log, among which the cause is looked for


@dataclass(frozen=True)
class Outcome:
    """`passed`, `failed` or `skipped`, and why; `log` is the end of the worker's own output."""

    job: str
    verdict: str
    reason: str = ""
    log: str = ""
    forecast: Forecast | None = None
    seconds: float = 0.0
    disk_free: int | None = None  # bytes
    usd: float | None = None  # of the whole run, at the host's price


def is_wanted(job: Job) -> bool:
    """A job that waits for another's success is not: what it reads may not be there yet."""
    return job.rehearse is not False and not job.needs


def record(job: Job, rehearsal_key: str) -> JobRecord:
    """Return the job as it is rehearsed: once, bounded in time, judged by its own output and not by `expects`."""
    return replace(
        job.record(),
        command=job.command if isinstance(job.rehearse, bool) else job.rehearse,
        env={**job.env, ENV_REHEARSAL: "1"},
        expects=(),
        needs=(),
        restarts=0,
        deadline=None,
        attempt_limit=LIMIT_S,
        slot_patience=SLOT_PATIENCE_S,
        rehearsal_key=rehearsal_key,
    )


def _table(job: Job) -> dict[str, Any]:
    """Return what a rehearsal depends on, in the form in which every version has hashed it."""
    own = job.model_dump(mode="json")
    command = own["command"] if job.rehearse is True else own["rehearse"]
    changed = {
        "command": command,
        "rehearse": False,
        "env": {**own["env"], ENV_REHEARSAL: "1"},
        "expects": [],
        "needs": [],
    }
    limits = {"restarts": 0, "deadline": None, "attempt_limit": LIMIT_S, "slot_patience": SLOT_PATIENCE_S}
    return {**own, **changed, **limits}


def key(job: Job, host: Host, tree: str) -> str:
    """What a rehearsal that passed is remembered by; the box adds what it is like itself."""
    what = {"tree": tree, "job": _table(job), "host": host.model_dump(mode="json", include={"name", "gpus", "python"})}
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def judge(job: Job, run: RunReport, log: str, price: float | None) -> Outcome:
    """What the ended rehearsal `run` says of the real run to come; `price` is the host's, in USD an hour."""
    took = max(0.0, run.state.since - run.created) if run.state and run.created is not None else 0.0
    state = run.state
    if isinstance(state, Failed) and state.reason == "busy":
        return Outcome(job.name, "skipped", f"not run: {state.detail}", seconds=took)
    if isinstance(state, Stopped) and state.reason == "time_limit":
        reason = f"stopped after {duration(LIMIT_S)}, still running fine; its checkpoints were not tested"
        return Outcome(job.name, "skipped", reason, seconds=took)
    if not isinstance(state, Succeeded):
        return Outcome(job.name, "failed", cause(run, log), last_words(log), seconds=took)
    wrong = [name for name in job.goals if run.metrics is not None and not _is_number(run.metrics.get(name))]
    if wrong:
        reason = f"metric {wrong[0]} is missing or not a number after one validation"
        return Outcome(job.name, "failed", reason, last_words(log), seconds=took)
    hours = run.forecast.seconds_total / 3600 if run.forecast and run.forecast.seconds_total else None
    usd = price * hours if price is not None and hours is not None else None
    return Outcome(job.name, "passed", forecast=run.forecast, seconds=took, disk_free=run.disk_free, usd=usd)


def cause(run: RunReport, log: str) -> str:
    """The line that says why: the exception that the box found, else the last line of the log."""
    state = run.state
    if isinstance(state, Failed) and state.reason != "exit":
        return f"{state.reason}: {state.detail}"
    how, _, exception = getattr(state, "detail", "it did not finish").partition(": ")
    said = exception or next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return f"{said} ({how})" if said else how


def last_words(log: str) -> str:
    """The last CAUSE_LINES lines, and a traceback from its beginning: its first line says what was being done."""
    lines = log.splitlines()
    begins = tracebacks.find_last(log)
    traceback = log[begins[-1] :].splitlines() if begins else []
    return "\n".join(lines[-max(CAUSE_LINES, len(traceback)) :])


def objections(job: Job, outcome: Outcome) -> list[str]:
    """Why the real run cannot go well, by the forecast."""
    forecast = outcome.forecast
    if forecast is None:
        return []
    found = []
    if job.deadline and forecast.seconds_total and forecast.seconds_total > job.deadline:
        found.append(
            f"it would take about {duration(forecast.seconds_total)}, but its deadline is {duration(job.deadline)}"
        )
    needed = forecast.checkpoint_bytes * forecast.checkpoints
    if outcome.disk_free is not None and needed > outcome.disk_free:
        found.append(
            f"its checkpoints need {size_text(needed)} of disk, but only {size_text(outcome.disk_free)} is free"
        )
    return found


def memory_objection(outcomes: Sequence[Outcome], available: int | None) -> str | None:
    """Why the jobs cannot be at work together, by what each of them held in its rehearsal."""
    needed = sum(outcome.forecast.host_bytes for outcome in outcomes if outcome.forecast)
    if available is None or needed <= available:
        return None
    return f"together they need {size_text(needed)} of memory, but only {size_text(available)} is available"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def wanted_keys(jobs: Sequence[Job], host: Host, tree: str) -> dict[str, str]:
    """For each job that is to be rehearsed, what its rehearsal is remembered by."""
    return {job.name: key(job, host, tree) for job in jobs if is_wanted(job)}
