"""Results as records for programs: what `--json` prints, whose schema is terminal.SCHEMA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.box.reports import RunReport
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands.launch import Checked, Launched
from orchestrator.errors import OrchError
from orchestrator.ui.run_text import word
from remote.contract import protocol


def as_record(run: RunReport) -> Mapping[str, Any]:
    """The facts of one run for programs: what the box said, and what was concluded from it."""
    record = run.model_dump(mode="json", exclude={"state"})
    state = protocol.state_to_json(run.state) if run.state else {}
    verdict = [
        {"metric": result.goal.metric, "goal": str(result.goal), "value": result.value, "holds": result.holds}
        for result in run.verdict
    ]
    fraction = run.heartbeat.fraction if run.heartbeat else None
    return {**record, "state": word(run), "detail": state, "fraction": fraction, "verdict": verdict}


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    forecast = outcome.forecast.model_dump(mode="json") if outcome.forecast else None
    facts = {
        "job": outcome.job,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "usd": outcome.usd,
    }
    return {**facts, "forecast": forecast}


def error_record(error: OrchError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def launch_record(result: Launched) -> dict[str, Any]:
    snapshot = result.snapshot
    code = {"tree": snapshot.tree, "files": len(snapshot.files), "sent": result.sent, **withheld_record(snapshot)}
    checks = [check_record(checked) for checked in result.checks]
    return {"code": code, "checks": checks, "rehearsals": [outcome_record(outcome) for outcome in result.outcomes]}


def withheld_record(snapshot: CodeSnapshot) -> dict[str, Any]:
    return {"withheld": [{"path": item.path, "reason": item.reason} for item in snapshot.withheld]}


def check_fields(checked: Checked) -> tuple[str, str, str, str, str]:
    return checked.about, checked.check.name, checked.check.status, checked.check.detail, checked.check.hint


def check_record(checked: Checked) -> dict[str, str]:
    return dict(zip(("about", "name", "status", "detail", "hint"), check_fields(checked), strict=True))


def mirrored_record(item: Mirrored) -> dict[str, Any]:
    return {
        "directory": str(item.directory),
        "files": item.files,
        "bytes": item.bytes,
        "whole": item.complete,
        "left_out": [name for name, _ in item.left_out],
        "reasons": dict(item.left_out),
    }


def not_mirrored_record(item: NotMirrored) -> dict[str, Any]:
    run = {"job": item.report.job, "run_id": item.report.run_id} if item.report else {}
    return {"host": item.host, **run, "error": error_record(item.error)}
