"""The rehearsal of a job: how it differs from the run, how it is judged, and what it forecasts. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from orchestrator.spec.models import Host, Job
from orchestrator.text import duration, shortened, size_text
from remote.contract import tracebacks
from remote.contract.protocol import (
    ENV_REHEARSAL,
    FROM_OUTPUT,
    STARTED_WELL,
    Failed,
    Queued,
    Running,
    Stopped,
    Succeeded,
)
from remote.contract.run_record import JobRecord
from remote.contract.run_report import Forecast, RunReport
from remote.contract.schema import to_json

LIMIT_S = 300.0  # time limit for a process that ends its rehearsal itself, unless the job asks for more
SLOT_TIMEOUT_S = 20.0  # how long to wait for a GPU in use; short, because the run itself will queue for it
CAUSE_LINES = 40  # lines of the log that are shown below the cause; more if a traceback is longer
LAUNCHED_LINES = 10  # lines that are shown of a program that printed no traceback before its launcher did
MAX_LINE = 200  # characters of a line that is shown while it is waited for
MAX_LINES = 400  # lines of the log that are searched for the cause
_CONTROL = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]?[@-~]")  # colours, and movements of the cursor


@dataclass(frozen=True)
class Outcome:
    """How the rehearsal of a job ended.

    Attributes:
        job: The job's name.
        verdict: `passed`, `failed`, or `skipped` if the rehearsal proved nothing.
        reason: Why it did not pass, or what a rehearsal that passed did not test.
        log: The end of the worker's log, if it failed.
        forecast: What the worker forecasts for the run.
        seconds: How long the rehearsal took.
        disk_free: The free disk space of the box, in bytes.
        usd: The forecast price of the whole run, in USD.
    """

    job: str
    verdict: str
    reason: str = ""
    log: str = ""
    forecast: Forecast | None = None
    seconds: float = 0.0
    disk_free: int | None = None
    usd: float | None = None


def is_rehearsed(job: Job) -> bool:
    """Return True if the job has a rehearsal. A job with `needs` has none, because its inputs may not exist yet."""
    return job.rehearse is not False and not job.needs


def limit(job: Job) -> float:
    """Return the seconds after which the process of the job's rehearsal is ended in any case."""
    return max(LIMIT_S, job.rehearse_start + job.rehearse_progress)


def record(job: Job, rehearsal_key: str) -> JobRecord:
    """Return the record of the job's rehearsal: one attempt with a time limit, which need not write `expects`."""
    return replace(
        job.record(),
        command=job.command if isinstance(job.rehearse, bool) else job.rehearse,
        env={**job.env, ENV_REHEARSAL: "1"},
        expects=(),
        needs=(),
        restarts=0,
        resume=(),
        deadline=None,
        queue_deadline=None,
        attempt_limit=limit(job),
        rehearse_start=job.rehearse_start if job.rehearse is True else None,
        rehearse_progress=job.rehearse_progress if job.rehearse is True else None,
        slot_timeout=SLOT_TIMEOUT_S,
        rehearsal_key=rehearsal_key,
    )


# Keys of jobs that came after the first boxes remembered rehearsals: those are still valid for jobs without these keys.
NEWER_KEYS = ("cwd", "links", "rehearse_start", "rehearse_progress", "environment", "checkpoints", "pty")
# Keys that do not change what a rehearsal does.
UNREHEARSED = {"outputs", "keep", "metrics", "resume", "stop_signal", "queue_deadline"}


def _table(job: Job) -> dict[str, Any]:
    """Return what a rehearsal depends on. Any change of the result invalidates the rehearsals that boxes remember."""
    own = {name: value for name, value in to_json(job).items() if name not in UNREHEARSED}
    own["gpus"] = job.gpus or 0.0
    defaults = to_json(Job(name=job.name, command=job.command))
    for name in NEWER_KEYS:
        if own[name] == defaults[name]:
            del own[name]
    if own["data"] is not None and own["data"]["from"] is None:
        del own["data"]["from"]
    command = own["command"] if job.rehearse is True else own["rehearse"]
    changed = {
        "command": command,
        "rehearse": False,
        "env": {**own["env"], ENV_REHEARSAL: "1"},
        "expects": [],
        "needs": [],
    }
    limits = {
        "restarts": 0,
        "deadline": None,
        "attempt_limit": LIMIT_S,
        "slot_patience": SLOT_TIMEOUT_S,
    }
    return {**own, **changed, **limits}


def key(job: Job, host: Host, tree: str) -> str:
    """Return the key under which the box remembers that the rehearsal passed. The box adds facts of its own to it.

    Args:
        job: The job.
        host: The host of the rehearsal.
        tree: The hash of the code.
    """
    what = {"tree": tree, "job": _table(job), "host": {"name": host.name, "gpus": host.gpus, "python": host.python}}
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def waiting(runs: Sequence[RunReport], said: Mapping[str, str]) -> str:
    """Return a line about rehearsals that have not all ended: `rehearsing lstm: 14 s of at most 60 s · epoch 1`.

    Args:
        runs: Their reports.
        said: The last lines of their logs, by job. Of several, that of the first job is shown.
    """
    going = [run for run in runs if not run.has_ended] or list(runs)
    names = ", ".join(run.job for run in going)
    how_long = max(map(_how_long, going))[1]
    line = next((said[run.job] for run in going if said.get(run.job)), "")
    return " · ".join(filter(None, [f"rehearsing {names}: {how_long}", line]))


def _how_long(run: RunReport) -> tuple[float, str]:
    """Return the seconds that a rehearsal has taken in its state, and the same with its limit as text."""
    state = run.state
    took = max(0.0, run.now - state.since) if state and run.now is not None else 0.0
    if isinstance(state, Queued):
        return took, f"waiting for {shortened(state.waiting_for, MAX_LINE)}, {duration(took)}"
    most = state.limit if isinstance(state, Running) else None
    return took, duration(took) + (f" of at most {duration(most)}" if most is not None else "")


def last_line(log: bytes) -> str:
    """Return the last line of a log that is not empty, as it was drawn last, safe to show."""
    lines = re.split(r"[\r\n]+", _CONTROL.sub("", log.decode("utf-8", "replace")))
    return next((shortened(line.strip(), MAX_LINE) for line in reversed(lines) if line.strip()), "")


def judge(job: Job, run: RunReport, log: str, price: float | None) -> Outcome:
    """Return the outcome of a rehearsal that has ended.

    Args:
        job: The job that was rehearsed.
        run: The report of the rehearsal.
        log: The end of its log.
        price: The price of the host in USD per hour, if it is known.
    """
    took = max(0.0, run.state.since - run.created) if run.state and run.created is not None else 0.0
    state = run.state
    if isinstance(state, Failed) and state.reason == "busy":
        return Outcome(job.name, "skipped", f"not run: {state.detail}", seconds=took)
    if isinstance(state, Stopped) and state.reason == "time_limit":
        reason = f"stopped after {duration(limit(job))}, still running fine; its checkpoints were not tested"
        return Outcome(job.name, "skipped", reason, seconds=took)
    if isinstance(state, Stopped) and state.reason == STARTED_WELL:
        reason = f"started well; checkpoints were not tested ({state.detail})"
        return Outcome(job.name, "passed", reason, seconds=took, disk_free=run.disk_free)
    if not isinstance(state, Succeeded):
        return Outcome(job.name, "failed", cause(run, log), log_excerpt(log), seconds=took)
    # Of a program that does not know of rehearsals, the output may end before its first validation.
    own = run.metrics if run.metrics is not None and run.metrics.get("source") != FROM_OUTPUT else None
    wrong = [name for name in job.goals if own is not None and not _is_number(own.get(name))]
    if wrong:
        reason = f"metric {wrong[0]} is missing or not a number after one validation"
        return Outcome(job.name, "failed", reason, log_excerpt(log), seconds=took)
    hours = run.forecast.seconds_total / 3600 if run.forecast and run.forecast.seconds_total else None
    usd = price * hours if price is not None and hours is not None else None
    return Outcome(job.name, "passed", forecast=run.forecast, seconds=took, disk_free=run.disk_free, usd=usd)


def cause(run: RunReport, log: str) -> str:
    """Return why a rehearsal failed, in one line: the exception that the box found, or else the log's last line."""
    state = run.state
    if isinstance(state, Failed) and state.reason not in ("exit", "traceback"):
        return f"{state.reason}: {state.detail}"
    how, _, exception = getattr(state, "detail", "it did not finish").partition(": ")
    exception = exception.partition("; not restarted")[0]
    why = exception or next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return f"{why} ({how})" if why else how


def log_excerpt(log: str) -> str:
    """Return the last CAUSE_LINES lines of a log, or more if that is needed for the traceback that counts.

    If a launcher only says that the program failed, the lines before that are included.
    """
    lines = log.splitlines()
    cause = tracebacks.find_cause(log)
    needed = CAUSE_LINES
    if cause.chain:
        needed = max(needed, len(log[cause.chain[-1].begin :].splitlines()))
    elif cause.launcher:
        needed = max(needed, len(log[cause.launcher.begin :].splitlines()) + LAUNCHED_LINES)
    return "\n".join(lines[-needed:])


def forecast_problems(job: Job, outcome: Outcome) -> list[str]:
    """Return why the run cannot succeed according to its forecast: it would exceed its deadline or the disk."""
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


def memory_problem(outcomes: Sequence[Outcome], available: int | None) -> str | None:
    """Return why the jobs do not fit into `available` bytes of memory together, as measured by their rehearsals."""
    needed = sum(outcome.forecast.host_bytes for outcome in outcomes if outcome.forecast)
    if available is None or needed <= available:
        return None
    return f"together they need {size_text(needed)} of memory, but only {size_text(available)} is available"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def keys(jobs: Sequence[Job], host: Host, tree: str) -> dict[str, str]:
    """Return the key of each job that has a rehearsal, by job name."""
    return {job.name: key(job, host, tree) for job in jobs if is_rehearsed(job)}
