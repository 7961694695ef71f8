"""Resolve the names on the command line to runs that a host can be asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.commands.ask import ask
from orchestrator.commands.newest_run import newest_of_each_job
from orchestrator.commands.run_names import means_several, meant, no_such_run
from orchestrator.errors import SpecError
from remote.contract.paths import RUN_ID

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from remote.contract.requests import RunName


@dataclass(frozen=True)
class Target:
    """A run that the user named. `run_id` is None if the box is to choose the run of the job.

    `is_one_of_several` is True for each run of a group, a pattern, or a job with several unfinished runs. A command
    leaves those out for which it has nothing to do.
    """

    host: str
    job: str
    run_id: str | None
    address: Address
    is_one_of_several: bool = False

    @property
    def name(self) -> RunName:
        """The job and run id, as requests name a run."""
        return self.job, self.run_id


def target(project: OpenedProject, name: str, on: str | None = None) -> Target:
    """Return the run that `name` means, for a command about one run.

    A job means its unfinished run, or else its newest run. If no run of it is known here, its host chooses.

    Args:
        project: The project that has the run.
        name: A job, a run id or the end of one, a group or a pattern.
        on: Consider only runs on this host.

    Raises:
        SpecError: There is no such job, run or host, and the hint has the nearest valid name; or `name` means several
            runs.
        HostError: A host had to be asked, and could not be.
    """
    found = targets(project, [name], on)
    if len(found) > 1:
        raise means_several(name, [f"{each.job}/{each.run_id}" for each in found])
    return found[0]


def targets(
    project: OpenedProject, names: Iterable[str], on: str | None = None, whole_jobs: bool = False
) -> list[Target]:
    """Return the runs that the names mean, each once, for a command about several runs.

    A job means all its unfinished runs, or else its newest run; a group or a pattern means all its runs.

    Args:
        project: The project that has the runs.
        names: Jobs, run ids or the ends of them, groups and patterns.
        on: Consider only runs on this host.
        whole_jobs: Let a job mean all its runs on the hosts that those runs are on: the id is None.

    Raises:
        SpecError: As `target`, but a name may mean several runs.
        HostError: As `target`.
    """
    found: dict[tuple[str, RunName], Target] = {}
    for name in names:
        known = project.runs_on(on)
        of_job = [run for run in known if run.job == name]
        if of_job:
            meant_runs = _of_job(project, of_job)
            if whole_jobs:
                meant_runs = [_whole_job(project, each) for each in meant_runs]
        else:
            runs = meant(project, known, name)
            runs = [run for run in runs if run.confirmed] or runs  # without those of an interrupted launch
            meant_runs = [_target(project, run, True) for run in runs]
            meant_runs = meant_runs or [_not_known_here(project, name, on, known)]
        is_several = len(meant_runs) > 1
        found |= {(each.host, each.name): replace(each, is_one_of_several=is_several) for each in meant_runs}
    return list(found.values())


def _of_job(project: OpenedProject, named: list[KnownRun]) -> list[Target]:
    """Return the runs that the name of a job means, of its known runs `named`."""
    unfinished = [run for run in named if not run.has_ended]
    over: set[tuple[str, str]] = set()  # lost or missing according to their hosts
    if len(unfinished) > 1 or len({project.host_of(run) for run in named}) > 1:
        for host in sorted({host for run in unfinished if (host := project.host_of(run))}):
            reports = ask(project, host, "none", named).runs  # a run that was unfinished may have ended
            over |= {(run.job, run.run_id) for run in reports if run.is_lost or run.is_missing}
        named = [now for run in named if (now := project.known.get(*run.key))]
    live = [run for run in named if run.confirmed and not (run.has_ended or run.key in over)]
    live = [run for run in live if not project.is_foreign(run)] or live
    if len(live) > 1:
        return [_target(project, run, True) for run in live]
    reports_by_job = newest_of_each_job(project, (project.mirror.report(run) for run in named))
    chosen = max(reports_by_job.values(), key=lambda report: report.run_id)
    return [_target(project, next(run for run in named if run.key == (chosen.job, chosen.run_id)), False)]


def _whole_job(project: OpenedProject, wanted: Target) -> Target:
    is_here = wanted.address.where == project.address(wanted.host).where
    return replace(wanted, run_id=None) if is_here else wanted


def _target(project: OpenedProject, run: KnownRun, is_exact: bool) -> Target:
    """Return a known run. Unless `is_exact`, its host may choose another run of its job.

    Raises:
        SpecError: Its host is no longer in jobs.toml.
    """
    host, address = project.require_host(run), project.address_of_run(run)
    is_exact = is_exact or address.where != project.address(host).where
    return Target(host, run.job, run.run_id if is_exact else None, address)


def has_ended(project: OpenedProject, wanted: Target) -> bool:
    """Return whether a run has ended, as far as it is known here."""
    known = project.known.get(wanted.job, str(wanted.run_id))
    return known is not None and known.has_ended


def exact(project: OpenedProject, wanted: Target) -> Target:
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


def _not_known_here(project: OpenedProject, name: str, on: str | None, known: Sequence[KnownRun]) -> Target:
    """Return a run that this machine has no record of, such as one launched from another laptop."""
    if RUN_ID.fullmatch(name):
        hosts = [project.spec.host(on).name] if on else sorted({*project.hosts_to_ask(), *project.hosts_of_jobs()})
        answers = [ask(project, host, "all", (), named=on is not None) for host in hosts]
        for answer in answers:
            for report in answer.runs:
                if report.run_id == name:
                    return Target(answer.host, report.job, name, project.address(answer.host))
        errors = [answer.error for answer in answers if answer.error]
        if errors:
            raise errors[0]
    if name not in project.spec.jobs:
        raise no_such_run(project, name, known)
    host = project.spec.host(on or project.spec.job(name).host).name
    return Target(host, name, None, project.address(host))
