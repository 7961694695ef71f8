"""The processes of a run: worker.json, supervisor.json, and the request that a shim reads from stdin.

Some keys are older than the names of the fields. They stay, because processes of different versions read each other's
files: "keeper" is the shim, "guard" the respawn loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

_OMIT = {"omit": True}
_NO_PID = {"least": 2}  # 0: no process; 1: init, the new parent of a process whose parent has ended


@dataclass(frozen=True)
class WorkerRecord:
    """The content of worker.json: the worker of the current attempt, as its shim recorded it."""

    attempt: Optional[int] = None  # 0: the job's `prepare`; None: not known
    boot: str = ""  # id of the boot in which the pids are valid
    started: float = 0.0  # seconds since boot
    log_start: int = 0  # offset in the log at which its output begins
    devices: Tuple[str, ...] = ()
    shim: Tuple[int, str] = field(default=(0, ""), metadata={"key": "keeper"})  # pid and identity
    pid: int = field(default=0, metadata={**_NO_PID, **_OMIT})  # leads the worker's process group; 0: it never started
    identity: str = field(default="", metadata=_OMIT)  # distinguishes this process from a later one with the same pid
    exit_code: Optional[int] = None  # negative for the signal that ended it; None if its end was not observed
    ended: Optional[float] = field(default=None, metadata=_OMIT)  # seconds since the epoch
    error: str = field(default="", metadata=_OMIT)  # why it could not be started


@dataclass(frozen=True)
class SupervisorRecord:
    """The content of supervisor.json: the run's supervisor, and the respawn loop that started it."""

    pid: int = field(default=0, metadata=_NO_PID)
    identity: str = ""
    loop_pid: int = field(default=0, metadata={**_NO_PID, "key": "guard_pid"})  # of the respawn loop
    loop_identity: str = field(default="", metadata={"key": "guard_identity"})


@dataclass(frozen=True)
class WorkerStart:
    """How a worker is started."""

    argv: Tuple[str, ...]
    env: Dict[str, str]
    cwd: str
    devices: Tuple[str, ...] = ()
    descriptors: Tuple[int, ...] = ()  # stay open in the worker
    terminal: int = -1  # a descriptor of the pseudo-terminal for its stdout and stderr; -1: they are the pipe
    marker: str = ""  # a line that separates its output in the log from that of earlier attempts


@dataclass(frozen=True)
class ShimRequest:
    """What a shim reads from stdin."""

    attempt: int
    pipe: str  # from the worker to the shim
    held: str = ""  # another path to the pipe, in case its name was removed
    secrets: Dict[str, str] = field(default_factory=dict)  # values to mask in the log, by name
    start: Optional[WorkerStart] = None  # None: take over the worker that runs
    terminal: int = -1  # our end of the pseudo-terminal, which is read in place of the pipe; -1: none
