"""The contract between laptop, box and worker: messages, states, heartbeat. A leaf; standard library alone.

Request  {"schema": 1, "op": "status", "args": {...}}          one JSON line on the agent's stdin
Reply    {"schema": 1, "ok": true, "result": {...}}            one JSON line on its stdout
         {"schema": 1, "ok": false, "error": {"code", "message", "hint"}}
Frame    {"bytes": n, ...}, a newline, n raw bytes             repeated, for the streaming ops
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple, Type, Union, cast

from remote.contract.position import Position
from remote.contract.schema import FAR, fields_to_json, read_fields

SCHEMA = 1
PAGE_ENTRIES = 20_000  # files that one reply about a run's files names at most

ENV_RUN_DIR = "ORCH_RUN_DIR"
ENV_GOALS = "ORCH_GOALS"  # JSON object: metric -> condition
ENV_ATTEMPT = "ORCH_ATTEMPT"  # 1 for the first start, 2 after the first restart
ENV_KEEP_CHECKPOINTS = "ORCH_KEEP_CHECKPOINTS"  # how many of the newest stay, beside the best
ENV_REHEARSAL = "ORCH_REHEARSAL"  # "1": a batch or two of everything, to show that the real run will not fail
ENV_DATA_DIR = "ORCH_DATA_DIR"
ENV_PREPARED_DIR = "ORCH_PREPARED_DIR"


# --- messages ---------------------------------------------------------------------------------------


class AgentError(Exception):
    """What the box refuses, in words for the user. `code` is a stable word for programs."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint

    def to_json(self) -> Dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


def reply_ok(result: Mapping[str, Any]) -> Dict[str, Any]:
    return {"schema": SCHEMA, "ok": True, "result": dict(result)}


def reply_error(error: AgentError) -> Dict[str, Any]:
    return {"schema": SCHEMA, "ok": False, "error": error.to_json()}


# --- states: each carries only what it can have ------------------------------------------------------


class _State:
    name: ClassVar[str]

    def to_json(self) -> Dict[str, Any]:
        return {"schema": SCHEMA, "state": self.name, **asdict(cast(Any, self))}


@dataclass(frozen=True)
class Queued(_State):
    """Waiting on the box for something named."""

    name: ClassVar[str] = "queued"
    since: float  # seconds since the epoch, by the box's clock, as every `since`
    waiting_for: str


@dataclass(frozen=True)
class Starting(_State):
    name: ClassVar[str] = "starting"
    since: float
    attempt: int


@dataclass(frozen=True)
class Running(_State):
    name: ClassVar[str] = "running"
    since: float
    attempt: int
    pid: int  # leads the worker's process group
    identity: str = ""  # tells this process from a later one with the same pid
    boot: str = ""  # of the machine; a pid is of no use after the next one


@dataclass(frozen=True)
class Restarting(_State):
    name: ClassVar[str] = "restarting"
    since: float
    attempt: int  # the attempt to come
    reason: str
    not_before: float


@dataclass(frozen=True)
class Succeeded(_State):
    name: ClassVar[str] = "succeeded"
    since: float


@dataclass(frozen=True)
class Failed(_State):
    """`reason` is one word of the contract (`exit`, `oom`, `missing_output`, ...), `detail` a sentence."""

    name: ClassVar[str] = "failed"
    since: float
    reason: str
    detail: str
    exit_code: Optional[int] = None


@dataclass(frozen=True)
class Stopped(_State):
    """Ended on purpose. `reason`: `asked`, `deadline`, `preempted`."""

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
    return state.to_json()


def state_from_json(record: Optional[Mapping[str, Any]]) -> Optional[RunState]:
    """None for a record that is absent or not a state; unknown keys are passed over."""
    kind = STATES.get(str(record.get("state"))) if record else None
    if kind is None or record is None:
        return None
    known = {item.name: record[item.name] for item in fields(kind) if item.name in record}
    if not all(_is_a(known[item.name], str(item.type)) for item in fields(kind) if item.name in known):
        return None
    try:
        state: RunState = kind(**known)
        return state
    except TypeError:  # a key that this state must have is missing
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
    """What the worker says of itself. In JSON the fields of `position` stand beside the others."""

    phase: str  # "prepare", "train", "validate", "test", ...
    position: Position = Position()
    eta_s: Optional[float] = None  # seconds to the last epoch's end; early stopping may come sooner
    time: float = 0.0  # seconds since the epoch
    monotonic: float = 0.0  # seconds since boot: ages are differences of these, so a wrong clock cannot harm
    pid: int = 0

    def to_json(self) -> Dict[str, Any]:
        moment = {"time": self.time, "monotonic": self.monotonic, "pid": self.pid, "phase": self.phase}
        return {"schema": SCHEMA, **moment, **fields_to_json(self.position), "eta_s": self.eta_s}

    @classmethod
    def from_json(cls, value: Any) -> Heartbeat:
        """Return the heartbeat in `value`; what is malformed beside its phase is unknown.

        Raises:
            Malformed: There is no phase.
        """
        return replace(read_fields(cls, value, problems=[]), position=Position.from_json(value))

    @classmethod
    def now(cls, phase: str, position: Position, eta_s: Optional[float] = None) -> Heartbeat:
        return cls(phase, position, eta_s, time.time(), monotonic(), os.getpid())


def heartbeat_age(record: Optional[Mapping[str, Any]]) -> Optional[float]:
    """Seconds since the heartbeat in `record` was written, on the machine that wrote it."""
    then = record.get("monotonic") if record else None
    if isinstance(then, bool) or not isinstance(then, (int, float)) or not abs(then) < FAR:
        return None
    return max(0.0, monotonic() - then)


def monotonic() -> float:
    """Seconds since boot, the same for every process of the machine and unmoved by the wall clock."""
    return time.monotonic()
