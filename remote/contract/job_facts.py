"""What a job that is not yet launched would find on its box. The box reports it, the laptop judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

from remote.contract.run_report import Forecast, read_forecast
from remote.contract.schema import Malformed


def _bytes(value: Any) -> str:
    """Read text that stands for bytes (Latin-1). Unlike other text it may contain NUL."""
    if not isinstance(value, str):
        raise Malformed("", "text")
    return value


@dataclass(frozen=True)
class CommandFacts:
    """What a command line would run."""

    of: str  # "command" or "prepare"
    program: str
    found: Optional[str] = None  # the path of the program; None if there is none
    kind: str = ""  # what a python command runs: "module" or "script"; else ""
    runs: str = ""  # the name of the module or script
    in_snapshot: Optional[bool] = None  # whether the snapshot contains it
    unset: Tuple[str, ...] = ()  # variables in the command line that are not set


@dataclass(frozen=True)
class EnvironmentFacts:
    """The environment that the job would use."""

    file: str
    tool: str = ""  # what builds it: "uv", "pip", "micromamba", ...
    python: str = ""  # the version of the interpreter that it is made from
    built: bool = False
    uses_code: bool = False  # whether it is built again for every version of the code
    problem: str = ""  # why it cannot be built here
    hint: str = ""


@dataclass(frozen=True)
class TorchFacts:
    """The torch that a Python would import, by its version.py."""

    python: str  # the interpreter
    version: str
    cuda: Optional[str] = None  # the CUDA that it was built for; None for a build without CUDA
    hip: Optional[str] = None  # the ROCm that it was built for


@dataclass(frozen=True)
class DataSample:
    """The beginning of one file of the data."""

    path: str
    size: Optional[int] = None  # bytes; None for a directory
    head: str = field(default="", metadata={"read": _bytes})  # the first bytes, as Latin-1
    error: str = ""


@dataclass(frozen=True)
class DataFacts:
    """The files that match the job's `data`."""

    directory: Optional[str] = None
    exists: bool = False
    matches: int = 0  # at most as many as the job asks for
    samples: Tuple[DataSample, ...] = ()
    instead: Tuple[Tuple[str, int], ...] = ()  # if too few match: the most common patterns there, with their counts


@dataclass(frozen=True)
class JobFacts:
    """Everything that was looked up for one job."""

    has_code: bool = False  # whether the box has the snapshot
    prepared: Optional[bool] = None  # whether the output of `prepare` exists; None: no `prepare`, or no snapshot
    prepare_error: str = ""
    commands: Tuple[CommandFacts, ...] = ()
    data: Optional[DataFacts] = None
    live_run: Optional[str] = None  # the id of a live run of the job
    forecast: Optional[Forecast] = field(default=None, metadata={"read": read_forecast})  # of a remembered rehearsal
    env_error: str = ""  # why the job's `env` cannot be used
    environment: Optional[EnvironmentFacts] = None  # None: the job has none, or there is no snapshot
    torch: Optional[TorchFacts] = None  # None: unknown, or the job needs no GPU
    problem: str = ""  # why there are no facts; set by the laptop
