"""The requests of a laptop to the agent on a box: one class for each operation. Here: those about existing runs.

Request  {"schema": 1, "op": "status", "args": {"root": ..., "project": ..., ...}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, NamedTuple, Optional, Tuple, Type

from remote.contract.files import JsonObject
from remote.contract.protocol import PAGE_ENTRIES, SCHEMA, AgentError
from remote.contract.schema import Malformed, from_json, to_json

NONE, CURRENT, ALL = "none", "current", "all"  # which runs `status` reports, in addition to those that are named
FilePart = Tuple[str, int, int]  # the path of a file, the offset of the first byte, the number of bytes
RunName = Tuple[str, Optional[str]]  # a job and a run id; None for the run that the job's name stands for
_COUNT = {"least": 0}


@dataclass(frozen=True)
class Where:
    """The project that a request is about: its name, and the root of all projects on the box.

    With `rehearsal`, the request is about the project's rehearsals instead of its runs.
    """

    root: str
    project: str
    rehearsal: bool = field(default=False, metadata={"omit": True})


@dataclass(frozen=True)
class HelloRequest:
    """Ask the agent to reply."""

    op: ClassVar[str] = "hello"


@dataclass(frozen=True)
class DigestsRequest:
    """Ask for the sha256 of each part of a file. Like `hello`, it is not about a project."""

    op: ClassVar[str] = "digests"
    parts: Tuple[FilePart, ...]


@dataclass(frozen=True)
class StatusRequest:
    """Ask for the reports of `which` runs, and of those in `also`."""

    op: ClassVar[str] = "status"
    which: str = field(default=CURRENT, metadata={"choices": (CURRENT, ALL, NONE)})
    also: Tuple[RunName, ...] = ()


@dataclass(frozen=True)
class InventoryRequest:
    """Ask for a page of the files of a run: at most `limit` files, after the path `after`."""

    op: ClassVar[str] = "inventory"
    job: str
    run_id: Optional[str] = None
    after: Optional[str] = None
    limit: Optional[int] = field(default=None, metadata=_COUNT)  # None, from an older laptop: all in one reply


@dataclass(frozen=True)
class InventoriesRequest:
    """Ask for the files of several runs, in this order: at most `limit`, and of the first run those after `after`."""

    op: ClassVar[str] = "inventories"
    runs: Tuple[RunName, ...]
    after: Optional[str] = None
    limit: int = field(default=PAGE_ENTRIES, metadata=_COUNT)


@dataclass(frozen=True)
class ChecksumsRequest:
    """Ask for the checksums of files, each named by job, run id and path in the run directory."""

    op: ClassVar[str] = "checksums"
    files: Tuple[Tuple[str, str, str], ...]


@dataclass(frozen=True)
class FollowRequest:
    """Ask for the log of a run, from byte `offset` on or, if that is None, its last `lines` lines.

    With `once`, ask only for what the log contains now. Its last lines come without what was drawn over in them, and
    have at most `follow.most_bytes`. With `fold`, so does what follows them.
    """

    op: ClassVar[str] = "follow"
    job: str
    run_id: Optional[str] = None
    once: bool = False
    offset: Optional[int] = field(default=None, metadata=_COUNT)
    lines: int = field(default=0, metadata=_COUNT)
    fold: bool = field(default=False, metadata={"omit": True})


@dataclass(frozen=True)
class StopRequest:
    """Ask runs to stop after a checkpoint."""

    op: ClassVar[str] = "stop"
    runs: Tuple[RunName, ...]
    by: str = ""


@dataclass(frozen=True)
class RestartRequest:
    """Ask to continue ended runs from their last checkpoints. `secrets` maps job to name to value."""

    op: ClassVar[str] = "restart"
    runs: Tuple[RunName, ...]
    by: str = ""
    confirm_s: float = field(default=0.0, metadata=_COUNT)
    secrets: Dict[str, Dict[str, str]] = field(default_factory=dict, repr=False)


OF_RUNS: Tuple[Type[Any], ...] = (
    HelloRequest,
    DigestsRequest,
    StatusRequest,
    InventoryRequest,
    InventoriesRequest,
    ChecksumsRequest,
    FollowRequest,
    StopRequest,
    RestartRequest,
)


def request_class(op: str) -> Optional[Type[Any]]:
    """Return the class of the requests for an operation, or None if there is no such operation.

    The classes of launches and uploads are imported only for one of their operations: `status` takes less time so.
    """
    kinds = {kind.op: kind for kind in OF_RUNS}
    if op not in kinds:
        from remote.contract.launches import FactsRequest, LaunchRequest

        kinds = {kind.op: kind for kind in (FactsRequest, LaunchRequest)}
    if op not in kinds:
        from remote.contract.uploads import CodeBeginRequest, CodeCommitRequest, DataBeginRequest, DataCommitRequest

        kinds = {kind.op: kind for kind in (CodeBeginRequest, CodeCommitRequest, DataBeginRequest, DataCommitRequest)}
    return kinds.get(op)


class Request(NamedTuple):
    """A complete request: the operation with its arguments, and the project. `hello` and `digests` have none."""

    what: Any  # an instance of a class that `request_class` returns
    where: Optional[Where] = None

    @property
    def op(self) -> str:
        """Return the name of the operation."""
        return str(self.what.op)

    def to_json(self) -> JsonObject:
        """Return the request as one JSON object."""
        where = to_json(self.where) if self.where else {}
        return {"schema": SCHEMA, "op": self.op, "args": {**where, **to_json(self.what)}}

    @classmethod
    def from_json(cls, value: Any) -> Request:
        """Return the request in `value`.

        Raises:
            AgentError: `bad_request`. The message names the malformed field but not its value, which may be a secret.
        """
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise AgentError("bad_request", "the request is not one of this version")
        op, args = value.get("op"), value.get("args", {})
        kind = request_class(op) if isinstance(op, str) else None
        if kind is None:
            raise AgentError("bad_request", f"the agent knows no operation {op!r:.100}")
        if not isinstance(args, dict):
            raise AgentError("bad_request", "the arguments of the request are not an object")
        try:
            where = from_json(Where, args, longest=None) if kind not in (HelloRequest, DigestsRequest) else None
            return cls(from_json(kind, args, longest=None), where)
        except Malformed as error:
            raise AgentError("bad_request", str(error)) from None
