"""Read the history of a run's attempts from its events. Pure.

The events are those that the supervisor found in events.jsonl when it started, and its own. If a worker changes that
file later, this has no effect (`run_state.Recorder.history`).
"""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Set, Tuple

from remote.supervisor.failures import Failure
from remote.supervisor.policy import Finish

RESTARTED = "restarted_by"  # key of the event of `orch restart`: earlier failures no longer count
Events = Sequence[Mapping[str, Any]]


def _of_attempts(events: Events) -> List[Mapping[str, Any]]:
    return [event for event in events if isinstance(event.get("attempt_ended"), int) or RESTARTED in event]


def _since_restart(events: Events) -> List[Mapping[str, Any]]:
    """Return the failures since the last `orch restart`, oldest first."""
    found = _of_attempts(events)
    first = 1 + max((place for place, event in enumerate(found) if RESTARTED in event), default=-1)
    return found[first:]


def judged(events: Events) -> Set[int]:
    """Return the numbers of the attempts whose failure was recorded."""
    return {event["attempt_ended"] for event in _of_attempts(events) if RESTARTED not in event}


def last_failure(events: Events) -> Optional[Failure]:
    """Return the last failure since the last `orch restart`, if any."""
    failures = _since_restart(events)
    return Failure.from_json(failures[-1]) if failures else None


def decided_end(events: Events) -> Optional[Tuple[Finish, Optional[int]]]:
    """Return the end that was decided, with the exit code that led to it; None if the run was to continue."""
    failures = _since_restart(events)
    last = failures[-1] if failures else {}
    if last.get("then") not in ("failed", "stopped"):
        return None
    code = last.get("exit_code")
    finish = Finish(last["then"], str(last.get("reason")), str(last.get("detail")))
    return finish, code if isinstance(code, int) else None


def restarts_used(events: Events) -> int:
    """Return how many restarts were used. An attempt that was preempted does not count."""
    return sum(event.get("reason") != "preempted" for event in _since_restart(events))


def supervisor_errors(events: Events) -> int:
    """Return how often the run's supervisor had an unexpected error."""
    return sum("supervisor_error" in event for event in events)
