"""Results as JSON objects for programs: the content of the documents that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.box.reports import HostStatus
from orchestrator.checks.check import Checked
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands.launch import Launched
from orchestrator.commands.shipping import Shipped
from orchestrator.errors import OrchError
from orchestrator.ui.run_text import state_name
from remote.contract.run_report import RunReport
from remote.contract.schema import fields_to_json, to_json


def run_to_json(run: RunReport) -> Mapping[str, Any]:
    """One run: what the box reported, and what follows from it."""
    beat = run.heartbeat
    heartbeat = {"phase": beat.phase, **to_json(beat.position), "eta_s": beat.eta_s} if beat else None
    record = {**fields_to_json(run), "heartbeat": heartbeat}
    del record["problem"]  # it is in the note
    state = run.state.to_json() if run.state else {}
    verdict = [
        {"metric": result.goal.metric, "goal": str(result.goal), "value": result.value, "holds": result.holds}
        for result in run.verdict
    ]
    fraction = beat.position.fraction_done() if beat else None
    return {**record, "state": state_name(run), "detail": state, "fraction": fraction, "verdict": verdict}


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    forecast = to_json(outcome.forecast)
    facts = {
        "job": outcome.job,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "usd": outcome.usd,
    }
    return {**facts, "forecast": forecast}


def error_to_json(error: OrchError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def launch_to_json(result: Launched) -> dict[str, Any]:
    snapshot = result.snapshot
    code = {"tree": snapshot.tree, "files": len(snapshot.files), "sent": result.sent, **withheld_to_json(snapshot)}
    checks = [check_to_json(checked) for checked in result.checks]
    return {"code": code, "checks": checks, "rehearsals": [outcome_to_json(outcome) for outcome in result.outcomes]}


def withheld_to_json(snapshot: CodeSnapshot) -> dict[str, Any]:
    return {"withheld": [{"path": item.path, "reason": item.reason} for item in snapshot.withheld]}


def check_to_json(checked: Checked) -> dict[str, str]:
    check = checked.check
    return {
        "about": checked.about,
        "name": check.name,
        "status": check.status,
        "detail": check.detail,
        "hint": check.hint,
    }


def mirrored_to_json(item: Mirrored) -> dict[str, Any]:
    return {
        "directory": str(item.directory),
        "files": item.files,
        "bytes": item.bytes,
        "whole": item.complete,
        "left_out": [name for name, _ in item.left_out],
        "reasons": dict(item.left_out),
    }


def not_mirrored_to_json(item: NotMirrored) -> dict[str, Any]:
    run = {"job": item.report.job, "run_id": item.report.run_id} if item.report else {}
    return {"host": item.host, **run, "error": error_to_json(item.error)}


def host_to_json(host: HostStatus) -> dict[str, Any]:
    error = error_to_json(host.error) if host.error else None
    return {"host": host.host, "error": error, "problems": list(host.problems), "notes": list(host.notes)}


def shipped_to_json(item: Shipped) -> dict[str, Any]:
    return {"host": item.host, "tree": item.snapshot.tree, "sent": item.sent, **withheld_to_json(item.snapshot)}
