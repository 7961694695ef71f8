"""Read the history of a run's attempts from its events. Pure functions.

The events are those that the supervisor found in events.jsonl when it started, and its own. If a worker changes the
file later, that has no effect (`run_state.Recorder.history`).
"""

from __future__ import annotations

import time
from typing import List, Optional, Sequence, Set, Tuple

from remote.contract import protocol
from remote.contract.events import AttemptEnded, Event, RunNote
from remote.contract.logs import OURS
from remote.supervisor.failures import Failure, describe_exit
from remote.supervisor.policy import Finish

Events = Sequence[Event]
MAX_NAME = 100  # characters of the name of who restarted the run


def since_restart(events: Events) -> List[Event]:
    """Return the events since the last `orch restart`, oldest first."""
    for index in range(len(events) - 1, -1, -1):
        what = events[index].what
        if isinstance(what, RunNote) and what.restarted_by is not None:
            return list(events[index + 1 :])
    return list(events)


def _failures(events: Events) -> List[AttemptEnded]:
    """Return the failures since the last `orch restart`, oldest first."""
    return [event.what for event in since_restart(events) if isinstance(event.what, AttemptEnded)]


def first_start(events: Events) -> Optional[protocol.Starting]:
    """Return the state in which the first attempt since the last `orch restart` started; None if there was none."""
    states = (event.what for event in since_restart(events))
    return next((state for state in states if isinstance(state, protocol.Starting)), None)


def resumed_from(events: Events) -> Optional[str]:
    """Return the checkpoint from which the last attempt resumed; None for none."""
    starts = [event.what for event in events if isinstance(event.what, protocol.Starting)]
    return starts[-1].resumed_from if starts else None


def judged(events: Events) -> Set[int]:
    """Return the numbers of the attempts whose failure was recorded."""
    return {event.what.attempt_ended for event in events if isinstance(event.what, AttemptEnded)}


def last_failure(events: Events) -> Optional[Failure]:
    """Return the last failure since the last `orch restart`, if any."""
    failures = _failures(events)
    if not failures:
        return None
    last = failures[-1]
    return Failure(
        last.reason, last.detail, last.exit_code, last.exception, last.step, bool(last.has_written), last.log_digest
    )


def decided_end(events: Events) -> Optional[Tuple[Finish, Optional[int]]]:
    """Return the end that was decided, with the exit code that led to it; None if the run was to continue."""
    failures = _failures(events)
    if not failures or failures[-1].then not in ("failed", "stopped"):
        return None
    last = failures[-1]
    return Finish(str(last.then), last.reason, last.detail), last.exit_code


def restarts_used(events: Events) -> int:
    """Return how many restarts were used. An attempt that was preempted does not count."""
    return sum(failure.reason != "preempted" for failure in _failures(events))


def marker(events: Events, number: int, now: float) -> str:
    """Return the line that separates attempt `number` from the earlier ones in the log; "" if there are none.

    Args:
        events: The events of the run.
        number: The number of the attempt that starts.
        now: The time, in seconds since the epoch.
    """
    why = ""
    for event in events:
        what = event.what
        if isinstance(what, AttemptEnded):
            how = describe_exit(what.exit_code) if what.exit_code is not None else ""
            named = what.reason if what.reason not in ("exit", "signal") else ""
            why = f"after {f'{named} ({how})' if named and how else named or how or 'an end that was not observed'}"
        elif isinstance(what, RunNote) and what.restarted_by is not None:
            by = "".join(filter(str.isprintable, what.restarted_by))[:MAX_NAME]
            why = f"after orch restart by {by or 'someone'}"
    if number <= 1 and not why:
        return ""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return f"{OURS}--- attempt {number}, {moment}, {why or 'restarted'} ---"


def supervisor_errors(events: Events) -> int:
    """Return how often the run's supervisor had an unexpected error."""
    return sum(isinstance(event.what, RunNote) and event.what.supervisor_error is not None for event in events)
