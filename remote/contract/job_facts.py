"""What a job would find on its box before it is launched there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


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
    head: str = ""  # the first bytes, as Latin-1
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
class JobLookup:
    """All that was found."""

    has_code: bool = False
    prepared: Optional[bool] = None  # None: nothing to prepare, or not known without the code
    prepare_error: str = ""
    commands: Tuple[CommandFacts, ...] = ()
    data: Optional[DataFacts] = None
    live_run: Optional[str] = None
