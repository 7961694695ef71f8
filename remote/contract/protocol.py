"""The protocol between laptop, box and worker: messages, states, heartbeat.

Request  {"schema": 1, "op": "status", "args": {...}}          one JSON line on the agent's stdin
Reply    {"schema": 1, "ok": true, "result": {...}}            one JSON line on its stdout
         {"schema": 1, "ok": false, "error": {"code", "message", "hint"}}
Frame    {"bytes": n, ...}, a newline, n raw bytes             repeated, for `follow`
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Type, Union

from remote.contract.position import Position
from remote.contract.schema import Malformed, from_json

SCHEMA = 1
PAGE_ENTRIES = 20_000  # most files in one reply that lists files

ENV_RUN_DIR = "ORCH_RUN_DIR"
ENV_GOALS = "ORCH_GOALS"  # JSON object: metric -> condition
ENV_ATTEMPT = "ORCH_ATTEMPT"  # 1 for the first start, 2 after the first restart
ENV_KEEP_CHECKPOINTS = "ORCH_KEEP_CHECKPOINTS"  # how many of the newest checkpoints are kept, in addition to the best
ENV_REHEARSAL = "ORCH_REHEARSAL"  # "1": run a batch or two of every phase, to show that the real run will not fail
ENV_DATA_DIR = "ORCH_DATA_DIR"
ENV_PREPARED_DIR = "ORCH_PREPARED_DIR"
ENV_RESUME = "ORCH_RESUME"  # the checkpoint to resume from; empty for none
ENV_CODE_DIR = "ORCH_CODE_DIR"  # the snapshot: read-only
ENV_NEEDS = "ORCH_NEEDS_"  # and the name of a job, in capitals: the directory of the run that it needs

STARTED_WELL = "started_well"  # reason of `Stopped`: the end of a rehearsal that has shown enough
FROM_OUTPUT = "output"  # `source` of a heartbeat or of metrics that the supervisor read in the worker's output


# --- messages ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorRecord:
    """An error of the agent. `code` is a stable word for programs, the rest is text for the user."""

    code: str = ""
    message: str = ""
    hint: str = ""


class AgentError(Exception):
    """An error that the box reports.

    Attributes:
        code: One stable word, for programs.
        message: What failed and why, for the user.
        hint: The next step for the user; may be empty.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint

    @property
    def record(self) -> ErrorRecord:
        """The error as it travels in a reply."""
        return ErrorRecord(self.code, self.message, self.hint)


@dataclass(frozen=True)
class Reply:
    """The line that answers a request: the `result`, one of the classes in `replies.py`, or the `error`."""

    json_head: ClassVar[Dict[str, int]] = {"schema": SCHEMA}
    ok: bool
    result: Any = field(default=None, metadata={"omit": True})
    error: Optional[ErrorRecord] = field(default=None, metadata={"omit": True})


# --- states ------------------------------------------------------------------------------------------


class _State:
    name: ClassVar[str]
    json_head: ClassVar[Dict[str, Union[int, str]]]

    def __init_subclass__(cls) -> None:
        cls.json_head = {"schema": SCHEMA, "state": cls.name}


@dataclass(frozen=True)
class Queued(_State):
    """Waiting on the box for `waiting_for`."""

    name: ClassVar[str] = "queued"
    since: float  # when the state was entered, in seconds since the epoch by the box's clock (so in all states)
    waiting_for: str


@dataclass(frozen=True)
class Starting(_State):
    """An attempt is being started."""

    name: ClassVar[str] = "starting"
    since: float
    attempt: int
    monotonic: Optional[float] = field(default=None, metadata={"omit": True})  # seconds since boot
    boot: Optional[str] = field(default=None, metadata={"omit": True})  # the id of that boot
    resumed_from: Optional[str] = field(default=None, metadata={"omit": True})  # a checkpoint, in the run directory


@dataclass(frozen=True)
class Running(_State):
    """The worker of an attempt is running."""

    name: ClassVar[str] = "running"
    since: float
    attempt: int
    pid: int  # leads the worker's process group
    identity: str = ""  # distinguishes this process from a later one with the same pid
    boot: str = ""  # id of the boot in which the pid is valid
    # In a rehearsal: the seconds after `since` at which it ends at the latest, as far as is known.
    limit: Optional[float] = field(default=None, metadata={"omit": True})
    resumed_from: Optional[str] = field(default=None, metadata={"omit": True})  # as in Starting


@dataclass(frozen=True)
class Restarting(_State):
    """An attempt failed, and another one follows."""

    name: ClassVar[str] = "restarting"
    since: float
    attempt: int  # the next one
    reason: str
    not_before: float  # when it starts, in seconds since the epoch


@dataclass(frozen=True)
class Succeeded(_State):
    """The worker ended with exit code 0 and wrote all expected files."""

    name: ClassVar[str] = "succeeded"
    since: float
    remark: str = field(default="", metadata={"omit": True})  # what the user should know all the same


@dataclass(frozen=True)
class Failed(_State):
    """The run failed. `reason` is one word (docs/run-directory.md lists them), `detail` a sentence."""

    name: ClassVar[str] = "failed"
    since: float
    reason: str
    detail: str
    exit_code: Optional[int] = None


@dataclass(frozen=True)
class Stopped(_State):
    """The run was ended on purpose. `reason` is one word, `detail` a sentence."""

    name: ClassVar[str] = "stopped"
    since: float
    reason: str
    detail: str


RunState = Union[Queued, Starting, Running, Restarting, Succeeded, Failed, Stopped]
Ended = (Succeeded, Failed, Stopped)
STATES: Dict[str, Type[Any]] = {
    state.name: state for state in (Queued, Starting, Running, Restarting, Succeeded, Failed, Stopped)
}


def state_from_json(value: Any) -> Optional[RunState]:
    """Return the state in `value`, or None if it is not one. Unknown keys are ignored."""
    kind = STATES.get(str(value.get("state"))) if isinstance(value, dict) else None
    try:
        state: Optional[RunState] = from_json(kind, value, problems=[], longest=None) if kind else None
        return state
    except Malformed:
        return None


# --- heartbeat ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heartbeat:
    """The content of heartbeat.json. In JSON, the fields of `position` are at the same level as the others."""

    json_head: ClassVar[Dict[str, int]] = {"schema": SCHEMA}
    phase: str = ""  # "prepare", "train", "validate", "test", ...
    position: Position = field(default=Position(), metadata={"inline": True})
    eta_s: Optional[float] = None  # seconds until the end of the last epoch; early stopping may end the run sooner
    time: float = 0.0  # seconds since the epoch
    monotonic: Optional[float] = None  # seconds since boot: ages are computed from this, so a wrong clock does no harm
    pid: int = 0
    source: str = field(default="", metadata={"omit": True})  # FROM_OUTPUT: written by the supervisor

    @classmethod
    def now(cls, phase: str, position: Position, eta_s: Optional[float] = None, source: str = "") -> Heartbeat:
        """Return a heartbeat of this process at this moment."""
        return cls(phase, position, eta_s, time.time(), monotonic(), os.getpid(), source)

    @property
    def age(self) -> Optional[float]:
        """Its age in seconds, on the machine that wrote it; None if it is unknown."""
        return None if self.monotonic is None else max(0.0, monotonic() - self.monotonic)


def monotonic() -> float:
    """Return the seconds since boot: the same in all processes of the machine, and independent of the wall clock."""
    return time.monotonic()
