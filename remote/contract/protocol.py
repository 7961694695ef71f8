"""The protocol between laptop, box and worker: messages, states, heartbeat.

Request  {"schema": 1, "op": "status", "args": {...}}          one JSON line on the agent's stdin
Reply    {"schema": 1, "ok": true, "result": {...}}            one JSON line on its stdout
         {"schema": 1, "ok": false, "error": {"code", "message", "hint"}}
Frame    {"bytes": n, ...}, a newline, n raw bytes             repeated, for `follow`
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple, Type, Union, cast

from remote.contract.position import Position
from remote.contract.schema import FAR, fields_to_json, read_fields

SCHEMA = 1
PAGE_ENTRIES = 20_000  # most files in one reply to `inventory`

ENV_RUN_DIR = "ORCH_RUN_DIR"
ENV_GOALS = "ORCH_GOALS"  # JSON object: metric -> condition
ENV_ATTEMPT = "ORCH_ATTEMPT"  # 1 for the first start, 2 after the first restart
ENV_KEEP_CHECKPOINTS = "ORCH_KEEP_CHECKPOINTS"  # how many of the newest checkpoints are kept, in addition to the best
ENV_REHEARSAL = "ORCH_REHEARSAL"  # "1": run a batch or two of every phase, to show that the real run will not fail
ENV_DATA_DIR = "ORCH_DATA_DIR"
ENV_PREPARED_DIR = "ORCH_PREPARED_DIR"


# --- messages ---------------------------------------------------------------------------------------


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

    def to_json(self) -> Dict[str, str]:
        """Return the fields."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def reply_ok(result: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the reply of an operation that succeeded."""
    return {"schema": SCHEMA, "ok": True, "result": dict(result)}


def reply_error(error: AgentError) -> Dict[str, Any]:
    """Return the reply of an operation that failed."""
    return {"schema": SCHEMA, "ok": False, "error": error.to_json()}


# --- states ------------------------------------------------------------------------------------------


class _State:
    name: ClassVar[str]

    def to_json(self) -> Dict[str, Any]:
        return {"schema": SCHEMA, "state": self.name, **asdict(cast(Any, self))}


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


@dataclass(frozen=True)
class Running(_State):
    """The worker of an attempt is running."""

    name: ClassVar[str] = "running"
    since: float
    attempt: int
    pid: int  # leads the worker's process group
    identity: str = ""  # distinguishes this process from a later one with the same pid
    boot: str = ""  # id of the boot in which the pid is valid


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
    """The run was ended on purpose. `reason` is `asked`, `deadline` or `time_limit`, `detail` a sentence."""

    name: ClassVar[str] = "stopped"
    since: float
    reason: str
    detail: str


RunState = Union[Queued, Starting, Running, Restarting, Succeeded, Failed, Stopped]
Ended = (Succeeded, Failed, Stopped)
STATES: Dict[str, Type[Any]] = {
    state.name: state for state in (Queued, Starting, Running, Restarting, Succeeded, Failed, Stopped)
}


def state_to_json(state: RunState) -> Dict[str, Any]:
    """Return the content of state.json for `state`."""
    return state.to_json()


def state_from_json(record: Optional[Mapping[str, Any]]) -> Optional[RunState]:
    """Return the state in `record`, or None if it is missing or malformed. Unknown keys are ignored."""
    kind = STATES.get(str(record.get("state"))) if record else None
    if kind is None or record is None:
        return None
    known = {item.name: record[item.name] for item in fields(kind) if item.name in record}
    if not all(_is_a(known[item.name], str(item.type)) for item in fields(kind) if item.name in known):
        return None
    try:
        state: RunState = kind(**known)
        return state
    except TypeError:  # a required key is missing
        return None


_KINDS: Dict[str, Tuple[type, ...]] = {
    "float": (int, float),
    "int": (int,),
    "str": (str,),
    "Optional[int]": (int, type(None)),
}


def _is_a(value: Any, annotation: str) -> bool:
    return isinstance(value, _KINDS[annotation]) and not isinstance(value, bool)


# --- heartbeat ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heartbeat:
    """The content of heartbeat.json, in which the fields of `position` are beside the others."""

    phase: str  # "prepare", "train", "validate", "test", ...
    position: Position = Position()
    eta_s: Optional[float] = None  # seconds until the end of the last epoch; early stopping may end the run sooner
    time: float = 0.0  # seconds since the epoch
    monotonic: float = 0.0  # seconds since boot: ages are computed from this, so a wrong clock does no harm
    pid: int = 0

    def to_json(self) -> Dict[str, Any]:
        """Return the content of heartbeat.json."""
        moment = {"time": self.time, "monotonic": self.monotonic, "pid": self.pid, "phase": self.phase}
        return {"schema": SCHEMA, **moment, **fields_to_json(self.position), "eta_s": self.eta_s}

    @classmethod
    def from_json(cls, value: Any) -> Heartbeat:
        """Return the heartbeat in `value`. Malformed fields other than the phase have their defaults.

        Raises:
            Malformed: The phase is missing or malformed.
        """
        return replace(read_fields(cls, value, problems=[]), position=Position.from_json(value))

    @classmethod
    def now(cls, phase: str, position: Position, eta_s: Optional[float] = None) -> Heartbeat:
        """Return a heartbeat of this process at this moment."""
        return cls(phase, position, eta_s, time.time(), monotonic(), os.getpid())


def heartbeat_age(record: Optional[Mapping[str, Any]]) -> Optional[float]:
    """Return the age of the heartbeat in `record`, in seconds; None if it is unknown.

    Call it on the machine that wrote the heartbeat.
    """
    then = record.get("monotonic") if record else None
    if isinstance(then, bool) or not isinstance(then, (int, float)) or not abs(then) < FAR:
        return None
    return max(0.0, monotonic() - then)


def monotonic() -> float:
    """Return the seconds since boot: the same in all processes of the machine, and independent of the wall clock."""
    return time.monotonic()
