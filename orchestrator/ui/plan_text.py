"""How `orch launch --dry-run` shows its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from orchestrator.text import clean, counted, size_text
from orchestrator.ui.run_text import forecast_text, settings_text
from orchestrator.ui.serialize import CheckObject, WithheldObject, check_to_json, withheld_to_json
from remote.contract.schema import to_json

if TYPE_CHECKING:
    from orchestrator.commands.plan import JobPlan, LaunchPlan
    from orchestrator.ui.terminal import Terminal

MAX_WITHHELD = 20  # files that are listed as not sent
MAX_COMBINATIONS = 20  # of a sweep that are listed
REHEARSALS = {
    "none": "no rehearsal",
    "remembered": "its rehearsal has passed before",
    "needed": "would be rehearsed first",
    "unknown": "would be rehearsed first, unless the host has its data and remembers that it passed",
}


class CodePlanObject(TypedDict):
    """The code of a launch. `send_to` lists the hosts that do not have it; at most `bytes` are sent to each of them.

    `large` says why the user would be asked before that.
    """

    tree: str
    files: int
    bytes: int
    send_to: list[str]
    withheld: list[WithheldObject]
    large: str


class DataPlanObject(TypedDict):
    """Data of this machine that a job needs, sent unless the host has it. Size in bytes."""

    source: str
    files: int
    bytes: int


class JobPlanObject(TypedDict):
    """What a launch would do for a job. `rehearsal` is none, remembered, needed or unknown."""

    job: str
    host: str
    runs: list[dict[str, str]]
    rehearsal: str
    forecast: Any  # the fields of `Forecast`, or null
    data: DataPlanObject | None


class PlanObject(TypedDict):
    """Of `orch launch --dry-run`: what a launch would do. `refused`: a check failed, so it would start nothing."""

    refused: bool
    code: CodePlanObject
    jobs: list[JobPlanObject]
    checks: list[CheckObject]
    at_once: int | None


class PlanView:
    """What a launch would do."""

    kind = "plan"

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan

    def write(self, terminal: Terminal) -> None:
        """Write the code, the checks that did not pass, and a line for each job."""
        plan, snapshot = self._plan, self._plan.snapshot
        where = f"would be sent to {', '.join(plan.lacking)}" if plan.lacking else "already on the host"
        files = counted(len(snapshot.files), "file")
        terminal.say(f"code {snapshot.tree[:12]}: {files}, {size_text(snapshot.size)}, {where}")
        if plan.large:
            terminal.note(f"  it is large ({plan.large}), so you would be asked; --yes answers")
        for withheld in snapshot.withheld[:MAX_WITHHELD]:
            terminal.note(f"  not sent: {clean(withheld.path)} ({clean(withheld.reason)})")
        if len(snapshot.withheld) > MAX_WITHHELD:
            terminal.note(f"  not sent: {len(snapshot.withheld) - MAX_WITHHELD} more files")
        for checked in plan.checks:
            check = checked.check
            if check.status != "ok":
                terminal.say(f"{check.status:4}  {checked.about}: {check.name}: {check.detail}")
            if check.hint and check.status != "ok":
                terminal.note(f"      hint: {check.hint}")
        if plan.group:
            at_once = f", at most {plan.at_once} at once" if plan.at_once else ""
            terminal.say(
                f"group {plan.group}: {counted(sum(max(1, len(job.runs)) for job in plan.jobs), 'run')}{at_once}"
            )
        for job in plan.jobs:
            terminal.say(_line(job))
            values = [settings_text(values) for values in job.runs if values]
            for text in values[:MAX_COMBINATIONS]:
                terminal.say(f"  {text}")
            if len(values) > MAX_COMBINATIONS:
                terminal.note(f"  and {len(values) - MAX_COMBINATIONS} more")
        if plan.would_fail:
            terminal.say("the launch would be refused: a check failed", "bold red")
        terminal.note("nothing was sent or started")

    def facts(self) -> PlanObject:
        """Return the document."""
        plan, snapshot = self._plan, self._plan.snapshot
        return {
            "refused": plan.would_fail,
            "code": {
                "tree": snapshot.tree,
                "files": len(snapshot.files),
                "bytes": snapshot.size,
                "send_to": list(plan.lacking),
                "withheld": withheld_to_json(snapshot),
                "large": plan.large,
            },
            "jobs": [_job_to_json(job) for job in plan.jobs],
            "checks": [check_to_json(checked) for checked in plan.checks],
            "at_once": plan.at_once,
        }


def _line(job: JobPlan) -> str:
    data = ""
    if job.data:
        size, files = size_text(job.data.bytes), counted(job.data.files, "file")
        data = f"{files} of data from {clean(job.data.source)} ({size}) would be sent if missing"
    runs = counted(len(job.runs), "run")
    parts = [f"{job.job}: {runs} on {job.host}", REHEARSALS[job.rehearsal], forecast_text(job.forecast, None), data]
    return " · ".join(filter(None, parts))


def _job_to_json(job: JobPlan) -> JobPlanObject:
    data = job.data
    return {
        "job": job.job,
        "host": job.host,
        "runs": [dict(values) for values in job.runs],
        "rehearsal": job.rehearsal,
        "forecast": to_json(job.forecast),
        "data": {"source": data.source, "files": data.files, "bytes": data.bytes} if data else None,
    }
