"""Parse the raw facts that a box reports: one probe (name and parser) for each. Parsers never raise.

`remote/agent/facts.py` collects all of them for one reply; `host_facts.py` combines the parsed values. A parser
returns None or a `problem` for what is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remote.contract import nvidia
from remote.contract.meminfo import Memory, parse_meminfo
from remote.contract.nvidia import Gpu, GpuProcess
from remote.contract.reboot_method import RebootMethod

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
SHOWN = 300  # characters of a tool's output in a message


@dataclass(frozen=True)
class Answer:
    """One raw fact: the output of a command, a value of the box, or the reason why there is neither."""

    out: str = ""
    err: str = ""
    code: int | None = None
    value: Any = None
    error: str = ""
    absent: bool = False  # the program is not installed

    @classmethod
    def read(cls, record: Any) -> Answer:
        """Return the raw fact in a JSON value. Malformed parts count as missing."""
        if not isinstance(record, Mapping):
            return cls(error="no information from the box")
        out, err, error = (_text(record.get(name)) for name in ("out", "err", "error"))
        code = record.get("code")
        is_code = isinstance(code, int) and not isinstance(code, bool)
        return cls(out, err, code if is_code else None, record.get("value"), error, record.get("absent") is True)

    @property
    def problem(self) -> str:
        """Why the command failed; empty if it succeeded."""
        if self.error or self.code == 0:
            return self.error
        output = " ".join(f"{self.out} {self.err}".split())[:SHOWN] or "no output"
        return f"exit code {self.code}: {output}"


@dataclass(frozen=True)
class Probe(Generic[T]):
    """The name of one fact in the reply, and its parser."""

    question: str
    parse: Callable[[Answer], T]

    def read(self, answers: Mapping[str, Any]) -> T:
        """Return the parsed fact from all raw ones."""
        return self.parse(Answer.read(answers.get(self.question)))


# --- the GPUs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpus:
    """The GPUs that nvidia-smi lists, or why it lists none. `has_tool` is False if it is not installed."""

    cards: tuple[Gpu, ...] = ()
    problem: str = ""
    has_tool: bool = True


def parse_gpus(answer: Answer) -> Gpus:
    """Parse the GPUs in the output of nvidia-smi."""
    cards = tuple(nvidia.parse_cards(answer.out))
    problem = answer.problem or ("" if cards else "nvidia-smi lists no GPU")
    return Gpus(cards, problem, not answer.absent)


def parse_gpu_processes(answer: Answer) -> tuple[GpuProcess, ...]:
    """Parse the processes that use GPUs in the output of nvidia-smi."""
    return nvidia.parse_processes(answer.out)


class GpuOwner(BaseModel):
    """The user and the run of a process on a GPU. `owner` is empty if the process is in another container."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    owner: str = ""
    command: str = ""
    run: str | None = None  # "job run-id"
    run_ended: bool | None = None

    @property
    def is_orphan(self) -> bool:
        """Whether its run has ended."""
        return self.run is not None and self.run_ended is True

    @property
    def is_of_live_run(self) -> bool:
        """Whether its run has not ended."""
        return self.run is not None and self.run_ended is False


def parse_gpu_owners(answer: Answer) -> dict[int, GpuOwner]:
    """Return the owners by process id."""
    records = answer.value if isinstance(answer.value, list) else []
    owners = (read_model(GpuOwner, record) for record in records)
    return {owner.pid: owner for owner in owners if owner}


# --- the machine ---------------------------------------------------------------------------------------


class Disk(BaseModel):
    """The disk of the root directory, or of its nearest existing parent. Sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    path: str
    free: int = Field(ge=0)
    total: int = Field(ge=0)
    inodes_free: int = 0
    inodes_total: int = 0  # 0: this file system does not count them
    writable: bool = True


def parse_disk(answer: Answer) -> Disk | None:
    """Return the disk; None if it is unknown."""
    return read_model(Disk, answer.value)


def parse_memory(answer: Answer) -> Memory | None:
    """Parse /proc/meminfo; None if it is unknown."""
    return parse_meminfo(_text(answer.value))


@dataclass(frozen=True)
class RsyncProgram:
    """The rsync of a box."""

    kind: str  # "GNU", or "openrsync", which comes with macOS and has fewer options
    version: str


def parse_rsync(answer: Answer) -> RsyncProgram | None:
    """Find `rsync  version 3.2.7  protocol version 31` or `openrsync: protocol version 29` in the output; else None."""
    openrsync = re.search(r"openrsync[:,]?\s+(?:protocol )?version ([0-9.]{1,20})", answer.out)
    if openrsync:
        return RsyncProgram("openrsync", f"protocol {openrsync[1]}")
    gnu = re.search(r"(?m)^rsync\s+version v?([0-9][0-9a-z.]{0,20})", answer.out)
    return RsyncProgram("GNU", gnu[1]) if gnu else None


def parse_tmux(answer: Answer) -> str | None:
    """Return the version in `tmux 3.3a`, `tmux next-3.5` or `tmux openbsd-7.4`; else None."""
    found = re.match(r"tmux ((?:next-|openbsd-)?[0-9][0-9a-z.-]{0,20})", answer.out)
    return found[1] if found else None


class JobPython(BaseModel):
    """The Python of the jobs, and what its torch reports if the request asked for that."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str = ""
    executable: str = ""
    torch: str | None = None
    torch_cuda: str | None = None  # the CUDA that torch was built for; None for a CPU build
    cuda: bool | None = None
    devices: tuple[str, ...] = ()
    torch_error: str = ""
    problem: str = ""  # why it did not run


def parse_job_python(answer: Answer) -> JobPython:
    """Parse the JSON object in the last line of the output. A site hook may have printed lines before it."""
    if answer.problem:
        return JobPython(problem=answer.problem)
    try:
        record = json.loads(answer.out.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):
        record = None
    return read_model(JobPython, record) or JobPython(problem="its output is not a JSON object")


def parse_reboot(answer: Answer) -> RebootMethod | None:
    """Return how unfinished runs are started again after a reboot of the box; None if it is unknown."""
    return RebootMethod.from_json(answer.value)


def parse_text(answer: Answer) -> str:
    """Return a value that is text; empty if it is unknown."""
    return _text(answer.value).strip()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def read_model(kind: type[M], value: Any) -> M | None:
    """Return `value` as the model `kind`; None if it is malformed."""
    try:
        return kind.model_validate(value) if isinstance(value, Mapping) else None
    except ValidationError:
        return None


# --- the probes ---------------------------------------------------------------------------------------

GPUS = Probe("gpus", parse_gpus)
GPU_PROCESSES = Probe("gpu_processes", parse_gpu_processes)
GPU_OWNERS = Probe("gpu_owners", parse_gpu_owners)
DISK = Probe("disk", parse_disk)
MEMORY = Probe("memory", parse_memory)
RSYNC = Probe("rsync", parse_rsync)
TMUX = Probe("tmux", parse_tmux)
JOB_PYTHON = Probe("job_python", parse_job_python)
PYTHON = Probe("python", parse_text)
SYSTEM = Probe("system", parse_text)
BOOT_ID = Probe("boot_id", parse_text)
REBOOT = Probe("reboot", parse_reboot)
