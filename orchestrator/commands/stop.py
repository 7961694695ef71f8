"""Stop runs, and let ended ones go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.box.known_runs import Address
from orchestrator.box.reports import HostStatus
from orchestrator.commands.overview import believe
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target, exact
from orchestrator.errors import AgentUnusable, OrchError, Refused
from orchestrator.spec.models import Job
from orchestrator.system.concurrency import as_completed
from remote.contract.run_report import RunReport


@dataclass(frozen=True)
class Changed:
    """What became of a request to stop or restart runs, which each host answers on its own.

    `had_ended` holds the (job, run id) of those that had ended before they were to be stopped.
    """

    runs: tuple[RunReport, ...]
    errors: tuple[OrchError, ...]  # of the hosts that failed or refused
    had_ended: frozenset[tuple[str, str]] = frozenset()


def stop(project: Project, targets: Sequence[Target], by: str) -> Changed:
    """Ask the runs to stop, every host at once; they do so after a checkpoint, which `watch.wait` sees."""

    def ask_host(host: str, address: Address, mine: Sequence[Target]) -> Changed:
        answer = project.box(host).at(address.where).stop([target.name for target in mine], by)
        runs = _believed(project, host, address, answer.runs)
        return Changed(runs, answer.errors, answer.had_ended & {(run.job, run.run_id) for run in runs})

    return _at_every_host(project, targets, ask_host)


def restart(project: Project, targets: Sequence[Target], by: str) -> Changed:
    """Let ended runs go on from their last checkpoint; on one host, all of them or none.

    What a host is not to be given the secrets for is the error of that host.
    """
    secrets = {name: project.vault.values(job) for name, job in _jobs_of(project, targets).items()}

    def ask_host(host: str, address: Address, named: Sequence[Target]) -> Changed:
        mine = [exact(project, target) for target in named]
        for target in mine:
            _require_right_to_secrets(project, target)
        theirs = {name: secrets[name] for name in _jobs_of(project, mine)}
        names = [target.name for target in dict.fromkeys(mine)]
        runs = project.box(host).at(address.where).restart(names, by, theirs)
        return Changed(_believed(project, host, address, runs), ())

    return _at_every_host(project, targets, ask_host)


def _at_every_host(
    project: Project, targets: Sequence[Target], ask_host: Callable[[str, Address, Sequence[Target]], Changed]
) -> Changed:
    """Ask every host at once; the error of one is beside the answers of the others."""
    groups: dict[tuple[str, Address], list[Target]] = {}
    for target in dict.fromkeys(targets):
        groups.setdefault((target.host, target.address), []).append(target)
        project.transport(target.host)  # made here: the threads below share them

    def answer(key: tuple[str, Address]) -> Changed:
        try:
            return ask_host(*key, groups[key])
        except OrchError as error:
            return Changed((), (error,))

    changes = [change for change in as_completed(list(groups), answer) if change is not None]
    return Changed(
        tuple(run for change in changes for run in change.runs),
        tuple(error for change in changes for error in change.errors),
        frozenset(pair for change in changes for pair in change.had_ended),
    )


def _jobs_of(project: Project, targets: Sequence[Target]) -> dict[str, Job]:
    jobs = project.spec.jobs
    return {target.job: jobs[target.job] for target in targets if target.job in jobs}


def _believed(project: Project, host: str, address: Address, runs: tuple[RunReport, ...]) -> tuple[RunReport, ...]:
    """Return the runs that a host reports. Raise AgentUnusable where it may not speak for one of them."""
    answer = believe(project, HostStatus(host, runs), address, named=True)
    if len(answer.runs) != len(runs):
        doing = f"asking {host} about {', '.join(run.job for run in runs)}"
        why = "".join(f"; {said}" for said in (*answer.problems, *answer.notes)[:1])
        raise AgentUnusable(f"{doing}: the reply is about other runs{why}", "to ask again: orch status")
    return answer.runs


def _require_right_to_secrets(project: Project, target: Target) -> None:
    """A secret goes to a host that the user chose for the job: by a launch from here, or in jobs.toml."""
    job = project.spec.jobs.get(target.job)
    known = project.known.get(target.job, str(target.run_id))
    if job is None or not job.secrets or job.host == target.host or (known is not None and known.launched_here):
        return
    raise Refused(
        f"restarting {target.job} {target.run_id} on {target.host}: it was not launched from here, and jobs.toml runs"
        f" {target.job} on {job.host}, so {target.host} is not given its secrets ({', '.join(sorted(job.secrets))})",
        f"to run it there: orch launch {target.job} --on {target.host}",
    )
