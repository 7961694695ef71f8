"""The requests that put code and data on a box, and their replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional


@dataclass(frozen=True)
class CodeBeginRequest:
    """Ask whether the box has the snapshot `tree`, and where to upload it if not."""

    op: ClassVar[str] = "code_begin"
    tree: str


@dataclass(frozen=True)
class CodeBeginReply:
    """Whether the box has the snapshot; if not, the directory to upload it to, and a snapshot to hard-link against."""

    have: bool
    incoming: Optional[str] = None
    link_to: Optional[str] = None


@dataclass(frozen=True)
class CodeCommitRequest:
    """Ask to turn the upload in `incoming` into the snapshot `tree`."""

    op: ClassVar[str] = "code_commit"
    tree: str
    incoming: str


@dataclass(frozen=True)
class CodeCommitReply:
    """The snapshot is complete."""


@dataclass(frozen=True)
class DataBeginRequest:
    """Ask whether the box has data at `target`, and where to upload it if not.

    A relative target is below the project's directory for data. `listing` is the digest of the listing (`datasets`).
    `name` is the name of a single file; "" for a directory. With `content`, the target is the hash of the content.
    """

    op: ClassVar[str] = "data_begin"
    target: str
    listing: str
    name: str = ""
    content: bool = False


@dataclass(frozen=True)
class DataBeginReply:
    """What is at the target, whose absolute path is `path`: "absent", the "same" data, or "different" files.

    `incoming` is the directory to upload to, and `received` the bytes that an earlier upload has left there.
    """

    path: str
    state: str = field(metadata={"choices": ("absent", "same", "different")})
    incoming: Optional[str] = None
    received: int = field(default=0, metadata={"least": 0})


@dataclass(frozen=True)
class DataCommitRequest(DataBeginRequest):
    """Ask to put the upload in place; with `replace`, instead of what is there."""

    op: ClassVar[str] = "data_commit"
    replace: bool = False


@dataclass(frozen=True)
class DataCommitReply:
    """The data is in place. Sizes in bytes."""

    files: int = 0
    bytes: int = 0
