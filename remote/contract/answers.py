"""Raw facts about a box, as the agent reports them: answers to a fixed list of questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from remote.contract.schema import from_json

_OMIT = {"omit": True}
_COUNT = {"least": 0}
SHOWN = 300  # characters of a tool's output in a message


@dataclass(frozen=True)
class Answer:
    """One raw fact: the output of a command, a value of the box, or the reason why there is neither."""

    out: str = field(default="", metadata=_OMIT)
    err: str = field(default="", metadata=_OMIT)
    code: Optional[int] = field(default=None, metadata=_OMIT)  # of a command
    value: Any = field(default=None, metadata=_OMIT)
    error: str = field(default="", metadata=_OMIT)
    absent: bool = field(default=False, metadata=_OMIT)  # the program is not installed

    @property
    def problem(self) -> str:
        """Why the command failed; empty if it succeeded."""
        if self.error or self.code == 0:
            return self.error
        output = " ".join(f"{self.out} {self.err}".split())[:SHOWN] or "no output"
        return f"exit code {self.code}: {output}"


NO_ANSWER = Answer(error="no information from the box")


def read_answers(value: Any) -> Dict[str, Answer]:
    """Return the answers in `value` by the names of their questions. Malformed parts of an answer count as missing."""
    records = value if isinstance(value, dict) else {}
    return {
        name: from_json(Answer, record, problems=[], longest=None) if isinstance(record, dict) else NO_ANSWER
        for name, record in records.items()
    }


@dataclass(frozen=True)
class Disk:
    """The disk of the root directory, or of its nearest existing parent. Sizes in bytes."""

    path: str
    free: int = field(metadata=_COUNT)
    total: int = field(metadata=_COUNT)
    inodes_free: int = 0
    inodes_total: int = 0  # 0: this file system does not count them
    writable: bool = True


@dataclass(frozen=True)
class GpuOwner:
    """The user and the run of a process on a GPU. `owner` is empty if the process is in another container."""

    pid: int
    owner: str = ""
    command: str = ""
    run: Optional[str] = None  # "job run-id"
    run_ended: Optional[bool] = None

    @property
    def is_orphan(self) -> bool:
        """Whether its run has ended."""
        return self.run is not None and self.run_ended is True

    @property
    def is_of_live_run(self) -> bool:
        """Whether its run has not ended."""
        return self.run is not None and self.run_ended is False


@dataclass(frozen=True)
class JobPython:
    """The Python of the jobs, and what its torch reports if the request asked for that."""

    version: str = ""
    executable: str = ""
    torch: Optional[str] = None
    torch_cuda: Optional[str] = None  # the CUDA that torch was built for; None for a CPU build
    cuda: Optional[bool] = None
    devices: Tuple[str, ...] = ()
    torch_error: str = ""
    problem: str = ""  # why it did not run
