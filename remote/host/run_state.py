"""The state of a run on its box: believed with a look at its lock, and written by whoever holds it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from remote.contract.files import (
    append_jsonl,
    displace,
    open_regular,
    read_jsonl_end,
    remove,
    write_json,
)
from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import STATES, Ended, RunState, Succeeded, state_to_json
from remote.contract.states import is_awaiting, last_event, recorded, written

RESERVE_BYTES = 1 << 20
LONGEST_TEXT = 4096  # characters of a detail


def read_state(run: RunPaths) -> Optional[RunState]:
    """Return the run's state, or None where it has none. An end is not believed while a supervisor is at work."""
    held = is_held(run.supervisor_lock)  # asked first: a supervisor that lets go of it has written its end before
    state = recorded(run)
    if held and isinstance(state, Ended):
        return last_event(run, live=True)
    return state


def has_ended(run: RunPaths) -> bool:
    return isinstance(read_state(run), Ended)


def has_recorded_end(run: RunPaths) -> bool:
    """As `has_ended`, for whoever holds supervisor.lock."""
    return isinstance(recorded(run), Ended)


def has_succeeded(run: RunPaths) -> bool:
    return isinstance(read_state(run), Succeeded)


def is_awaited(run: RunPaths) -> bool:
    """Whether the run was launched a moment ago, and its supervisor may not have come yet."""
    return is_awaiting(read_state(run))


def enter(run: RunPaths, state: RunState) -> None:
    """Make `state` the run's own. Its event comes first, so that no state is without one."""
    record = state_to_json(state)
    for path in (run.events, run.state):
        displace(path)  # a directory, or a FIFO, of that name
    _append(run.events, {"time": time.time(), **record})
    write_json(run.state, record, durable=True)


class Recorder:
    """Enters states and notes events; what the disk does not take now is kept, in its order, until it does.

    What was entered is put back where somebody else has changed it: `flush` looks for that.
    """

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self.history = read_jsonl_end(run.events)  # every event of this run, as it was found and as it is noted
        self._waiting: List[Dict[str, Any]] = []  # events that are not on the disk yet
        self._size = _size(run.events)  # bytes, after what was written last
        found = recorded(run)
        self._state = _shortened(state_to_json(found)) if found else None
        self._is_saved = True
        self._has_told = False  # that somebody else wrote state.json
        reserve(run)

    def enter(self, state: RunState) -> None:
        self._state, self._is_saved = _shortened(state_to_json(state)), False
        self.note(**self._state)

    def note(self, **event: Any) -> None:
        record = {"time": time.time(), **event}
        self.history.append(record)
        self._waiting.append(record)
        self.flush()

    def flush(self) -> bool:
        """Whether all that was said is on the disk."""
        if self._is_saved and self._state is not None and not self._is_on_disk():
            self._is_saved = False
            if not self._has_told:
                self._has_told = True
                self.note(restored=self._run.state.name, detail="something else than the supervisor wrote it")
        if _size(self._run.events) < self._size:  # what it held is gone: all of it is written again
            self._waiting, self._size = list(self.history), 0
        while self._waiting:
            if not _write(self._run, self._run.events, lambda path: _append(path, self._waiting[0])):
                return False
            self._waiting.pop(0)
            self._size = _size(self._run.events)
        if not self._is_saved:
            self._is_saved = save(self._run, self._run.state, self._state or {})
        return self._is_saved

    def settle(self) -> None:
        """Come back when all is on the disk, however long that takes: a run does not end unsaid."""
        while not self.flush():
            time.sleep(1.0)

    def _is_on_disk(self) -> bool:
        state = written(self._run)
        return state is not None and state_to_json(state) == self._state


def _shortened(record: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value[:LONGEST_TEXT] if isinstance(value, str) else value for key, value in record.items()}


def _append(path: Path, event: Mapping[str, Any]) -> None:
    """An end has to outlast a power cut, as state.json does: it is not believed without its event."""
    append_jsonl(path, event, durable=STATES.get(str(event.get("state"))) in Ended)


def save(run: RunPaths, path: Path, record: Mapping[str, Any]) -> bool:
    """Write one of the run's own records, with the room that is kept for that where the disk has no other."""
    return _write(run, path, lambda to: write_json(to, record, durable=True))


def _write(run: RunPaths, path: Path, write: Callable[[Path], None]) -> bool:
    for _ in range(2):
        try:
            write(path)
            return True
        except OSError:
            if not displace(path):  # a directory, or a FIFO, of that name
                remove_reserve(run)
    return False


def _size(path: Path) -> int:
    """Bytes of a regular file; 0 for anything else."""
    try:
        descriptor = open_regular(path)
    except OSError:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def reserve(run: RunPaths) -> None:
    """Keep 1 MiB and a file of the disk for what has to be said when there is no more."""
    try:
        descriptor = open_regular(run.reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError:
        return  # it is there already, or the disk takes none
    try:
        os.write(descriptor, os.urandom(1 << 12) * (RESERVE_BYTES >> 12))  # bytes that no file system makes smaller
    except OSError:
        pass
    finally:
        os.close(descriptor)


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
