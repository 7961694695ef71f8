"""Typed facts about a box and the jobs on it, read from one reply with the parsers of `probe.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.box import probe
from orchestrator.box.probe import Gpus, RsyncProgram
from remote.contract.answers import Answer, Disk, GpuOwner, JobPython
from remote.contract.job_facts import JobFacts
from remote.contract.logout_outcome import Logout
from remote.contract.meminfo import Memory
from remote.contract.nvidia import GpuProcess
from remote.contract.reboot_method import RebootMethod
from remote.contract.schema import Malformed, from_json

if TYPE_CHECKING:
    from remote.contract.launches import FactsReply


def parse_job(answer: Answer) -> JobFacts:
    """Return the facts of one job; `problem` says why if there are none."""
    try:
        return from_json(JobFacts, answer.value, longest=None)
    except Malformed:
        return JobFacts(problem=answer.error or "malformed reply")


@dataclass(frozen=True)
class Clock:
    """How far the box's clock is ahead of the laptop's, plus or minus `uncertainty`; both in seconds."""

    ahead: float
    uncertainty: float


@dataclass(frozen=True)
class BoxFacts:
    """What is known about a box. Each default means unknown."""

    python: str = ""
    system: str = ""
    os_release: str = ""  # the file /etc/os-release
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
    logout: Logout | None = None
    clock: Clock | None = None
    jobs: Mapping[str, JobFacts] = field(default_factory=dict)
    newest_run: str | None = None  # the newest run id of the project on the box


def read_facts(reply: FactsReply, clock: Clock | None = None) -> BoxFacts:
    """Return the facts in a reply. Whatever is missing or malformed counts as unknown."""
    answers, jobs = reply.answers, reply.jobs
    return BoxFacts(
        python=probe.PYTHON.read(answers),
        system=probe.SYSTEM.read(answers),
        os_release=probe.OS_RELEASE.read(answers),
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
        logout=probe.LOGOUT.read(answers),
        clock=clock,
        jobs={name: parse_job(jobs[name]) for name in jobs},
        newest_run=reply.newest_run,
    )


def read_clock(reply: FactsReply, asked: float, elapsed: float) -> Clock | None:
    """Compare the box's clock with the laptop's.

    Args:
        reply: The box's reply. It has the box's time when the request arrived, and how long the box worked on it.
        asked: The laptop's time of the request, in seconds since the epoch.
        elapsed: Seconds from the request to the reply.

    Returns:
        The difference; None if the box did not report its time.
    """
    if reply.now is None:
        return None
    half = max(0.0, elapsed - reply.took_s) / 2
    return Clock(reply.now - (asked + half), half)
