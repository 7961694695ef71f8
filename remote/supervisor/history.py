"""Read the history of a run's attempts from its events. Pure functions.

The events are those that the supervisor found in events.jsonl when it started, and its own. If a worker changes the
file later, that has no effect (`run_state.Recorder.history`).
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Set, Tuple

from remote.contract.events import AttemptEnded, Event, RunNote
from remote.supervisor.failures import Failure
from remote.supervisor.policy import Finish

Events = Sequence[Event]


def _since_restart(events: Events) -> List[AttemptEnded]:
    """Return the failures since the last `orch restart`, oldest first."""
    found: List[AttemptEnded] = []
    for event in events:
        if isinstance(event.what, AttemptEnded):
            found.append(event.what)
        elif isinstance(event.what, RunNote) and event.what.restarted_by is not None:
            found = []
    return found


def judged(events: Events) -> Set[int]:
    """Return the numbers of the attempts whose failure was recorded."""
    return {event.what.attempt_ended for event in events if isinstance(event.what, AttemptEnded)}


def last_failure(events: Events) -> Optional[Failure]:
    """Return the last failure since the last `orch restart`, if any."""
    failures = _since_restart(events)
    if not failures:
        return None
    last = failures[-1]
    return Failure(last.reason, last.detail, last.exit_code, last.exception, last.step)


def decided_end(events: Events) -> Optional[Tuple[Finish, Optional[int]]]:
    """Return the end that was decided, with the exit code that led to it; None if the run was to continue."""
    failures = _since_restart(events)
    if not failures or failures[-1].then not in ("failed", "stopped"):
        return None
    last = failures[-1]
    return Finish(str(last.then), last.reason, last.detail), last.exit_code


def restarts_used(events: Events) -> int:
    """Return how many restarts were used. An attempt that was preempted does not count."""
    return sum(failure.reason != "preempted" for failure in _since_restart(events))


def supervisor_errors(events: Events) -> int:
    """Return how often the run's supervisor had an unexpected error."""
    return sum(isinstance(event.what, RunNote) and event.what.supervisor_error is not None for event in events)
