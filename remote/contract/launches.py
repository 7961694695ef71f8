"""The requests that precede and make a launch, and their replies: `facts` and `launch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Tuple

from remote.contract.answers import Answer, read_answers
from remote.contract.paths import RUN_ID
from remote.contract.replies import Reports
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord, RunRef
from remote.contract.schema import Malformed

_COUNT = {"least": 0}


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


def _run_id(value: Any) -> Optional[str]:
    if not (isinstance(value, str) and RUN_ID.fullmatch(value)):
        raise Malformed("", "a run id")
    return value


@dataclass(frozen=True)
class FactsReply:
    """Raw answers about the box and about its `jobs`, by the name of the question or job.

    `now` is the box's clock when the request arrived, in seconds since the epoch. `newest_run` is the largest run id:
    new ids must be larger.
    """

    now: Optional[float] = None
    took_s: float = 0.0
    answers: Dict[str, Answer] = field(default_factory=dict, metadata={"read": read_answers})
    jobs: Dict[str, Answer] = field(default_factory=dict, metadata={"read": read_answers})
    newest_run: Optional[str] = field(default=None, metadata={"read": _run_id})


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
class LaunchReply:
    """The started runs, or the jobs that must be rehearsed first. Neither if the box lacks the snapshot."""

    have_code: bool
    unrehearsed: Tuple[str, ...] = ()
    runs: Reports = ()
