"""What a job would find on its box before it is launched there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

from remote.contract.run_report import Forecast, read_forecast
from remote.contract.schema import Malformed


def _bytes(value: Any) -> str:
    """Read bytes as Latin-1, which may be zero."""
    if not isinstance(value, str):
        raise Malformed("", "text")
    return value


@dataclass(frozen=True)
class CommandFacts:
    """What a command line would run."""

    of: str  # "command" or "prepare"
    program: str
    found: Optional[str] = None  # its path
    kind: str = ""  # "module" or "script" of a python command
    runs: str = ""  # its name
    in_snapshot: Optional[bool] = None
    unset: Tuple[str, ...] = ()  # variables that it names and nothing sets


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
    instead: Tuple[Tuple[str, int], ...] = ()  # if too few match: the commonest patterns there, with their counts


@dataclass(frozen=True)
class JobFacts:
    """All that was found."""

    has_code: bool = False
    prepared: Optional[bool] = None  # None: nothing to prepare, or not known without the code
    prepare_error: str = ""
    commands: Tuple[CommandFacts, ...] = ()
    data: Optional[DataFacts] = None
    live_run: Optional[str] = None
    forecast: Optional[Forecast] = field(default=None, metadata={"read": read_forecast})  # of a remembered rehearsal
    problem: str = ""  # why nothing was found out: the laptop's word
