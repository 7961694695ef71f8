"""The processes of a run as its files name them: worker.json, supervisor.json, and what a shim is told on stdin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from remote.contract.files import JsonObject
from remote.contract.schema import fields_to_json, read_fields

_NO_PID = {"least": 2}  # 0 stands for no process; 1 is init, which adopted what had another parent


@dataclass(frozen=True)
class WorkerRecord:
    """What is in worker.json: the worker of the current attempt, as its shim recorded it."""

    attempt: Optional[int] = None  # 0: the job's `prepare`; None: not known
    boot: str = ""  # which start of the machine the pids belong to
    started: float = 0.0  # seconds since the machine was started
    log_start: int = 0  # offset in the log at which its output begins
    devices: Tuple[str, ...] = ()
    shim: Tuple[int, str] = (0, "")  # pid and identity; in the file its key is "keeper"
    pid: int = field(default=0, metadata=_NO_PID)  # leads the worker's process group; 0: it never started
    identity: str = ""  # tells this process from a later one with the same pid
    exit_code: Optional[int] = None  # negative for the signal that ended it; None if nobody saw its end
    ended: Optional[float] = None  # seconds since the epoch
    error: str = ""  # why it could not be started

    def to_json(self) -> JsonObject:
        """Return the fields that are known. `exit_code` is, from the end on, also if it is None."""
        record = fields_to_json(self)
        record["keeper"] = record.pop("shim")
        unknown = [
            *(() if self.pid else ("pid", "identity")),
            *(("exit_code", "ended") if self.ended is None else ()),
            *(() if self.error else ("error",)),
        ]
        return {key: value for key, value in record.items() if key not in unknown}

    @classmethod
    def from_json(cls, value: Any) -> WorkerRecord:
        """Return the record in `value`, an object. Malformed fields have their defaults."""
        if isinstance(value, dict):
            value = {**value, "shim": value.get("keeper")}
        return read_fields(cls, value, problems=[], longest=None)


@dataclass(frozen=True)
class SupervisorRecord:
    """What is in supervisor.json: the run's supervisor, and the respawn loop that started it."""

    pid: int = field(default=0, metadata=_NO_PID)
    identity: str = ""
    guard_pid: int = field(default=0, metadata=_NO_PID)  # of the respawn loop
    guard_identity: str = ""


@dataclass(frozen=True)
class WorkerStart:
    """How a worker is started."""

    argv: Tuple[str, ...]
    env: Dict[str, str]
    cwd: str
    devices: Tuple[str, ...] = ()
    descriptors: Tuple[int, ...] = ()  # that stay open in it


@dataclass(frozen=True)
class ShimOrder:
    """What a shim is told on stdin."""

    attempt: int
    pipe: str  # from the worker to the shim
    held: str = ""  # another path to it, for when its name was removed
    secrets: Dict[str, str] = field(default_factory=dict)  # their values are masked in the log
    start: Optional[WorkerStart] = None  # None: take over the worker that runs
