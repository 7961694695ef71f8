"""Resolve the jobs and run ids on the command line to runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.commands.ask import ask
from orchestrator.commands.overview import newest_of_each_job, unknown_name
from orchestrator.errors import SpecError
from remote.contract.paths import RUN_ID

if TYPE_CHECKING:
    from orchestrator.commands.project import Project
    from remote.contract.requests import RunName


@dataclass(frozen=True)
class Target:
    """A run that the user named. `run_id` is None if the box is to choose the run of the job."""

    host: str
    job: str
    run_id: str | None
    address: Address

    @property
    def name(self) -> RunName:
        """The job and run id, as requests name a run."""
        return self.job, self.run_id


def target(project: Project, name: str, on: str | None = None) -> Target:
    """Return the run that `name`, a job or a run id, means.

    A job means its unfinished run, or else its newest run. If no run of it is known here, its host chooses.

    Args:
        project: The project that has the run.
        name: A job or a run id.
        on: Consider only runs on this host.

    Raises:
        SpecError: There is no such job, run or host; the hint has the nearest valid name.
        HostError: A host had to be asked, and could not be.
    """
    if on is not None:
        project.spec.host(on)
    named = _named(project, name, on)
    hosts_of_unfinished = {project.host_of(run) for run in named if not run.has_ended}
    if len({project.host_of(run) for run in named}) > 1:
        for host in sorted(host for host in hosts_of_unfinished if host):
            ask(project, host, "none", named)  # a run that was unfinished in the last report may have ended
        named = _named(project, name, on)
    if not named:
        return _not_known_here(project, name, on)
    reports = newest_of_each_job(project, (project.mirror.report(run) for run in named))
    chosen = max(reports.values(), key=lambda report: report.run_id)
    run = next(run for run in named if run.key == (chosen.job, chosen.run_id))
    found = project.host_of(run)
    if found is None:
        raise SpecError(
            f"{run.job} {run.run_id} was launched on {run.host!r}, which is no longer in jobs.toml",
            "add the host to jobs.toml again",
        )
    address = project.address_of_run(run)
    is_exact = RUN_ID.fullmatch(name) or address.where != project.address(found).where
    return Target(found, run.job, run.run_id if is_exact else None, address)


def targets(project: Project, names: Iterable[str], on: str | None = None) -> list[Target]:
    """Return the run that each name means, as `target` does."""
    return [target(project, name, on) for name in names]


def exact(project: Project, wanted: Target) -> Target:
    """Return `wanted` with its run id, asking the host if needed.

    A restart needs it, because a box must not choose which run is given secrets.

    Raises:
        SpecError: The host has no run of the job, or none that it may report.
        HostError: The host could not be asked.
    """
    if wanted.run_id is not None:
        return wanted
    known = [run for run in project.known.all() if run.job == wanted.job]
    answer = ask(project, wanted.host, "current", known, named=True)
    if answer.error:
        raise answer.error
    found = newest_of_each_job(project, (run for run in answer.runs if run.job == wanted.job))
    if wanted.job not in found:
        raise SpecError(f"{wanted.job} has no run on {wanted.host}", f"to start one: orch launch {wanted.job}")
    return Target(wanted.host, wanted.job, found[wanted.job].run_id, wanted.address)


def _named(project: Project, name: str, on: str | None) -> list[KnownRun]:
    return [run for run in project.known.all() if name in run.key and (on is None or project.host_of(run) == on)]


def _not_known_here(project: Project, name: str, on: str | None) -> Target:
    """Return a run that this machine has no record of, such as one launched from another laptop."""
    if RUN_ID.fullmatch(name):
        hosts = [project.spec.host(on).name] if on else sorted({*project.hosts_to_ask(), *project.hosts_of_jobs()})
        answers = [ask(project, host, "all", (), named=on is not None) for host in hosts]
        for answer in answers:
            for report in answer.runs:
                if report.run_id == name:
                    return Target(answer.host, report.job, name, project.address(answer.host))
        for error in (answer.error for answer in answers if answer.error):
            raise error
    if name not in project.spec.jobs:
        raise unknown_name(project, name)
    host = project.spec.host(on or project.spec.job(name).host).name
    return Target(host, name, None, project.address(host))
