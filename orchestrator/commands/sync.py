"""`orch sync`: download runs from all hosts at once. A run that fails does not affect the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.box.client import Box
from orchestrator.box.known_runs import KnownRun
from orchestrator.box.mirror import DEFAULT_LIMIT, Mirrored, NotMirrored
from orchestrator.box.run_copy import Wanted
from orchestrator.commands.ask import ask
from orchestrator.commands.overview import newest_of_each_job, not_asked
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.errors import OrchError
from orchestrator.system.concurrency import merged
from remote.contract.requests import Where
from remote.contract.run_report import RunReport


@dataclass(frozen=True)
class Note:
    """A message for the user that is not about a copied run."""

    text: str


Result = Mirrored | NotMirrored | Note


def sync(project: Project, targets: Sequence[Target], on: str | None, limit: int = DEFAULT_LIMIT) -> Iterator[Result]:
    """Download the given runs, or every run whose copy is not complete. Yield each run when it is copied or has failed.

    Args:
        project: The project that has the runs.
        targets: The runs; empty for all.
        on: Consider only this host; ignored if there are `targets`.
        limit: The size of the largest run to copy, in bytes.

    Raises:
        SpecError: jobs.toml has no host `on`.
    """
    named: dict[str, list[Target]] = {}
    for target in targets:
        named.setdefault(target.host, []).append(target)
    hosts = list(named) or ([project.spec.host(on).name] if on else project.hosts_to_ask())
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    if not targets and on is None:
        yield from map(Note, not_asked(project, hosts))
    streams = [partial(_sync_host, project, host, named.get(host), on is not None, limit) for host in hosts]
    yield from (result for result in merged(streams) if result is not None)


def _sync_host(
    project: Project, host: str, targets: Sequence[Target] | None, named: bool, limit: int
) -> Iterator[Result]:
    copied_jobs: set[str] = set()
    box = project.retrying_box(host)  # one for all runs: it retries only after it has reached the host once
    answer = ask(project, host, "all", list(project.known.all()), named, box)
    wanted: dict[Where, list[tuple[KnownRun, Wanted]]] = {}  # by where on the host the runs are
    for run in answer.runs:
        if run.is_missing or (targets is not None and not any(_matches(target, run) for target in targets)):
            continue
        known = project.known.get(run.job, run.run_id)
        if known is None:
            doing = f"copying {run.job} {run.run_id} from {host}"
            error = OrchError(f"{doing}: cannot write the record of the run on this machine", "make results/ writable")
            yield NotMirrored(host, run, error)
        elif targets is not None or not known.is_complete or not project.mirror.has_copy(run.job, run.run_id):
            job = project.spec.jobs.get(run.job)
            keep = job is None or job.keep  # if jobs.toml does not say, nothing is deleted
            # A run that was named is compared even if its copy is complete.
            where = project.address_of_run(known).where
            wanted.setdefault(where, []).append((known, Wanted(run, keep, known.is_complete)))
            copied_jobs.add(run.job)
    for where, runs in wanted.items():
        yield from _copy(project, box.at(where), runs, limit)
    yield from (Note(note) for note in (_point_latest(project, job) for job in sorted(copied_jobs)) if note)
    yield from map(Note, answer.notes)
    if targets and answer.error is None:
        reported = {run.job for run in answer.runs}
        yield from (Note(f"{target.job} has no run on {host}") for target in targets if target.job not in reported)
    yield from (NotMirrored(host, None, error) for error in answer.errors)


def _copy(project: Project, box: Box, runs: Sequence[tuple[KnownRun, Wanted]], limit: int) -> Iterator[Result]:
    known = {run.key: run for run, _ in runs}
    for copied in project.mirror.copy(box, [wanted for _, wanted in runs], limit):
        if isinstance(copied, NotMirrored):
            yield copied
            if copied.report and (waiting := project.mirror.waiting(copied.report.job, copied.report.run_id)):
                yield Note(f"{copied.report.job} {copied.report.run_id}: {waiting}")
            continue
        before = known[copied.report.job, copied.report.run_id]
        try:
            if project.known.get(*before.key) == before:  # otherwise it was, for example, restarted during the copy
                project.known.update(before, state=copied.report.state or before.state, is_complete=copied.complete)
            yield copied
        except OrchError as error:
            yield NotMirrored(box.host, copied.report, error)


def _point_latest(project: Project, job: str) -> str:
    """Point the link `latest` to the run that the job's name means, among the runs with a copy."""
    runs = [run for run in project.known.all() if run.job == job and project.mirror.has_copy(job, run.run_id)]
    newest = newest_of_each_job(project, map(project.mirror.report, runs)).get(job)
    return project.mirror.point_latest(job, newest.run_id) if newest else ""


def _matches(target: Target, report: RunReport) -> bool:
    return target.job == report.job and target.run_id in (None, report.run_id)
