"""Facts of a box and of jobs on it, typed: one exchange, read with the parsers of `probe.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.box import probe
from orchestrator.box.probe import (
    Answer,
    Disk,
    GpuOwner,
    Gpus,
    JobPython,
    RsyncProgram,
    read_model,
)
from orchestrator.box.reports import ForecastSaid
from orchestrator.box.transport import Transport
from orchestrator.spec.models import Host, Job
from remote.contract.job_facts import CommandFacts, DataFacts
from remote.contract.meminfo import Memory
from remote.contract.nvidia import GpuProcess
from remote.contract.paths import RUN_ID
from remote.contract.protocol import Request
from remote.contract.reboot_method import RebootMethod


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JobFacts(_Found):
    has_code: bool = False
    prepared: bool | None = None  # None: nothing to prepare, or not known without the code
    prepare_error: str = ""
    commands: tuple[CommandFacts, ...] = ()
    data: DataFacts | None = None
    live_run: str | None = None
    forecast: ForecastSaid = None  # of a rehearsal that is remembered
    problem: str = ""  # why nothing was found out


def parse_job(answer: Answer) -> JobFacts:
    return read_model(JobFacts, answer.value) or JobFacts(problem=answer.error or "malformed reply")


@dataclass(frozen=True)
class Clock:
    """The box's clock beside the laptop's: seconds that it is ahead, right to within `uncertainty`."""

    ahead: float
    uncertainty: float


@dataclass(frozen=True)
class BoxFacts:
    python: str = ""
    system: str = ""
    boot_id: str = ""
    gpus: Gpus = Gpus()
    gpu_processes: tuple[GpuProcess, ...] = ()
    gpu_owners: Mapping[int, GpuOwner] = field(default_factory=dict)
    disk: Disk | None = None
    memory: Memory | None = None
    rsync: RsyncProgram | None = None
    tmux: str | None = None
    job_python: JobPython = JobPython()
    reboot: RebootMethod | None = None
    clock: Clock | None = None
    jobs: Mapping[str, JobFacts] = field(default_factory=dict)
    newest_run: str | None = None  # the newest run id of the project there


def read_facts(result: Mapping[str, Any], clock: Clock | None = None) -> BoxFacts:
    """Typed facts from one reply; whatever is missing or not as agreed is unknown."""
    answers, jobs = _mapping(result.get("answers")), _mapping(result.get("jobs"))
    newest = result.get("newest_run")
    return BoxFacts(
        python=probe.PYTHON.read(answers),
        system=probe.SYSTEM.read(answers),
        boot_id=probe.BOOT_ID.read(answers),
        gpus=probe.GPUS.read(answers),
        gpu_processes=probe.GPU_PROCESSES.read(answers),
        gpu_owners=probe.GPU_OWNERS.read(answers),
        disk=probe.DISK.read(answers),
        memory=probe.MEMORY.read(answers),
        rsync=probe.RSYNC.read(answers),
        tmux=probe.TMUX.read(answers),
        job_python=probe.JOB_PYTHON.read(answers),
        reboot=probe.REBOOT.read(answers),
        clock=clock,
        jobs={name: parse_job(Answer.read(jobs[name])) for name in jobs},
        newest_run=newest if isinstance(newest, str) and RUN_ID.fullmatch(newest) else None,
    )


def read_clock(result: Mapping[str, Any], asked: float, elapsed: float) -> Clock | None:
    """`asked` is the laptop's time of the question. The box told its time when the question reached it."""
    now, took = result.get("now"), result.get("took_s", 0.0)
    if not all(isinstance(value, (int, float)) for value in (now, took)):
        return None
    half = max(0.0, elapsed - took) / 2
    return Clock(now - (asked + half), half)


def ask(
    transport: Transport,
    address: Mapping[str, str],
    host: Host,
    jobs: Sequence[Job] = (),
    tree: str | None = None,
    torch: bool = False,
    rehearsed: Mapping[str, str] | None = None,
) -> BoxFacts:
    """One exchange for everything. Raises HostError where the box cannot be asked.

    `torch` starts the jobs' Python and imports it, which takes seconds; `rehearsed` (job -> key) asks what the
    rehearsals of these keys measured.
    """
    args = {
        **address,
        "python": host.python,
        "torch": torch,
        "tree": tree,
        "jobs": [job.model_dump(mode="json") for job in jobs],
        "rehearsed": dict(rehearsed or {}),
    }
    asked, started = time.time(), time.monotonic()
    result = transport.call(Request("facts", args))
    return read_facts(result, read_clock(result, asked, time.monotonic() - started))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
