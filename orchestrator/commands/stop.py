"""`orch stop` and `orch restart`: stop runs, or continue runs that have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.box.known_runs import Address
from orchestrator.box.reports import HostStatus
from orchestrator.commands.ask import accept
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target, exact
from orchestrator.errors import AgentUnusable, OrchError, Refused
from orchestrator.spec.models import Job
from orchestrator.system.caller import caller
from orchestrator.system.concurrency import as_completed
from remote.contract.run_report import RunReport


@dataclass(frozen=True)
class Changed:
    """The result of a request to stop or restart runs on several hosts.

    Attributes:
        runs: The runs as the hosts reported them after the request.
        errors: The error of each host that failed or refused.
        had_ended: The (job, run id) of the runs to stop that had already ended.
    """

    runs: tuple[RunReport, ...]
    errors: tuple[OrchError, ...]
    had_ended: frozenset[tuple[str, str]] = frozenset()


def stop(project: Project, targets: Sequence[Target]) -> Changed:
    """Ask runs to stop after their next checkpoint, on all hosts at once. Use `watch.wait` to wait for their end.

    Args:
        project: The project that has the runs.
        targets: The runs.
    """

    def ask_host(host: str, address: Address, named: Sequence[Target]) -> Changed:
        answer = project.box(host).at(address.where).stop([target.name for target in named], caller())
        runs = _accepted(project, host, address, answer.runs)
        return Changed(runs, answer.errors, answer.had_ended & {(run.job, run.run_id) for run in runs})

    return _ask_each_host(project, targets, ask_host)


def restart(project: Project, targets: Sequence[Target]) -> Changed:
    """Continue runs that have ended from their last checkpoint. On one host, either all are restarted or none.

    A host that must not be given the secrets of a run is not asked; its error is in the result.

    Args:
        project: The project that has the runs.
        targets: The runs.

    Raises:
        SpecError: A secret is missing on this machine.
    """
    secrets = {name: project.secrets.for_job(job) for name, job in _jobs_of(project, targets).items()}

    def ask_host(host: str, address: Address, named: Sequence[Target]) -> Changed:
        exact_targets = [exact(project, target) for target in named]
        for target in exact_targets:
            _require_right_to_secrets(project, target)
        needed_secrets = {name: secrets[name] for name in _jobs_of(project, exact_targets)}
        names = [target.name for target in dict.fromkeys(exact_targets)]
        runs = project.box(host).at(address.where).restart(names, caller(), needed_secrets)
        return Changed(_accepted(project, host, address, runs), ())

    return _ask_each_host(project, targets, ask_host)


def _ask_each_host(
    project: Project, targets: Sequence[Target], ask_host: Callable[[str, Address, Sequence[Target]], Changed]
) -> Changed:
    """Ask all hosts at once. The error of one host does not affect the others."""
    groups: dict[tuple[str, Address], list[Target]] = {}
    for target in dict.fromkeys(targets):
        groups.setdefault((target.host, target.address), []).append(target)
        project.transport(target.host)  # created before the threads start, which share it

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


def _accepted(project: Project, host: str, address: Address, runs: tuple[RunReport, ...]) -> tuple[RunReport, ...]:
    """Record and return the runs that a host reports. Raise AgentUnusable if it may not report one of them."""
    answer = accept(project, HostStatus(host, runs), address, named=True)
    if len(answer.runs) != len(runs):
        doing = f"asking {host} about {', '.join(run.job for run in runs)}"
        why = "".join(f"; {text}" for text in (*answer.problems, *answer.notes)[:1])
        raise AgentUnusable(f"{doing}: the reply is about other runs{why}", "to ask again: orch status")
    return answer.runs


def _require_right_to_secrets(project: Project, target: Target) -> None:
    """Raise Refused unless the user chose the host for the job, by a launch from here or in jobs.toml."""
    job = project.spec.jobs.get(target.job)
    known = project.known.get(target.job, str(target.run_id))
    if job is None or not job.secrets or job.host == target.host or (known is not None and known.launched_here):
        return
    raise Refused(
        f"restarting {target.job} {target.run_id} on {target.host}: it was not launched from here, and jobs.toml runs"
        f" {target.job} on {job.host}, so {target.host} is not given its secrets ({', '.join(sorted(job.secrets))})",
        f"to run it there: orch launch {target.job} --on {target.host}",
    )
