"""What became of a run's earlier attempts, as its events tell it. Pure.

The events are those of events.jsonl as its supervisor found them, and its own: what a worker does to that file while
the supervisor is at work changes nothing (`run_state.Recorder.history`).
"""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Set, Tuple

from remote.supervisor.failures import Failure
from remote.supervisor.policy import Finish

RESTARTED = "restarted_by"  # somebody's own word: what went before does not count against what comes
Events = Sequence[Mapping[str, Any]]


def _of_attempts(events: Events) -> List[Mapping[str, Any]]:
    return [event for event in events if isinstance(event.get("attempt_ended"), int) or RESTARTED in event]


def _since_restart(events: Events) -> List[Mapping[str, Any]]:
    """The failures since somebody restarted the run, oldest first."""
    found = _of_attempts(events)
    first = 1 + max((place for place, event in enumerate(found) if RESTARTED in event), default=-1)
    return found[first:]


def judged(events: Events) -> Set[int]:
    """The attempts that failed and whose failure was recorded."""
    return {event["attempt_ended"] for event in _of_attempts(events) if RESTARTED not in event}


def last_failure(events: Events) -> Optional[Failure]:
    failures = _since_restart(events)
    return Failure.from_json(failures[-1]) if failures else None


def decided_end(events: Events) -> Optional[Tuple[Finish, Optional[int]]]:
    """The end that was decided on, and the exit code that led to it; None where the run was to go on."""
    failures = _since_restart(events)
    last = failures[-1] if failures else {}
    if last.get("then") not in ("failed", "stopped"):
        return None
    code = last.get("exit_code")
    finish = Finish(last["then"], str(last.get("reason")), str(last.get("detail")))
    return finish, code if isinstance(code, int) else None


def restarts_used(events: Events) -> int:
    """How many attempts failed before this one; one that was preempted did so by no fault of its own."""
    return sum(event.get("reason") != "preempted" for event in _since_restart(events))


def supervisor_errors(events: Events) -> int:
    """How often its supervisor failed at something that it did not expect."""
    return sum("supervisor_error" in event for event in events)
