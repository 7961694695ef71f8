"""One run in one record, made from its directory: on the box for `status`, on the laptop from the mirror."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Optional

from remote.contract import protocol
from remote.contract.files import MAX_RECORD_BYTES, disk_space, read_json, read_jsonl
from remote.contract.logs import log_size
from remote.contract.paths import RunPaths
from remote.contract.protocol import RunState

FIRST_EVENTS_BYTES = 256 * 1024  # the first start is among a run's first events
LONGEST_TEXT = 4096  # characters
MOST_GOALS = 200


def report(run: RunPaths, state: Optional[RunState], supervised: Optional[bool]) -> Dict[str, Any]:
    """Return all that one line of `status` needs of a run in `state`. `supervised` is None if `run` is only a copy.

    Ages are seconds by the clock of the machine that runs it, and None in a copy. What its files hold that is not
    well-formed counts as absent; without a usable run.json the report has a `problem`, one sentence.
    """
    record = read_json(run.run)
    job, code, host = (_object((record or {}).get(name)) for name in ("job", "code", "host"))
    heartbeat = read_json(run.heartbeat, MAX_RECORD_BYTES)
    found = {
        "job": run.job,
        "run_id": run.run_id,
        "host": _text(host.get("name")),
        "created": _number((record or {}).get("created")),
        "started": _first_start(run),
        "now": time.time(),
        "state": protocol.state_to_json(state) if state else None,
        "supervised": supervised,
        "heartbeat": heartbeat,
        "heartbeat_age": None if supervised is None else protocol.heartbeat_age(heartbeat),
        "metrics": read_json(run.latest_metrics, MAX_RECORD_BYTES),
        "forecast": read_json(run.forecast, MAX_RECORD_BYTES),
        "goals": _goals(job.get("goals")),
        "log_bytes": log_size(run),
        "disk_free": None if supervised is None else disk_space(run.root).free,
        "code": {
            "tree": _text(code.get("tree")),
            "commit": _text(code.get("commit")),
            "branch": _text(code.get("branch")),
            "dirty": code.get("dirty") if isinstance(code.get("dirty"), bool) else None,
        },
        "attach": _text((record or {}).get("attach")) or "",
    }
    problem = _problem(run, record)
    return {**found, "problem": problem} if problem else found


def _problem(run: RunPaths, record: Optional[Dict[str, Any]]) -> str:
    """What is wrong with run.json, without which nobody knows what the run was to do."""
    if record is None:
        is_there = os.path.lexists(str(run.run))
        return "its run.json cannot be read" if is_there else "it has no run.json: its launch was interrupted"
    wrong = [name for name in ("job", "host", "code") if name in record and not isinstance(record[name], dict)]
    return f"its run.json is damaged: {', '.join(map(repr, wrong))} is not an object" if wrong else ""


def _first_start(run: RunPaths) -> Optional[float]:
    """When its first attempt left the queue; None while it waits there."""
    for event in read_jsonl(run.events, FIRST_EVENTS_BYTES):
        if event.get("state") == protocol.Starting.name and isinstance(event.get("since"), float):
            return float(event["since"])
    return None


def _goals(value: Any) -> Dict[str, str]:
    """The goals of a job, as far as they are texts and no more than anyone would set."""
    goals = {name: text for name, text in _object(value).items() if isinstance(text, str)}
    is_usable = len(goals) <= MOST_GOALS and all(len(name) + len(text) <= LONGEST_TEXT for name, text in goals.items())
    return goals if is_usable else {}


def _text(value: Any) -> Optional[str]:
    return value[:LONGEST_TEXT] if isinstance(value, str) else None


def _number(value: Any) -> Optional[float]:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _object(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}
