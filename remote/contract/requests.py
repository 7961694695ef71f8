"""The requests of a laptop to the agent on a box: one class for each operation.

Request  {"schema": 1, "op": "status", "args": {"root": ..., "project": ..., ...}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, NamedTuple, Optional, Tuple, Type

from remote.contract.files import JsonObject
from remote.contract.paths import RUN_ID
from remote.contract.protocol import SCHEMA, AgentError
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord, RunRef
from remote.contract.schema import Malformed, from_json, to_json

NONE, CURRENT, ALL = "none", "current", "all"  # which runs `status` reports, in addition to those that are named
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
class FactsRequest:
    """Ask for facts about the box and about jobs on it.

    `python` is the interpreter of the jobs. With `torch`, also ask what torch reports about CUDA there. `tree` is the
    snapshot of the jobs. For jobs in `rehearsed` (job to key), also ask for the measurements of that rehearsal.
    """

    op: ClassVar[str] = "facts"
    python: Optional[str] = None
    torch: bool = False
    tree: Optional[str] = None
    jobs: Tuple[JobRecord, ...] = ()
    rehearsed: Dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEntry:
    """One run of a launch. The values of its secrets are not recorded in run.json."""

    run_id: str = field(metadata={"pattern": RUN_ID})
    job: JobRecord
    secrets: Dict[str, str] = field(default_factory=dict, repr=False)
    resume_from: Optional[RunRef] = field(default=None, metadata={"omit": True})  # start from its newest checkpoint


@dataclass(frozen=True)
class LaunchRequest:
    """Ask to start all runs, or none. It is safe to send it again: a run id that exists is not started again.

    A job in `rehearsed` (job to key) is started only if the rehearsal with that key has passed on this box. `passed`
    lists the keys of rehearsals that have just passed. The box waits up to `confirm_s` seconds for the runs to start.
    """

    op: ClassVar[str] = "launch"
    host: HostRecord
    code: CodeRecord
    runs: Tuple[RunEntry, ...]
    versions: Dict[str, str] = field(default_factory=dict)
    by: str = ""  # user@machine
    confirm_s: float = field(default=0.0, metadata=_COUNT)
    rehearsed: Dict[str, str] = field(default_factory=dict)
    passed: Tuple[str, ...] = ()


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


@dataclass(frozen=True)
class CodeBeginRequest:
    """Ask whether the box has the snapshot `tree`, and where to upload it if not."""

    op: ClassVar[str] = "code_begin"
    tree: str


@dataclass(frozen=True)
class CodeCommitRequest:
    """Ask to turn the upload in `incoming` into the snapshot `tree`."""

    op: ClassVar[str] = "code_commit"
    tree: str
    incoming: str


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
class DataCommitRequest(DataBeginRequest):
    """Ask to put the upload in place; with `replace`, instead of what is there."""

    op: ClassVar[str] = "data_commit"
    replace: bool = False


REQUESTS: Dict[str, Type[Any]] = {
    kind.op: kind
    for kind in (
        HelloRequest,
        StatusRequest,
        InventoryRequest,
        FollowRequest,
        FactsRequest,
        LaunchRequest,
        StopRequest,
        RestartRequest,
        CodeBeginRequest,
        CodeCommitRequest,
        DataBeginRequest,
        DataCommitRequest,
    )
}


class Request(NamedTuple):
    """A complete request: the operation with its arguments, and the project. `hello` has no project."""

    what: Any  # an instance of a class in REQUESTS
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
        kind = REQUESTS.get(op) if isinstance(op, str) else None
        if kind is None:
            raise AgentError("bad_request", f"the agent knows no operation {op!r:.100}")
        if not isinstance(args, dict):
            raise AgentError("bad_request", "the arguments of the request are not an object")
        try:
            where = from_json(Where, args, longest=None) if kind is not HelloRequest else None
            return cls(from_json(kind, args, longest=None), where)
        except Malformed as error:
            raise AgentError("bad_request", str(error)) from None
