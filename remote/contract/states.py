"""state.json and events.jsonl: read by everyone, written by whoever holds the run's supervisor.lock.

A worker can write both files, so an end is believed only where

- nobody holds supervisor.lock: a supervisor at work has not ended its run, whatever the files say;
- the last state in events.jsonl is the same one: the supervisor writes it there first.

A run whose events.jsonl holds no state at all (damaged, or from before there were events) is told by state.json alone.
"""

from __future__ import annotations

import time
from typing import Optional

from remote.contract.files import (
    MAX_RECORD_BYTES,
    end_lines,
    parse_object,
    read_json,
)
from remote.contract.paths import RunPaths
from remote.contract.protocol import Ended, Queued, RunState, state_from_json

A_SUPERVISOR = "its supervisor"  # what a run waits for from its launch on
AWAITED_S = 30.0
LAST_LINES_BYTES = (1 << 14, 1 << 20)  # of events.jsonl: the last state mostly stands in its last line


def recorded(run: RunPaths) -> Optional[RunState]:
    """Return the state that the files tell, for whoever holds supervisor.lock or reads a copy of the run.

    A state.json that is damaged, or whose end the events do not confirm, is told by the last event with a state.
    """
    state = written(run)
    if state is None:
        return last_event(run)
    if isinstance(state, Ended):
        return last_event(run) or state
    return state


def last_event(run: RunPaths, live: bool = False) -> Optional[RunState]:
    """Return the last state in events.jsonl, or with `live` the last one that is not an end."""
    for size in LAST_LINES_BYTES:
        for line in reversed(end_lines(run.events, size)):
            state = state_from_json(parse_object(line)) if b'"state"' in line else None
            if state is not None and not (live and isinstance(state, Ended)):
                return state
    return None


def written(run: RunPaths) -> Optional[RunState]:
    """What state.json itself says; None where it is damaged."""
    return state_from_json(read_json(run.state, MAX_RECORD_BYTES))


def is_awaiting(state: Optional[RunState]) -> bool:
    return (
        isinstance(state, Queued) and state.waiting_for == A_SUPERVISOR and abs(time.time() - state.since) < AWAITED_S
    )
