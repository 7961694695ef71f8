"""What the agent on a box answers: one class for each operation.

Reply    {"schema": 1, "ok": true, "result": {...}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from remote.contract.paths import RUN_ID
from remote.contract.schema import Malformed, to_json

# Reports travel as they are: the laptop reads each by itself, so that one that is malformed hides no other.
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


@dataclass(frozen=True)
class LaunchReply:
    """The runs; or the jobs that have to be rehearsed first; or neither while the snapshot is not on the box."""

    have_code: bool
    unrehearsed: Tuple[str, ...] = ()
    runs: Reports = ()


def _pairs(value: Any) -> Tuple[Tuple[str, str], ...]:
    """Read the pairs that are well-formed; the others are about no run."""
    listed = value if isinstance(value, list) else []
    pairs = [tuple(pair) for pair in listed if isinstance(pair, list) and len(pair) == 2]
    return tuple((job, run_id) for job, run_id in pairs if isinstance(job, str) and isinstance(run_id, str))


@dataclass(frozen=True)
class StopReply:
    """The runs that were asked to stop.

    `had_ended` lists those that had ended before, as (job, run id); `errors` says what kept single runs from being
    stopped: objects with the `job`, its `run_id` and the fields of an error.
    """

    runs: Reports
    had_ended: Tuple[Tuple[str, str], ...] = field(default=(), metadata={"read": _pairs})
    errors: Reports = ()


@dataclass(frozen=True)
class RestartReply:
    """The runs that go on."""

    runs: Reports


@dataclass(frozen=True)
class InventoryReply:
    """One page of the files of a run, which lie below `path`.

    `files` are [path, size in bytes, mtime in ns], `left_out` [path, reason]; `next` is the `after` of the next page.
    """

    path: str
    report: Any = None
    files: Tuple[Any, ...] = ()
    left_out: Tuple[Any, ...] = ()
    next: Optional[str] = None


@dataclass(frozen=True)
class CodeBeginReply:
    """Whether the box has the snapshot; if not, where to put it, and which snapshot to link unchanged files against."""

    have: bool
    incoming: Optional[str] = None
    link_to: Optional[str] = None


@dataclass(frozen=True)
class CodeCommitReply:
    """The snapshot was made."""


def _run_id(value: Any) -> Optional[str]:
    if not (isinstance(value, str) and RUN_ID.fullmatch(value)):
        raise Malformed("", "a run id")
    return value


@dataclass(frozen=True)
class FactsReply:
    """Raw answers by the names of their questions, about the box and about its `jobs`.

    `now` is the box's time when the question came, in seconds since the epoch; `newest_run` is the id after which new
    ones have to sort.
    """

    now: Optional[float] = None
    took_s: float = 0.0
    answers: Dict[str, Any] = field(default_factory=dict)
    jobs: Dict[str, Any] = field(default_factory=dict)
    newest_run: Optional[str] = field(default=None, metadata={"read": _run_id})


@dataclass(frozen=True)
class FollowFrame:
    """The head of one frame of a stream, which `bytes` bytes of the log follow; the first of them is at `offset`."""

    offset: int = field(metadata={"least": 0})
    bytes: int = 0
    report: Any = None
    end: bool = False  # the last one

    def to_json(self) -> Dict[str, Any]:
        """Leave out what is not set: most frames are pieces of the log."""
        if self.end:
            return {"end": True}
        report = {"report": to_json(self.report)} if self.report is not None else {}
        size = {"bytes": self.bytes} if self.bytes else {}
        return {"offset": self.offset, **size, **report}
