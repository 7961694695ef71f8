"""state.json and events.jsonl: read by everyone, written by whoever holds the run's supervisor.lock."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from remote.files import append_jsonl, read_json, read_jsonl_end, remove, write_json
from remote.paths import ProjectPaths, RunPaths
from remote.protocol import Ended, Queued, RunState, Succeeded, state_from_json, state_to_json

A_SUPERVISOR = "its supervisor"  # what a run waits for from its launch on
AWAITED_S = 30.0
RESERVE_BYTES = 1 << 20


def read_state(run: RunPaths) -> Optional[RunState]:
    """None where the run has no state. One that was damaged is told by the last event that holds one."""
    state = written(run)
    if state is None:
        for event in read_jsonl_end(run.events):
            state = state_from_json(event) or state
    return state


def written(run: RunPaths) -> Optional[RunState]:
    """What state.json itself says; None where it is damaged."""
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


class Recorder:
    """Enters states and notes events; what the disk does not take now is kept, in its order, until it does."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._events: List[Dict[str, Any]] = []
        self._state: Optional[Dict[str, Any]] = None
        reserve(run)

    def enter(self, state: RunState) -> None:
        self._state = state_to_json(state)
        self.note(**self._state)

    def note(self, **event: Any) -> None:
        self._events.append({"time": time.time(), **event})
        self.flush()

    def flush(self) -> bool:
        """Whether all that was said is on the disk."""
        while self._events:
            if not _write(self._run, lambda: append_jsonl(self._run.events, self._events[0])):
                return False
            self._events.pop(0)
        if self._state is not None and save(self._run, self._run.state, self._state):
            self._state = None
        return self._state is None

    def settle(self) -> None:
        """Come back when all is on the disk, however long that takes: a run does not end unsaid."""
        while not self.flush():
            time.sleep(1.0)


def save(run: RunPaths, path: Path, record: Mapping[str, Any]) -> bool:
    """Write one of the run's own records, with the room that is kept for that where the disk has no other."""
    return _write(run, lambda: write_json(path, record, durable=True))


def _write(run: RunPaths, write: Any) -> bool:
    for _ in range(2):
        try:
            write()
            return True
        except OSError:
            remove_reserve(run)
    return False


def reserve(run: RunPaths) -> None:
    """Keep 1 MiB and a file of the disk for what has to be said when there is no more."""
    if run.reserve.exists():
        return
    try:
        with open(str(run.reserve), "wb") as file:
            file.write(os.urandom(1 << 12) * (RESERVE_BYTES >> 12))  # bytes that no file system makes smaller
    except OSError:
        pass


def remove_reserve(run: RunPaths) -> None:
    try:
        remove(run.reserve)
    except OSError:
        pass  # the disk is read-only


def tidy(run: RunPaths) -> None:
    """Remove what an ended run has no use for: its secrets, its pipe, its reserve."""
    paths = ProjectPaths.of_run(run)
    for path in (paths.secrets_of(run), paths.pipe_of(run), run.reserve):
        try:
            remove(path)
        except OSError:
            pass  # a disk that is read-only now
