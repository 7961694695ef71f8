"""Stop runs, and let ended ones go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import launch as launching
from orchestrator.errors import AgentUnusable, Refused
from orchestrator.known_runs import Address
from orchestrator.overview import believe
from orchestrator.project import Project
from orchestrator.reports import RunReport, read_reports
from orchestrator.targets import Target, exact
from remote.protocol import Request


@dataclass(frozen=True)
class Stopping:
    """Runs that were asked to stop, and those (job, run id) of them that had ended before."""

    runs: tuple[RunReport, ...]
    had_ended: frozenset[tuple[str, str]]


def stop(project: Project, targets: Sequence[Target], by: str) -> Stopping:
    """Ask the runs to stop; they do so after a checkpoint, which `watching.wait` sees."""
    runs: list[RunReport] = []
    had_ended: set[tuple[str, str]] = set()
    for (host, address), mine in _by_address(targets).items():
        asked = {**address.asked(), "runs": [[target.job, target.run_id] for target in mine], "by": by}
        result = project.transport(host).call(Request("stop", asked))
        runs += _reported(project, host, address, mine, result)
        ended = result.get("had_ended")
        had_ended |= {tuple(pair) for pair in ended if isinstance(pair, list)} if isinstance(ended, list) else set()
    return Stopping(tuple(runs), frozenset(had_ended))


def restart(project: Project, targets: Sequence[Target], by: str) -> tuple[RunReport, ...]:
    """Let ended runs go on from their last checkpoint; on one host, all of them or none.

    Raises:
        Refused: The box refuses, or a run would be given secrets that its host may not have.
    """
    targets = [exact(project, target) for target in targets]
    for target in targets:
        _require_right_to_secrets(project, target)
    runs: list[RunReport] = []
    for (host, address), mine in _by_address(targets).items():
        jobs = [project.spec.jobs[target.job] for target in mine if target.job in project.spec.jobs]
        asked = {"runs": [[target.job, target.run_id] for target in mine], "by": by, "confirm_s": launching.CONFIRM_S}
        secrets = {job.name: project.vault.values(job) for job in jobs}
        request = Request("restart", {**address.asked(), **asked, "secrets": secrets})
        runs += _reported(project, host, address, mine, project.transport(host).call(request))
    return tuple(runs)


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
