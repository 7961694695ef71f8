"""state.json and events.jsonl: read by everyone, written by whoever holds the run's supervisor.lock."""

from __future__ import annotations

import time
from typing import Optional

from remote.files import append_jsonl, read_json, write_json
from remote.paths import RunPaths
from remote.protocol import Ended, Queued, RunState, Succeeded, state_from_json, state_to_json

A_SUPERVISOR = "its supervisor"  # what a run waits for from its launch on
AWAITED_S = 30.0


def read_state(run: RunPaths) -> Optional[RunState]:
    """None where the run has no state, or none that can be read."""
    return state_from_json(read_json(run.state))


def has_ended(run: RunPaths) -> bool:
    return isinstance(read_state(run), Ended)


def has_succeeded(run: RunPaths) -> bool:
    return isinstance(read_state(run), Succeeded)


def is_awaited(run: RunPaths) -> bool:
    """Whether the run was launched a moment ago, and its supervisor may not have come yet."""
    state = read_state(run)
    return (
        isinstance(state, Queued) and state.waiting_for == A_SUPERVISOR and abs(time.time() - state.since) < AWAITED_S
    )


def enter(run: RunPaths, state: RunState) -> None:
    """Make `state` the run's own. Its event comes first, so that no state is without one."""
    record = state_to_json(state)
    append_jsonl(run.events, {"time": time.time(), **record})
    write_json(run.state, record, durable=True)
