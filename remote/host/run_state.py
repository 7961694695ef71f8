"""Read and write the state of a run on its box. Reading checks supervisor.lock; only its holder may write."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Union

from remote.contract.events import AttemptEnded, Event, RunNote, read_event
from remote.contract.files import append_jsonl, displace, open_regular, read_jsonl_end, remove, sync_directory
from remote.contract.files import to_json as json_line
from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Ended, RunState, Succeeded
from remote.contract.records import write_record
from remote.contract.schema import MAX_TEXT, to_json
from remote.contract.states import is_awaiting, last_event, recorded, written

RESERVE_BYTES = 1 << 20
KEPT_BYTES = 1 << 16  # of the reserve: more than any state needs


def read_state(run: RunPaths) -> Optional[RunState]:
    """Return the run's state, or None if it has none. An end does not count while a supervisor runs."""
    held = is_held(run.supervisor_lock)  # check it first: a supervisor writes the end before it releases the lock
    state = recorded(run)
    if held and isinstance(state, Ended):
        return last_event(run, live=True)
    return state


def has_ended(run: RunPaths) -> bool:
    """Return whether the run has ended."""
    return isinstance(read_state(run), Ended)


def has_recorded_end(run: RunPaths) -> bool:
    """Return whether the run has ended. For a caller that holds supervisor.lock."""
    return isinstance(recorded(run), Ended)


def has_succeeded(run: RunPaths) -> bool:
    """Return whether the run has succeeded."""
    return isinstance(read_state(run), Succeeded)


def is_awaited(run: RunPaths) -> bool:
    """Return whether the run was launched moments ago, so that its supervisor may still be starting."""
    return is_awaiting(read_state(run))


def enter(run: RunPaths, state: RunState) -> None:
    """Write `state` as the run's state: first the event, so that every state has one. Raise OSError if that fails."""
    for path in (run.events, run.state):
        displace(path)  # a directory, or a FIFO, of that name
    _append(run.events, Event(time.time(), state))
    write_record(run.state, state, durable=True)


class Recorder:
    """Write states and events. If the disk does not accept them now, keep them in order until it does.

    `flush` also restores them if another process has changed the files.
    """

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        found = [read_event(line) for line in read_jsonl_end(run.events)]
        self.history = [event for event in found if event]  # all events of the run: those in the file, and new ones
        self._waiting: List[Event] = []  # events that are not on disk yet
        self._size = _size(run.events)  # bytes after the last write
        state = recorded(run)
        self._state = _shortened(state) if state else None
        self._is_saved = True
        self._has_told = False  # whether the event `restored` was noted
        reserve(run)

    @property
    def state(self) -> Optional[RunState]:
        """Return the state that was entered last."""
        return self._state

    def enter(self, state: RunState) -> None:
        """Make `state` the run's state, with an event."""
        self._state, self._is_saved = _shortened(state), False
        self._add(self._state)

    def note(self, what: Union[AttemptEnded, RunNote]) -> None:
        """Add an event that is not a state."""
        self._add(what)

    def _add(self, what: Union[RunState, AttemptEnded, RunNote]) -> None:
        event = Event(time.time(), what)
        self.history.append(event)
        self._waiting.append(event)
        self.flush()

    def flush(self) -> bool:
        """Write what is not on disk yet. Return whether all is on disk now."""
        if self._is_saved and self._state is not None and not self._is_on_disk():
            self._is_saved = False
            if not self._has_told:
                self._has_told = True
                self.note(RunNote(restored=self._run.state.name, detail="it was not written by the supervisor"))
        if _size(self._run.events) < self._size:  # events were removed from the file: write all of them again
            self._waiting, self._size = list(self.history), 0
        while self._waiting:
            if not _write(self._run, self._run.events, lambda path: _append(path, self._waiting[0])):
                return False
            self._waiting.pop(0)
            self._size = _size(self._run.events)
        if not self._is_saved:
            self._is_saved = self._state is None or self._save(self._state)
        return self._is_saved

    def settle(self) -> None:
        """Block until everything is on disk, however long that takes: the end of a run must be recorded."""
        while not self.flush():
            time.sleep(1.0)

    def _save(self, state: RunState) -> bool:
        return save(self._run, self._run.state, state) or (isinstance(state, Ended) and _save_end(self._run, state))

    def _is_on_disk(self) -> bool:
        return written(self._run) == self._state


def with_texts(state: RunState, change: Callable[[str], str]) -> RunState:
    """Return `state` with `change` applied to each of its texts."""
    texts: Any = {name: change(text) for name, text in vars(state).items() if isinstance(text, str)}
    return replace(state, **texts)


def _shortened(state: RunState) -> RunState:
    return with_texts(state, lambda text: text[:MAX_TEXT])


def _append(path: Path, event: Event) -> None:
    """Append the event. An end is synced to disk, as state.json is: without its event it does not count."""
    append_jsonl(path, to_json(event), durable=isinstance(event.what, Ended))


def save(run: RunPaths, path: Path, record: Any) -> bool:
    """Write a dataclass as one of the run's own records, using space of the reserve if the disk is full.

    Returns:
        Whether it was written.
    """
    return _write(run, path, lambda to: write_record(to, record, durable=True))


def _save_end(run: RunPaths, state: RunState) -> bool:
    """Write the final state over the reserve and rename that to state.json: this needs no free block and no inode."""
    try:
        with os.fdopen(open_regular(run.reserve, os.O_WRONLY), "wb") as file:
            file.write(json_line(to_json(state)))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(run.reserve), str(run.state))
        sync_directory(run.root)
    except OSError:
        return False
    return True


def _write(run: RunPaths, path: Path, write: Callable[[Path], None]) -> bool:
    for _ in range(2):
        try:
            write(path)
            return True
        except OSError:
            if not displace(path):  # a directory, or a FIFO, of that name
                spend_reserve(run)
    return False


def _size(path: Path) -> int:
    """Return the size of a regular file in bytes; 0 for anything else."""
    try:
        descriptor = open_regular(path)
    except OSError:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def reserve(run: RunPaths) -> None:
    """Reserve 1 MiB and an inode so that the final state fits on a full disk. Fill a reserve that was spent."""
    try:
        descriptor = open_regular(run.reserve, os.O_WRONLY | os.O_CREAT)
    except OSError:
        return  # the disk is full
    try:
        if os.fstat(descriptor).st_size < RESERVE_BYTES:
            # Random bytes, so that no file system compresses them.
            os.write(descriptor, os.urandom(1 << 12) * (RESERVE_BYTES >> 12))
    except OSError:
        pass
    finally:
        os.close(descriptor)


def spend_reserve(run: RunPaths) -> None:
    """Free the space of the reserve but for what the final state needs."""
    try:
        descriptor = open_regular(run.reserve, os.O_WRONLY)
    except OSError:
        return  # there is none
    try:
        if os.fstat(descriptor).st_size > KEPT_BYTES:
            os.truncate(descriptor, KEPT_BYTES)
    except OSError:
        pass  # the disk is read-only
    finally:
        os.close(descriptor)


def tidy(run: RunPaths) -> None:
    """Remove what an ended run does not need: its secrets, its pipe, and once its end is recorded its reserve."""
    paths = ProjectPaths.of_run(run)
    for path in (paths.secrets_of(run), paths.pipe_of(run), *([run.reserve] if has_recorded_end(run) else [])):
        try:
            remove(path)
        except OSError:
            pass  # the disk is read-only
