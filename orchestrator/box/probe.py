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

from remote.contract import nvidia
from remote.contract.answers import NO_ANSWER, Answer, Disk, GpuOwner, JobPython
from remote.contract.logout_outcome import Logout
from remote.contract.meminfo import Memory, parse_meminfo
from remote.contract.nvidia import Gpu, GpuProcess
from remote.contract.reboot_method import RebootMethod
from remote.contract.schema import Malformed, from_json

T = TypeVar("T")


@dataclass(frozen=True)
class Probe(Generic[T]):
    """The name of one fact in the reply, and its parser."""

    question: str
    parse: Callable[[Answer], T]

    def read(self, answers: Mapping[str, Answer]) -> T:
        """Return the parsed fact from all raw ones."""
        return self.parse(answers.get(self.question, NO_ANSWER))


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


def parse_gpu_owners(answer: Answer) -> dict[int, GpuOwner]:
    """Return the owners by process id."""
    records = answer.value if isinstance(answer.value, list) else []
    owners = (_read(GpuOwner, record) for record in records)
    return {owner.pid: owner for owner in owners if owner}


# --- the machine ---------------------------------------------------------------------------------------


def parse_disk(answer: Answer) -> Disk | None:
    """Return the disk; None if it is unknown."""
    return _read(Disk, answer.value)


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


def parse_job_python(answer: Answer) -> JobPython:
    """Parse the JSON object in the last line of the output. A site hook may have printed lines before it."""
    if answer.problem:
        return JobPython(problem=answer.problem)
    try:
        record = json.loads(answer.out.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):
        record = None
    return _read(JobPython, record) or JobPython(problem="its output is not a JSON object")


def parse_reboot(answer: Answer) -> RebootMethod | None:
    """Return how unfinished runs are started again after a reboot of the box; None if it is unknown."""
    try:
        return from_json(RebootMethod, answer.value, problems=[])
    except Malformed:
        return None


def parse_logout(answer: Answer) -> Logout | None:
    """Return what happens to runs when the login ends that started them; None if it is unknown."""
    return _read(Logout, answer.value)


def parse_text(answer: Answer) -> str:
    """Return a value that is text; empty if it is unknown."""
    return _text(answer.value).strip()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _read(kind: type[T], value: Any) -> T | None:
    """Return `value` as the dataclass `kind`; None if it is malformed."""
    try:
        return from_json(kind, value, longest=None)
    except Malformed:
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
LOGOUT = Probe("logout", parse_logout)
OS_RELEASE = Probe("os_release", parse_text)
