"""What a box's raw answers mean: pure (question, parser) pairs. A parser never raises, and says None for unknown.

The questions are asked by `remote/agent/facts.py`, all in one exchange; `host_facts.py` puts the answers together.
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
SHOWN = 300  # characters of what a tool said, in a message


@dataclass(frozen=True)
class Answer:
    """Raw: what a command said, or a value of the box, or why there is neither."""

    out: str = ""
    err: str = ""
    code: int | None = None
    value: Any = None
    error: str = ""
    absent: bool = False  # the program is not installed

    @classmethod
    def read(cls, record: Any) -> Answer:
        if not isinstance(record, Mapping):
            return cls(error="no information from the box")
        out, err, error = (_text(record.get(name)) for name in ("out", "err", "error"))
        code = record.get("code")
        is_code = isinstance(code, int) and not isinstance(code, bool)
        return cls(out, err, code if is_code else None, record.get("value"), error, record.get("absent") is True)

    @property
    def problem(self) -> str:
        """Why a command has no good answer; empty where it has."""
        if self.error or self.code == 0:
            return self.error
        said = " ".join(f"{self.out} {self.err}".split())[:SHOWN] or "no output"
        return f"exit code {self.code}: {said}"


@dataclass(frozen=True)
class Probe(Generic[T]):
    """One question by its name in the reply, and what its answer means."""

    question: str
    parse: Callable[[Answer], T]

    def read(self, answers: Mapping[str, Any]) -> T:
        return self.parse(Answer.read(answers.get(self.question)))


# --- the GPUs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpus:
    """The cards that nvidia-smi lists, and what is wrong where it does not list them."""

    cards: tuple[Gpu, ...] = ()
    problem: str = ""
    has_tool: bool = True


def parse_gpus(answer: Answer) -> Gpus:
    cards = tuple(nvidia.parse_cards(answer.out))
    problem = answer.problem or ("" if cards else "nvidia-smi lists no GPU")
    return Gpus(cards, problem, not answer.absent)


def parse_gpu_processes(answer: Answer) -> tuple[GpuProcess, ...]:
    return nvidia.parse_processes(answer.out)


class GpuOwner(BaseModel):
    """Whose a process is, and which run started it. An empty owner: it cannot be seen from the box's own system."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    owner: str = ""
    command: str = ""
    run: str | None = None  # "job run-id"
    run_ended: bool | None = None

    @property
    def is_orphan(self) -> bool:
        return self.run is not None and self.run_ended is True

    @property
    def is_of_live_run(self) -> bool:
        return self.run is not None and self.run_ended is False


def parse_gpu_owners(answer: Answer) -> dict[int, GpuOwner]:
    records = answer.value if isinstance(answer.value, list) else []
    owners = (read_model(GpuOwner, record) for record in records)
    return {owner.pid: owner for owner in owners if owner}


# --- the machine ---------------------------------------------------------------------------------------


class Disk(BaseModel):
    """Room under the root, or under what of it exists; bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    path: str
    free: int = Field(ge=0)
    total: int = Field(ge=0)
    inodes_free: int = 0
    inodes_total: int = 0  # 0: this file system does not count them
    writable: bool = True


def parse_disk(answer: Answer) -> Disk | None:
    return read_model(Disk, answer.value)


def parse_memory(answer: Answer) -> Memory | None:
    return parse_meminfo(_text(answer.value))


@dataclass(frozen=True)
class RsyncProgram:
    kind: str  # "GNU" or "openrsync", which macOS ships and which knows fewer options
    version: str


def parse_rsync(answer: Answer) -> RsyncProgram | None:
    """`rsync  version 3.2.7  protocol version 31` or `openrsync: protocol version 29`, in the first lines."""
    ours = re.search(r"openrsync[:,]?\s+(?:protocol )?version ([0-9.]{1,20})", answer.out)
    if ours:
        return RsyncProgram("openrsync", f"protocol {ours[1]}")
    gnu = re.search(r"(?m)^rsync\s+version v?([0-9][0-9a-z.]{0,20})", answer.out)
    return RsyncProgram("GNU", gnu[1]) if gnu else None


def parse_tmux(answer: Answer) -> str | None:
    """`tmux 3.3a`, `tmux next-3.5`, `tmux openbsd-7.4`: the version."""
    found = re.match(r"tmux ((?:next-|openbsd-)?[0-9][0-9a-z.-]{0,20})", answer.out)
    return found[1] if found else None


class JobPython(BaseModel):
    """The interpreter of the jobs, and what its torch sees where it was asked."""

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
    """Its last line is a JSON object; what a site hook printed may stand before it."""
    if answer.problem:
        return JobPython(problem=answer.problem)
    try:
        said = json.loads(answer.out.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):
        said = None
    return read_model(JobPython, said) or JobPython(problem="its output is not a JSON object")


def parse_reboot(answer: Answer) -> RebootMethod | None:
    return RebootMethod.from_json(answer.value)


def parse_text(answer: Answer) -> str:
    return _text(answer.value).strip()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def read_model(kind: type[M], value: Any) -> M | None:
    try:
        return kind.model_validate(value) if isinstance(value, Mapping) else None
    except ValidationError:
        return None


# --- the questions ------------------------------------------------------------------------------------

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
