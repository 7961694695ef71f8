"""What a project has stored on a box, and the removal of parts of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Tuple

from remote.contract.protocol import ErrorRecord

RUN, REHEARSAL, SNAPSHOT, ENVIRONMENT, PREPARED = KINDS = "run", "rehearsal", "snapshot", "environment", "prepared"
ItemName = Tuple[str, str]  # a kind, and the name among those of that kind: for runs, JOB/RUN
_KINDS = {"choices": KINDS}


@dataclass(frozen=True)
class StoredRequest:
    """Ask what the project has stored, with the sizes: of everything, or with `runs` of these runs alone."""

    op: ClassVar[str] = "stored"
    runs: Optional[Tuple[Tuple[str, str], ...]] = None  # job, run id


@dataclass(frozen=True)
class StoredItem:
    """A run, a rehearsal, a snapshot, an environment, or the output of a `prepare`.

    `bytes` is what a removal of this item alone would free: without files that have hard links elsewhere.
    """

    kind: str = field(default="", metadata=_KINDS)
    name: str = ""
    bytes: int = field(default=0, metadata={"least": 0})
    counted: int = field(default=0, metadata={"least": 0})  # bytes that no item before it in the reply has
    files: int = 0
    age_s: float = 0.0  # seconds since its last use, or since the end of the run
    kept: str = ""  # why it cannot be removed now; "" if it can, or once `users` are removed
    users: Tuple[str, ...] = ()  # the runs that need it, as JOB/RUN
    checkpoints: int = 0  # bytes of a run's checkpoints


def _items(value: Any) -> Tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else ()


@dataclass(frozen=True)
class StoredReply:
    """What the project has stored. `items` are read one by one (`StoredItem`)."""

    items: Tuple[Any, ...] = field(default=(), metadata={"read": _items})
    other: Dict[str, int] = field(default_factory=dict)  # bytes of what is no item: data, the agent, the rest
    total: int = 0  # bytes, with each file counted once
    free: int = 0  # bytes of the disk that this user may still write
    disk: int = 0  # bytes of the disk
    is_complete: bool = True  # False: the time did not suffice to count all files


@dataclass(frozen=True)
class RemoveRequest:
    """Ask to remove items: each that nothing needs any more."""

    op: ClassVar[str] = "remove"
    items: Tuple[ItemName, ...]


@dataclass(frozen=True)
class NotRemoved:
    """An item that was not removed, and why. In JSON, the fields of `error` are at the same level as the others."""

    kind: str = ""
    name: str = ""
    error: ErrorRecord = field(default=ErrorRecord(), metadata={"inline": True})


@dataclass(frozen=True)
class RemoveReply:
    """The items that were removed, and the others. Those that do not exist count as removed."""

    removed: Tuple[ItemName, ...] = ()
    errors: Tuple[NotRemoved, ...] = ()
