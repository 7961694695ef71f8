"""events.jsonl: a line for each state that a run entered, for each end of an attempt, and for each note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Union

from remote.contract.files import JsonObject
from remote.contract.protocol import RunState, state_from_json, state_to_json
from remote.contract.schema import fields_to_json, read_fields


@dataclass(frozen=True)
class AttemptEnded:
    """The end of an attempt that failed, and the decision that followed."""

    attempt_ended: int  # its number
    reason: str = ""
    detail: str = ""
    exit_code: Optional[int] = None
    exception: Optional[str] = None
    step: Optional[int] = None  # over all epochs
    then: Optional[str] = None  # "restarting", "failed" or "stopped"


@dataclass(frozen=True)
class RunNote:
    """Any other event. Exactly one field is set, apart from `detail`."""

    ending: Optional[str] = None  # the reason for which the supervisor ends the worker
    taken_over: Optional[int] = None  # the attempt that a new supervisor took over
    restarted_by: Optional[str] = None  # who restarted the run: earlier failures no longer count
    supervisor_error: Optional[str] = None  # an unexpected error of the supervisor
    restored: Optional[str] = None  # the file that another process had changed
    gpu_memory_held: Optional[Dict[str, int]] = None  # MiB that processes still held after their end, by pid
    detail: Optional[str] = None


@dataclass(frozen=True)
class Event:
    """One line. `time` is in seconds since the epoch."""

    time: float
    what: Union[RunState, AttemptEnded, RunNote]

    def to_json(self) -> JsonObject:
        """Return the line: the fields of `what` beside the time."""
        if isinstance(self.what, AttemptEnded):
            return {"time": self.time, **fields_to_json(self.what)}
        if isinstance(self.what, RunNote):
            known = {name: value for name, value in fields_to_json(self.what).items() if value is not None}
            return {"time": self.time, **known}
        return {"time": self.time, **state_to_json(self.what)}


def read_event(value: JsonObject) -> Optional[Event]:
    """Return the event in a line of events.jsonl; None if it is malformed, or of a kind that is not known."""
    then = value.get("time")
    moment = float(then) if isinstance(then, (int, float)) else 0.0
    if "state" in value:
        state = state_from_json(value)
        return None if state is None else Event(moment, state)
    number = value.get("attempt_ended")
    if isinstance(number, int):
        return Event(moment, read_fields(AttemptEnded, value, problems=[], longest=None))
    note = read_fields(RunNote, value, problems=[], longest=None)
    return None if note == RunNote(detail=note.detail) else Event(moment, note)
