"""What became of a run's earlier attempts, as events.jsonl tells it: that outlives the supervisor that wrote it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set, Tuple

from remote.failures import Failure
from remote.files import read_jsonl_end
from remote.paths import RunPaths
from remote.policy import Finish

RESTARTED = "restarted_by"  # somebody's own word: what went before does not count against what comes


def _events(run: RunPaths) -> List[Dict[str, Any]]:
    events = read_jsonl_end(run.events)
    return [event for event in events if isinstance(event.get("attempt_ended"), int) or RESTARTED in event]


def _since_restart(run: RunPaths) -> List[Dict[str, Any]]:
    """The failures since somebody restarted the run, oldest first."""
    events = _events(run)
    first = 1 + max((place for place, event in enumerate(events) if RESTARTED in event), default=-1)
    return events[first:]


def judged(run: RunPaths) -> Set[int]:
    """The attempts that failed and whose failure was recorded."""
    return {event["attempt_ended"] for event in _events(run) if RESTARTED not in event}


def last_failure(run: RunPaths) -> Optional[Failure]:
    failures = _since_restart(run)
    return Failure.from_json(failures[-1]) if failures else None


def decided_end(run: RunPaths) -> Optional[Tuple[Finish, Optional[int]]]:
    """The end that was decided on, and the exit code that led to it; None where the run was to go on."""
    failures = _since_restart(run)
    last = failures[-1] if failures else {}
    if last.get("then") not in ("failed", "stopped"):
        return None
    code = last.get("exit_code")
    finish = Finish(last["then"], str(last.get("reason")), str(last.get("detail")))
    return finish, code if isinstance(code, int) else None


def restarts_used(run: RunPaths) -> int:
    """How many attempts failed before this one; one that was preempted did so by no fault of its own."""
    return sum(event.get("reason") != "preempted" for event in _since_restart(run))


def supervisor_errors(run: RunPaths) -> int:
    """How often its supervisor failed at something that it did not expect."""
    return sum("supervisor_error" in event for event in read_jsonl_end(run.events))
