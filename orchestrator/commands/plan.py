"""`orch launch --dry-run`: what a launch would do. Nothing is sent, rehearsed or started; each host is asked once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.box.launch_request import launch_request
from orchestrator.box.run_ids import new_run_ids
from orchestrator.checks import rehearsal
from orchestrator.checks.check import Checked, fail
from orchestrator.code import dataset
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands.launch import launch_checks, resumed_run
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.shipping import code_warnings, describe_large, take, variable_warnings
from orchestrator.commands.sweep import Wishes, by_host, entries_of
from orchestrator.spec.models import Job
from orchestrator.spec.sweeps import PlannedRun, variants
from remote.contract.job_facts import JobFacts
from remote.contract.run_record import CodeRecord
from remote.contract.run_report import Forecast

NONE, REMEMBERED, NEEDED, UNKNOWN = "none", "remembered", "needed", "unknown"  # rehearsals


@dataclass(frozen=True)
class DataPlan:
    """Data of this machine that a job needs. It is sent unless the host has it. Size in bytes."""

    source: str
    files: int
    bytes: int


@dataclass(frozen=True)
class JobPlan:
    """What a launch would do for one job.

    Attributes:
        job: The job.
        host: The host that it would run on.
        runs: The settings that tell each of its runs from the others; empty for a single one.
        rehearsal: NONE, REMEMBERED, NEEDED, or UNKNOWN if it depends on data that is not on the host yet.
        forecast: What the remembered rehearsal measured.
        data: Its data on this machine.
    """

    job: str
    host: str
    runs: tuple[dict[str, str], ...]
    rehearsal: str
    forecast: Forecast | None = None
    data: DataPlan | None = None


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch would do.

    Attributes:
        snapshot: The code.
        large: Why the user would be asked before the code is sent; empty if not.
        lacking: The hosts that the code would be sent to.
        jobs: The jobs.
        checks: The results of all checks that can be made now.
        at_once: How many of the runs would run at a time; None for all.
        group: The name that their group would have, as far as it is known; empty without a group.
    """

    snapshot: CodeSnapshot
    large: str
    lacking: tuple[str, ...]
    jobs: tuple[JobPlan, ...]
    checks: tuple[Checked, ...]
    at_once: int | None = None
    group: str = ""

    @property
    def would_fail(self) -> bool:
        """Whether a check failed, so that the launch would be refused."""
        return any(checked.check.status == "fail" for checked in self.checks)


def plan(
    project: OpenedProject,
    names: Sequence[str],
    on: str | None,
    overrides: Sequence[str],
    wishes: Wishes,
    resume_from: str | None = None,
) -> LaunchPlan:
    """Return what `launch.launch` would do with the same arguments.

    Raises:
        SpecError: jobs.toml has no such job or host, a setting is wrong, or a secret is missing.
        HostError: A host cannot be used.
    """
    names = list(dict.fromkeys(names))
    spec = project.spec
    runs = variants(spec, names, overrides, wishes.sweeps)
    group = wishes.group_of(spec, runs)
    jobs_by_host = by_host(spec, runs, on)
    source = resumed_run(project, resume_from, jobs_by_host) if resume_from else None
    snapshot = take(project)
    for job in (job for jobs in jobs_by_host.values() for job in jobs):
        project.secrets.check(job)
    checks = [
        *code_warnings(project, snapshot),
        *variable_warnings(project, names, (*overrides, *wishes.sweeps), snapshot),
    ]
    lacking, jobs = [], []
    for name, of_host in jobs_by_host.items():
        host = spec.hosts[name]
        data = {job.name: found for job in of_host if (found := _data(project, job))}
        asked = [replace(job, data=None) if job.name in data else job for job in of_host]
        keys = {job: key for job, key in rehearsal.keys(asked, host, snapshot.tree).items() if job not in data}
        started = [run for run in runs if run.job.name in {job.name for job in of_host}]
        entries = entries_of(spec, started, new_run_ids(len(started), time.time()), group, source, {})
        request = launch_request(host, CodeRecord(snapshot.tree), entries, wishes.again)
        facts = project.retrying_box(name).facts(host, asked, snapshot.tree, rehearsed=keys, launch=request)
        if not all(job.has_code for job in facts.jobs.values()):
            lacking.append(name)
        checks += launch_checks(project, host, asked, facts)
        if facts.refusal:
            hint = facts.refusal.hint and f"{name} says: {facts.refusal.hint}"
            checks.append(Checked(name, fail("launch", facts.refusal.message or "no reason given", hint)))
        for job in of_host:
            known = facts.jobs.get(job.name, JobFacts())
            jobs.append(_planned(job, name, runs, known, data.get(job.name)))
    large = describe_large(snapshot, spec.project) if lacking else ""
    at_once, name = (group.at_once, group.name) if group else (None, "")
    if group and wishes.group is None:
        name = f"{name.rpartition('-')[0]}-..."  # the rest is random
    return LaunchPlan(snapshot, large, tuple(lacking), tuple(jobs), tuple(checks), at_once, name)


def _planned(job: Job, host: str, runs: Sequence[PlannedRun], found: JobFacts, data: DataPlan | None) -> JobPlan:
    own = tuple(run.values for run in runs if run.job.name == job.name)
    if not rehearsal.is_rehearsed(job):
        state = NONE
    elif data:
        state = UNKNOWN
    else:
        state = REMEMBERED if found.has_passed else NEEDED
    return JobPlan(job.name, host, own, state, found.forecast, data)


def _data(project: OpenedProject, job: Job) -> DataPlan | None:
    """Return the data that the job takes from this machine, without reading its content."""
    if job.data is None or job.data.source is None:
        return None
    found = dataset.examine(project.spec.directory / Path(job.data.source).expanduser())
    return DataPlan(job.data.source, len(found.entries), found.size)
