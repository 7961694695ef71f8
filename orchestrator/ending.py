"""Stop runs, and let ended ones go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import launch as launching
from orchestrator.errors import AgentUnusable, OrchError, Refused
from orchestrator.known_runs import Address
from orchestrator.overview import believe
from orchestrator.project import Project
from orchestrator.reports import RunReport, read_reports
from orchestrator.spec import Job
from orchestrator.targets import Target, exact
from remote.protocol import Request


@dataclass(frozen=True)
class Changed:
    """What became of a request to stop or restart runs, which each host answers on its own.

    `had_ended` holds the (job, run id) of those that had ended before they were to be stopped.
    """

    runs: tuple[RunReport, ...]
    errors: tuple[OrchError, ...]  # of the hosts that failed or refused
    had_ended: frozenset[tuple[str, str]] = frozenset()


def stop(project: Project, targets: Sequence[Target], by: str) -> Changed:
    """Ask the runs to stop; they do so after a checkpoint, which `watching.wait` sees."""
    runs: list[RunReport] = []
    errors: list[OrchError] = []
    had_ended: set[tuple[str, str]] = set()
    for (host, address), mine in _by_address(targets).items():
        asked = {**address.asked(), "runs": [[target.job, target.run_id] for target in mine], "by": by}
        try:
            result = project.transport(host).call(Request("stop", asked))
            reported = _reported(project, host, address, mine, result)
        except OrchError as error:
            errors.append(error)
            continue
        runs += reported
        ended = result.get("had_ended")
        had_ended |= {(run.job, run.run_id) for run in reported if [run.job, run.run_id] in (ended or [])}
    return Changed(tuple(runs), tuple(errors), frozenset(had_ended))


def restart(project: Project, targets: Sequence[Target], by: str) -> Changed:
    """Let ended runs go on from their last checkpoint; on one host, all of them or none.

    What a host is not to be given the secrets for is the error of that host.
    """
    secrets = {name: project.vault.values(job) for name, job in _jobs_of(project, targets).items()}
    runs: list[RunReport] = []
    errors: list[OrchError] = []
    for (host, address), named in _by_address(targets).items():
        try:
            mine = [exact(project, target) for target in named]
            for target in mine:
                _require_right_to_secrets(project, target)
            pairs = [[target.job, target.run_id] for target in mine]
            theirs = {name: secrets[name] for name in _jobs_of(project, mine)}
            asked = {"runs": pairs, "by": by, "confirm_s": launching.CONFIRM_S, "secrets": theirs}
            result = project.transport(host).call(Request("restart", {**address.asked(), **asked}))
            runs += _reported(project, host, address, mine, result)
        except OrchError as error:
            errors.append(error)
    return Changed(tuple(runs), tuple(errors))


def _jobs_of(project: Project, targets: Sequence[Target]) -> dict[str, Job]:
    jobs = project.spec.jobs
    return {target.job: jobs[target.job] for target in targets if target.job in jobs}


def _by_address(targets: Sequence[Target]) -> dict[tuple[str, Address], list[Target]]:
    groups: dict[tuple[str, Address], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.host, target.address), []).append(target)
    return groups


def _reported(
    project: Project, host: str, address: Address, targets: Sequence[Target], result: Mapping[str, Any]
) -> tuple[RunReport, ...]:
    """The box's reports of the runs that it was asked about, in their order. Raise AgentUnusable for any others."""
    answer = believe(project, read_reports(host, result), address, named=True)
    meant = [(target.job, target.run_id or run.run_id) for target, run in zip(targets, answer.runs, strict=False)]
    if len(answer.runs) != len(targets) or [(run.job, run.run_id) for run in answer.runs] != meant:
        raise AgentUnusable(
            f"asking {host}: it answers about other runs than it was asked for", "`orch status` asks again"
        )
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
