"""Results as JSON objects for programs: the content of the documents that `--json` prints.

One type for each kind of object. A key never changes its meaning; new ones may be added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from orchestrator.ui.run_text import state_name, why_not_judged
from remote.contract.schema import to_json

if TYPE_CHECKING:
    from orchestrator.box.mirror import Mirrored, NotMirrored
    from orchestrator.box.reports import HostStatus
    from orchestrator.checks.check import Checked
    from orchestrator.checks.rehearsal import Outcome
    from orchestrator.code.snapshot import CodeSnapshot
    from orchestrator.commands.launch import Launched
    from orchestrator.commands.push import Pushed
    from orchestrator.commands.shipping import Shipped
    from orchestrator.errors import OrchError
    from remote.contract.protocol import Heartbeat
    from remote.contract.run_report import OutputSummary, RunReport


class ErrorObject(TypedDict):
    """An error, with the exit code that a command which fails with it has."""

    code: str
    message: str
    hint: str
    exit_code: int


class GoalObject(TypedDict):
    """A goal and the value of its metric. `holds` is null if the metric was not reported, and `reason` says so then."""

    metric: str
    goal: str
    value: float | None
    holds: bool | None
    reason: str


class HeartbeatObject(TypedDict):
    """The last heartbeat. `epoch` and `step` count from 1; `eta_s` is in seconds."""

    phase: str
    epoch: int | None
    epochs: int | None
    step: int | None
    steps: int | None
    eta_s: float | None


class OutputsObject(TypedDict):
    """The files that the run had added or changed in its working directory at its end. Sizes in bytes."""

    files: int
    bytes: int
    largest: dict[str, int]


class RunObject(TypedDict):
    """One run. Times are in seconds since the epoch, ages in seconds, sizes in bytes."""

    job: str
    run_id: str
    host: str | None
    created: float | None
    started: float | None
    now: float | None
    state: str
    detail: Any  # the fields of the state
    supervised: bool | None
    heartbeat: HeartbeatObject | None
    heartbeat_age: float | None
    fraction: float | None  # of all epochs that is done
    metrics: Any  # as the worker named them
    goals: dict[str, str]
    verdict: list[GoalObject]
    forecast: Any  # the fields of `Forecast`, or null
    log_bytes: int
    disk_free: int | None
    code: Any  # the fields of `CodeReport`
    outputs: OutputsObject | None
    attach: str
    note: str
    is_missing: bool


class OutcomeObject(TypedDict):
    """The result of a rehearsal."""

    job: str
    verdict: str
    reason: str
    seconds: float | None
    usd: float | None
    forecast: Any  # the fields of `Forecast`, or null


class CheckObject(TypedDict):
    """The result of a check before a launch; `about` names the job or host."""

    about: str
    name: str
    status: str
    detail: str
    hint: str


class WithheldObject(TypedDict):
    """A file that is not part of the snapshot."""

    path: str
    reason: str


class SnapshotObject(TypedDict):
    """The code of a launch. `sent` is False if the box had it."""

    tree: str
    files: int
    sent: bool
    withheld: list[WithheldObject]


class LaunchObject(TypedDict):
    """What a launch found and did before its runs started."""

    code: SnapshotObject
    checks: list[CheckObject]
    rehearsals: list[OutcomeObject]
    notes: list[str]


class CopyObject(TypedDict):
    """The copy of a run on this machine; `whole` is True once it has ended and every file is here.

    `verified` is True if the content of every file was verified by a checksum in this sync.
    `deleted` counts the files that were deleted here because the job deleted them; `kept` names those that were not.
    """

    directory: str
    files: int
    bytes: int
    whole: bool
    left_out: list[str]
    reasons: dict[str, str]
    deleted: int
    kept: dict[str, str]
    verified: bool


class NotCopiedObject(TypedDict):
    """A run, or all runs of a host, that could not be copied."""

    host: str
    job: NotRequired[str]
    run_id: NotRequired[str]
    error: ErrorObject


class HostObject(TypedDict):
    """A host, and the error if it did not answer."""

    host: str
    error: ErrorObject | None
    problems: list[str]
    notes: list[str]


class ShippedObject(TypedDict):
    """The code that a host has now. `sent` is False if it had it before."""

    host: str
    tree: str
    sent: bool
    withheld: list[WithheldObject]


class PushedObject(TypedDict):
    """Data on a host. `sent` is False if it had it before. Sizes in bytes."""

    host: str
    path: str
    files: int
    bytes: int
    sent: bool
    skipped: list[WithheldObject]


def run_to_json(run: RunReport) -> RunObject:
    """Return a run: what the box reported, and what follows from it."""
    heartbeat = run.heartbeat
    return {
        "job": run.job,
        "run_id": run.run_id,
        "host": run.host,
        "created": run.created,
        "started": run.started,
        "now": run.now,
        "state": state_name(run),
        "detail": to_json(run.state) if run.state else {},
        "supervised": run.supervised,
        "heartbeat": _heartbeat_to_json(heartbeat) if heartbeat else None,
        "heartbeat_age": run.heartbeat_age,
        "fraction": heartbeat.position.fraction_done() if heartbeat else None,
        "metrics": run.metrics,
        "goals": run.goals,
        "verdict": [
            {
                "metric": result.goal.metric,
                "goal": str(result.goal),
                "value": result.value,
                "holds": result.holds,
                "reason": why_not_judged(run, result),
            }
            for result in run.verdict
        ],
        "forecast": to_json(run.forecast),
        "log_bytes": run.log_bytes,
        "disk_free": run.disk_free,
        "code": to_json(run.code),
        "outputs": _outputs_to_json(run.outputs) if run.outputs else None,
        "attach": run.attach,
        "note": run.note,
        "is_missing": run.is_missing,
    }


def _outputs_to_json(outputs: OutputSummary) -> OutputsObject:
    return {"files": outputs.files, "bytes": outputs.bytes, "largest": dict(outputs.largest)}


def _heartbeat_to_json(heartbeat: Heartbeat) -> HeartbeatObject:
    position = heartbeat.position
    return {
        "phase": heartbeat.phase,
        "epoch": position.epoch,
        "epochs": position.epochs,
        "step": position.step,
        "steps": position.steps,
        "eta_s": heartbeat.eta_s,
    }


def outcome_to_json(outcome: Outcome) -> OutcomeObject:
    """Return the result of a rehearsal."""
    return {
        "job": outcome.job,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "usd": outcome.usd,
        "forecast": to_json(outcome.forecast),
    }


def error_to_json(error: OrchError) -> ErrorObject:
    """Return an error with its exit code."""
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def launch_to_json(result: Launched) -> LaunchObject:
    """Return what a launch found and did before its runs started."""
    snapshot = result.snapshot
    return {
        "code": {
            "tree": snapshot.tree,
            "files": len(snapshot.files),
            "sent": result.sent,
            "withheld": withheld_to_json(snapshot),
        },
        "checks": [check_to_json(checked) for checked in result.checks],
        "rehearsals": [outcome_to_json(outcome) for outcome in result.outcomes],
        "notes": list(result.notes),
    }


def withheld_to_json(snapshot: CodeSnapshot) -> list[WithheldObject]:
    """Return the files that are not part of a snapshot."""
    return [{"path": item.path, "reason": item.reason} for item in snapshot.withheld]


def check_to_json(checked: Checked) -> CheckObject:
    """Return the result of a check."""
    check = checked.check
    return {
        "about": checked.about,
        "name": check.name,
        "status": check.status,
        "detail": check.detail,
        "hint": check.hint,
    }


def mirrored_to_json(item: Mirrored) -> CopyObject:
    """Return what was copied of a run."""
    return {
        "directory": str(item.directory),
        "files": item.files,
        "bytes": item.bytes,
        "whole": item.complete,
        "left_out": [name for name, _ in item.left_out],
        "reasons": dict(item.left_out),
        "deleted": item.deleted,
        "kept": dict(item.kept),
        "verified": item.verified,
    }


def not_mirrored_to_json(item: NotMirrored) -> NotCopiedObject:
    """Return a run, or a host, that could not be copied."""
    error = error_to_json(item.error)
    if item.report is None:
        return {"host": item.host, "error": error}
    return {"host": item.host, "job": item.report.job, "run_id": item.report.run_id, "error": error}


def host_to_json(host: HostStatus) -> HostObject:
    """Return whether a host answered, and what it reported besides its runs."""
    error = error_to_json(host.error) if host.error else None
    return {"host": host.host, "error": error, "problems": list(host.problems), "notes": list(host.notes)}


def shipped_to_json(item: Shipped) -> ShippedObject:
    """Return the code that was sent to a host."""
    return {
        "host": item.host,
        "tree": item.snapshot.tree,
        "sent": item.sent,
        "withheld": withheld_to_json(item.snapshot),
    }


def pushed_to_json(item: Pushed) -> PushedObject:
    """Return the data that was sent to a host."""
    return {
        "host": item.host,
        "path": item.path,
        "files": item.files,
        "bytes": item.bytes,
        "sent": item.sent,
        "skipped": [{"path": name, "reason": reason} for name, reason in item.skipped],
    }
