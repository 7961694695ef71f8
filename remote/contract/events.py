"""events.jsonl: a line for each state that a run entered, for each end of an attempt, and for each note."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Union

from remote.contract.protocol import RunState, state_from_json
from remote.contract.schema import Malformed, from_json

_OMIT = {"omit": True}


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
    has_written: Optional[bool] = field(default=None, metadata=_OMIT)  # whether it wrote to a file of its run
    log_digest: Optional[str] = field(default=None, metadata=_OMIT)  # of what it printed, without times
    has_trained: Optional[bool] = field(default=None, metadata=_OMIT)  # whether it showed a step or an epoch


@dataclass(frozen=True)
class RunNote:
    """Any other event. Exactly one field is set, apart from `detail`."""

    ending: Optional[str] = field(default=None, metadata=_OMIT)  # the reason for which the supervisor ends the worker
    taken_over: Optional[int] = field(default=None, metadata=_OMIT)  # the attempt that a new supervisor took over
    restarted_by: Optional[str] = field(default=None, metadata=_OMIT)  # who restarted the run; clears earlier failures
    supervisor_error: Optional[str] = field(default=None, metadata=_OMIT)  # an unexpected error of the supervisor
    restored: Optional[str] = field(default=None, metadata=_OMIT)  # the file that another process had changed
    # MiB that processes still held after their end, by pid:
    gpu_memory_held: Optional[Dict[str, int]] = field(default=None, metadata=_OMIT)
    left_running: Optional[str] = field(default=None, metadata=_OMIT)  # what an attempt left running; it was ended
    metrics: Optional[str] = field(default=None, metadata=_OMIT)  # what of the job's `metrics` cannot be used, and why
    resume: Optional[str] = field(default=None, metadata=_OMIT)  # a checkpoint that is not used, and why
    detail: Optional[str] = field(default=None, metadata=_OMIT)


def _read_what(value: Any) -> Union[RunState, AttemptEnded, RunNote]:
    if "state" in value:
        state = state_from_json(value)
        if state is None:
            raise Malformed("state", "a state")
        return state
    if isinstance(value.get("attempt_ended"), int):
        return from_json(AttemptEnded, value, problems=[], longest=None)
    note = from_json(RunNote, value, problems=[], longest=None)
    if note == RunNote(detail=note.detail):
        raise Malformed("", "an event of a known kind")
    return note


def _moment(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


@dataclass(frozen=True)
class Event:
    """One line. `time` is in seconds since the epoch."""

    time: float = field(metadata={"read": _moment})
    what: Union[RunState, AttemptEnded, RunNote] = field(metadata={"inline": True, "read": _read_what})


def read_event(value: Any) -> Optional[Event]:
    """Return the event in a line of events.jsonl; None if it is malformed, or of a kind that is not known."""
    try:
        return from_json(Event, value)
    except Malformed:
        return None
