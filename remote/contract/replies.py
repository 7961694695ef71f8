"""The replies of the agent on a box: one class for each operation. Here: those about existing runs.

Reply    {"schema": 1, "ok": true, "result": {...}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

from remote.contract.protocol import ErrorRecord
from remote.contract.schema import from_json

_OMIT = {"omit": True}
# Reports are read one by one (orchestrator), so that a malformed one does not hide the others.
Reports = Tuple[Any, ...]


@dataclass(frozen=True)
class HelloReply:
    """`now` is in seconds since the epoch, by the box's clock."""

    python: str = ""
    home: str = ""
    now: float = 0.0
    pid: int = 0


@dataclass(frozen=True)
class StatusReply:
    """One report for each run (`RunReport`)."""

    runs: Reports


def _pairs(value: Any) -> Tuple[Tuple[str, str], ...]:
    """Read the well-formed pairs, and ignore the others."""
    listed = value if isinstance(value, list) else []
    pairs = [tuple(pair) for pair in listed if isinstance(pair, list) and len(pair) == 2]
    return tuple((job, run_id) for job, run_id in pairs if isinstance(job, str) and isinstance(run_id, str))


@dataclass(frozen=True)
class NotStopped:
    """A run that could not be stopped, and why. In JSON, the fields of `error` are at the same level as the others."""

    job: str = ""
    run_id: str = ""
    error: ErrorRecord = field(default=ErrorRecord(), metadata={"inline": True})


def _not_stopped(value: Any) -> Tuple[NotStopped, ...]:
    """Read the entries that are objects. Malformed fields have their defaults."""
    listed = value if isinstance(value, list) else []
    return tuple(from_json(NotStopped, item, [], longest=None) for item in listed if isinstance(item, dict))


@dataclass(frozen=True)
class StopReply:
    """The runs that were asked to stop.

    `had_ended` lists those that had already ended, as (job, run id); `errors` those that could not be stopped.
    """

    runs: Reports
    had_ended: Tuple[Tuple[str, str], ...] = field(default=(), metadata={"read": _pairs})
    errors: Tuple[NotStopped, ...] = field(default=(), metadata={"read": _not_stopped})


@dataclass(frozen=True)
class RestartReply:
    """The runs that were restarted."""

    runs: Reports


@dataclass(frozen=True)
class InventoryReply:
    """One page of the files of a run, whose directory is `path`.

    `files` lists [path, size in bytes, mtime in ns]. `left_out` lists [path, reason] for what cannot be copied. `next`
    is the value of `after` for the next page; None on the last page. `identity` and `work` distinguish this run
    directory and its working directory from others that are later at the same path; "" if that cannot be told.
    `mounts` lists the directories that are on another file system.
    """

    path: str
    identity: str = ""
    work: str = ""
    mounts: Tuple[str, ...] = ()
    report: Any = None
    files: Tuple[Any, ...] = ()
    left_out: Tuple[Any, ...] = ()
    next: Optional[str] = None


@dataclass(frozen=True)
class DigestsReply:
    """The sha256 of each part, as hex digits; null for a part that cannot be read completely."""

    sha256: Tuple[Optional[str], ...]


@dataclass(frozen=True)
class RunListing:
    """One page of the files of a run (`InventoryReply`), or why they cannot be listed."""

    page: Any = field(default=None, metadata=_OMIT)
    error: Optional[ErrorRecord] = field(default=None, metadata=_OMIT)


@dataclass(frozen=True)
class InventoriesReply:
    """The listings of the first of the requested runs (`RunListing`), in the order of the request.

    At least one run is listed. Only the page of the last one may have a `next`: the files after it, and the runs that
    are not listed, have to be requested.
    """

    runs: Tuple[Any, ...]


@dataclass(frozen=True)
class ChecksumsReply:
    """[size in bytes, mtime in ns, checksum] of the first of the requested files, in their order; at least of one.

    It is null for a file that cannot be read, or not in time.
    """

    files: Tuple[Any, ...]


@dataclass(frozen=True)
class FollowFrame:
    """The header of one frame of a stream. `bytes` bytes of the log follow it; the first of them is at `offset`."""

    offset: int = field(metadata={"least": 0})
    bytes: int = field(default=0, metadata=_OMIT)
    report: Any = field(default=None, metadata=_OMIT)
    end: bool = field(default=False, metadata=_OMIT)  # whether this is the last frame
