"""state.json and events.jsonl: read by everyone, written by whoever holds the run's supervisor.lock."""

from __future__ import annotations

import time
from typing import Optional

from remote.files import append_jsonl, read_json, write_json
from remote.paths import RunPaths
from remote.protocol import Ended, RunState, Succeeded, state_from_json, state_to_json


def read_state(run: RunPaths) -> Optional[RunState]:
    """None where the run has no state, or none that can be read."""
    return state_from_json(read_json(run.state))


def has_ended(run: RunPaths) -> bool:
    return isinstance(read_state(run), Ended)


def has_succeeded(run: RunPaths) -> bool:
    return isinstance(read_state(run), Succeeded)


def enter(run: RunPaths, state: RunState) -> None:
    """Make `state` the run's own. Its event comes first, so that no state is without one."""
    record = state_to_json(state)
    append_jsonl(run.events, {"time": time.time(), **record})
    write_json(run.state, record, durable=True)
