"""Download runs: every host at once, every run on its own, so that one that fails stops no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.box.client import Box
from orchestrator.box.mirror import DEFAULT_LIMIT, Mirrored, NotMirrored
from orchestrator.commands.overview import ask, newest_of_each_job, not_asked
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.errors import OrchError
from orchestrator.system.concurrency import merged
from remote.contract.run_report import RunReport


@dataclass(frozen=True)
class Note:
    """What a person should know of a host beside its runs."""

    text: str


Result = Mirrored | NotMirrored | Note


def sync(project: Project, targets: Sequence[Target], on: str | None, limit: int = DEFAULT_LIMIT) -> Iterator[Result]:
    """Copy the named runs, or every run that is not complete here; yield each as it is done or has failed.

    Args:
        project: The project whose runs are meant.
        targets: The runs; empty for all.
        on: This host alone, where there are no `targets`.
        limit: The most bytes that one run may have.
    """
    named: dict[str, list[Target]] = {}
    for target in targets:
        named.setdefault(target.host, []).append(target)
    hosts = list(named) or ([project.spec.host(on).name] if on else project.hosts_to_ask())
    for host in hosts:
        project.transport(host)  # made here: the threads below share them
    if not targets and on is None:
        yield from map(Note, not_asked(project, hosts))
    streams = [partial(_host, project, host, named.get(host), on is not None, limit) for host in hosts]
    yield from (result for result in merged(streams) if result is not None)


def _host(project: Project, host: str, targets: Sequence[Target] | None, named: bool, limit: int) -> Iterator[Result]:
    jobs: set[str] = set()
    box = project.patient_box(host)  # one for all: it waits for a host that it has reached before
    answer = ask(project, host, "all", list(project.known.all()), named, box)
    for run in answer.runs:
        if run.is_missing or (targets is not None and not any(_means(target, run) for target in targets)):
            continue
        known = project.known.get(run.job, run.run_id)
        if known is None:
            doing, hint = f"copying {run.job} {run.run_id} from {host}", "make results/ writable"
            yield NotMirrored(host, run, OrchError(f"{doing}: cannot write its record here", hint))
        elif targets is not None or not known.is_complete or not project.mirror.has_copy(run.job, run.run_id):
            yield _copy(project, box, run, limit)  # one that was named is compared, whatever our record says
            jobs.add(run.job)
    yield from (Note(note) for note in (_point_latest(project, job) for job in sorted(jobs)) if note)
    yield from map(Note, answer.notes)
    yield from (NotMirrored(host, None, error) for error in answer.errors)


def _copy(project: Project, box: Box, run: RunReport, limit: int) -> Result:
    host = box.host
    known = project.known.get(run.job, run.run_id)
    assert known is not None  # `ask` has recorded it
    try:
        copied = project.mirror.copy(box.at(project.address_of_run(known).where), run, limit)
        now = project.known.get(run.job, run.run_id)
        if now == known:  # else it was restarted, say, while it was copied
            project.known.update(known, state=copied.report.state or known.state, is_complete=copied.complete)
    except OrchError as error:
        return NotMirrored(host, run, error)
    except OSError as error:
        where = f"copying {run.job} {run.run_id} from {host}"
        return NotMirrored(
            host, run, OrchError(f"{where}: {error.filename or project.mirror.directory}: {error.strerror}")
        )
    return copied


def _point_latest(project: Project, job: str) -> str:
    """`latest` leads to the run that the job's name means, among those that have a copy."""
    runs = [run for run in project.known.all() if run.job == job and project.mirror.has_copy(job, run.run_id)]
    newest = newest_of_each_job(project, map(project.mirror.report, runs)).get(job)
    return project.mirror.point_latest(job, newest.run_id) if newest else ""


def _means(target: Target, report: RunReport) -> bool:
    return target.job == report.job and target.run_id in (None, report.run_id)
