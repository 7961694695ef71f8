"""`orch sync`: download runs from all hosts at once. A run that fails does not affect the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.box.client import Box
from orchestrator.box.mirror import DEFAULT_LIMIT, Mirrored, NotMirrored
from orchestrator.commands.ask import ask
from orchestrator.commands.overview import newest_of_each_job, not_asked
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.errors import OrchError
from orchestrator.system.concurrency import merged
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
    for run in answer.runs:
        if run.is_missing or (targets is not None and not any(_matches(target, run) for target in targets)):
            continue
        known = project.known.get(run.job, run.run_id)
        if known is None:
            doing = f"copying {run.job} {run.run_id} from {host}"
            error = OrchError(f"{doing}: cannot write the record of the run on this machine", "make results/ writable")
            yield NotMirrored(host, run, error)
        elif targets is not None or not known.is_complete or not project.mirror.has_copy(run.job, run.run_id):
            result = _copy(project, box, run, limit)  # a run that was named is compared even if its copy is complete
            yield result
            if isinstance(result, NotMirrored) and (waiting := project.mirror.waiting(run.job, run.run_id)):
                yield Note(f"{run.job} {run.run_id}: {waiting}")
            copied_jobs.add(run.job)
    yield from (Note(note) for note in (_point_latest(project, job) for job in sorted(copied_jobs)) if note)
    yield from map(Note, answer.notes)
    if targets and answer.error is None:
        reported = {run.job for run in answer.runs}
        yield from (Note(f"{target.job} has no run on {host}") for target in targets if target.job not in reported)
    yield from (NotMirrored(host, None, error) for error in answer.errors)


def _copy(project: Project, box: Box, run: RunReport, limit: int) -> Result:
    host = box.host
    known = project.known.get(run.job, run.run_id)
    assert known is not None  # the caller has checked
    try:
        job = project.spec.jobs.get(run.job)
        keep = job is None or job.keep  # if jobs.toml does not say, nothing is deleted
        copied = project.mirror.copy(box.at(project.address_of_run(known).where), run, limit, keep)
        now = project.known.get(run.job, run.run_id)
        if now == known:  # otherwise it was, for example, restarted during the copy
            project.known.update(known, state=copied.report.state or known.state, is_complete=copied.complete)
    except OrchError as error:
        return NotMirrored(host, run, error)
    except OSError as error:
        doing = f"copying {run.job} {run.run_id} from {host}"
        return NotMirrored(
            host, run, OrchError(f"{doing}: {error.filename or project.mirror.directory}: {error.strerror}")
        )
    return copied


def _point_latest(project: Project, job: str) -> str:
    """Point the link `latest` to the run that the job's name means, among the runs with a copy."""
    runs = [run for run in project.known.all() if run.job == job and project.mirror.has_copy(job, run.run_id)]
    newest = newest_of_each_job(project, map(project.mirror.report, runs)).get(job)
    return project.mirror.point_latest(job, newest.run_id) if newest else ""


def _matches(target: Target, report: RunReport) -> bool:
    return target.job == report.job and target.run_id in (None, report.run_id)
