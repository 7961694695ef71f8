"""One run in one record, made from its directory: on the box for `status`, on the laptop from the mirror."""

from __future__ import annotations

import shutil
import time
from typing import Any, Dict, Optional

from remote import protocol
from remote.files import read_json, read_jsonl
from remote.logs import log_size
from remote.paths import RunPaths
from remote.states import read_state


def report(run: RunPaths, supervised: Optional[bool]) -> Dict[str, Any]:
    """All that one line of `status` needs. `supervised` is None where only a copy of the run can be seen.

    Ages are seconds by the clock of the machine that runs it, and None in a copy.
    """
    record = read_json(run.run) or {}
    state = read_state(run)
    job, code, host = (_object(record.get(name)) for name in ("job", "code", "host"))
    heartbeat = read_json(run.heartbeat)
    return {
        "job": run.job,
        "run_id": run.run_id,
        "host": host.get("name"),
        "created": record.get("created"),
        "started": _first_start(run),
        "now": time.time(),
        "state": protocol.state_to_json(state) if state else None,
        "supervised": supervised,
        "heartbeat": heartbeat,
        "heartbeat_age": None if supervised is None else protocol.heartbeat_age(heartbeat),
        "metrics": read_json(run.latest_metrics),
        "forecast": read_json(run.forecast),
        "goals": _object(job.get("goals")),
        "log_bytes": log_size(run),
        "disk_free": None if supervised is None else shutil.disk_usage(str(run.root)).free,
        "code": {key: code.get(key) for key in ("tree", "commit", "branch", "dirty")},
        "attach": record.get("attach") or "",
    }


def _first_start(run: RunPaths) -> Optional[float]:
    """When its first attempt left the queue; None while it waits there."""
    for event in read_jsonl(run.events):
        if event.get("state") == protocol.Starting.name and isinstance(event.get("since"), float):
            return float(event["since"])
    return None


def _object(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}
