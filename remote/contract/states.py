"""Read the state of a run from state.json and events.jsonl.

In orch, only the process that holds supervisor.lock writes these files, but a worker could write them too. So an end
counts only if both are true:

- nobody holds supervisor.lock: while a supervisor runs, its run has not ended, whatever the files say;
- the last state in events.jsonl is the same: the supervisor writes an event before the state.

If events.jsonl contains no state at all (it is damaged, or older than events), state.json alone counts.
"""

from __future__ import annotations

import time
from typing import Optional

from remote.contract.files import MAX_RECORD_BYTES, end_lines, parse_object, read_json
from remote.contract.paths import RunPaths
from remote.contract.protocol import Ended, Queued, Running, RunState, Starting, state_from_json

A_SUPERVISOR = "its supervisor"  # what a run waits for after its launch
AWAITED_S = 30.0  # seconds after which a supervisor that has not started will not start
STARTED_S = 0.3  # a process that has lived as long is there: a wrong program or option ends it before
LAST_LINES_BYTES = (1 << 14, 1 << 20)  # how much of the end of events.jsonl to read, first and second try


def recorded(run: RunPaths) -> Optional[RunState]:
    """Return the state according to the files; None if they have none.

    For a caller that holds supervisor.lock or reads a copy of the run. If state.json is corrupt, or shows an end that
    the events do not confirm, the last event with a state counts.
    """
    state = written(run)
    if state is None:
        return last_event(run)
    if isinstance(state, Ended):
        return last_event(run) or state
    return state


def last_event(run: RunPaths, live: bool = False) -> Optional[RunState]:
    """Return the last state in events.jsonl; with `live`, the last one that is not an end."""
    for size in LAST_LINES_BYTES:
        for line in reversed(end_lines(run.events, size)):
            state = state_from_json(parse_object(line)) if b'"state"' in line else None
            if state is not None and not (live and isinstance(state, Ended)):
                return state
    return None


def written(run: RunPaths) -> Optional[RunState]:
    """Return the state in state.json, or None if the file is missing or corrupt."""
    return state_from_json(read_json(run.state, MAX_RECORD_BYTES))


def is_awaiting(state: Optional[RunState]) -> bool:
    """Return whether a run in `state` was launched moments ago, so that its supervisor may still be starting."""
    return (
        isinstance(state, Queued) and state.waiting_for == A_SUPERVISOR and abs(time.time() - state.since) < AWAITED_S
    )


def has_settled(state: Optional[RunState], now: float) -> bool:
    """Return whether a launch need not wait longer for a run: its process has lived for a moment, or it is queued."""
    if isinstance(state, Running):
        return now - state.since >= STARTED_S
    if isinstance(state, Queued):
        return state.waiting_for != A_SUPERVISOR
    return state is not None and not isinstance(state, Starting)
