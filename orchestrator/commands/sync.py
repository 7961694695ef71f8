"""`orch sync`: download runs from all hosts at once. A run that fails does not affect the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from orchestrator.box.client import Box
from orchestrator.box.known_runs import HERE, KnownRun
from orchestrator.box.meter import Meter
from orchestrator.box.mirror import DEFAULT_LIMIT, Mirrored, NotMirrored
from orchestrator.box.run_copy import Wanted
from orchestrator.commands.ask import ask
from orchestrator.commands.newest_run import newest_of_each_job
from orchestrator.commands.overview import not_asked
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.selection import Target
from orchestrator.errors import OrchError, SpecError
from orchestrator.spec.tables import Invalid
from orchestrator.spec.values import check_glob
from orchestrator.system.concurrency import merged
from remote.contract.paths import OUTPUT_FOLDERS
from remote.contract.requests import Where


@dataclass(frozen=True)
class Note:
    """A message for the user that is not about a copied run."""

    text: str


Result = Mirrored | NotMirrored | Note
Chosen = Callable[[str], bool]  # tells by the path of a file, relative to its run, whether to copy it


def file_choice(only: Sequence[str], exclude: Sequence[str]) -> Chosen | None:
    """Return which files of a run `--only` and `--exclude` choose; None for all.

    Patterns are those of .gitignore, for paths in the run directory or in `work/`.

    Args:
        only: Patterns; empty for all files.
        exclude: Patterns of files that are not chosen, even if `only` names them.

    Raises:
        SpecError: A pattern is malformed.
    """
    if not only and not exclude:
        return None
    from orchestrator.code.globs import matches  # only for these options

    for option, patterns in (("--only", only), ("--exclude", exclude)):
        for pattern in patterns:
            try:
                check_glob(pattern)
            except Invalid as error:
                raise SpecError(f"{option} {pattern!r}: {error}", "write a pattern as in .gitignore") from None

    def is_chosen(name: str) -> bool:
        below_work = name.removeprefix(f"{OUTPUT_FOLDERS[0]}/")

        def named_by(patterns: Sequence[str]) -> bool:
            return matches(name, patterns) or (below_work != name and matches(below_work, patterns))

        return (not only or named_by(only)) and not named_by(exclude)

    return is_chosen


def sync(
    project: OpenedProject,
    targets: Sequence[Target],
    on: str | None,
    limit: int = DEFAULT_LIMIT,
    chosen: Chosen | None = None,
) -> Iterator[Result]:
    """Download the given runs, or every run whose copy is not complete. Yield each run when it is copied or has failed.

    Args:
        project: The project that has the runs.
        targets: The runs; empty for all.
        on: Consider only this host; ignored if there are `targets`.
        limit: The size of the largest run to copy, in bytes.
        chosen: Which files to copy; None for all. A copy of some files is not complete: the next one of all files is.

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
    meter = Meter("downloading", project.show_transfer)
    streams = [
        partial(_sync_host, project, host, named.get(host), on is not None, limit, chosen, meter) for host in hosts
    ]
    yield from (result for result in merged(streams) if result is not None)


def _sync_host(
    project: OpenedProject,
    host: str,
    targets: Sequence[Target] | None,
    named: bool,
    limit: int,
    chosen: Chosen | None,
    meter: Meter,
) -> Iterator[Result]:
    copied_jobs: set[str] = set()
    names = None if targets is None else {target.name for target in targets}
    box = project.retrying_box(host)  # one for all runs: it retries only after it has reached the host once
    answer = ask(project, host, "all", list(project.known.all()), named, box)
    wanted: dict[Where, list[tuple[KnownRun, Wanted]]] = {}  # by where on the host the runs are
    for run in answer.runs:
        if run.is_missing or (names is not None and names.isdisjoint({(run.job, run.run_id), (run.job, None)})):
            continue
        known = project.known.get(run.job, run.run_id)
        if known is None:
            doing = f"copying {run.job} {run.run_id} from {host}"
            error = OrchError(f"{doing}: cannot write the record of the run on this machine", "make results/ writable")
            yield NotMirrored(host, run, error)
        elif targets is None and known.removed == HERE:
            continue  # it was removed here on purpose; `orch sync RUN` copies it again
        elif targets is not None or not known.is_complete or not project.mirror.has_copy(run.job, run.run_id):
            job = project.spec.jobs.get(run.job)
            keep = job is None or job.keep  # if jobs.toml does not say, nothing is deleted
            # A run that was named is compared even if its copy is complete.
            where = project.address_of_run(known).where
            if known.is_complete and not project.mirror.has_copy(*known.key):  # it was deleted here
                known = project.known.update(known, is_complete=False)
            wanted.setdefault(where, []).append((known, Wanted(run, keep, known.is_complete, chosen)))
            copied_jobs.add(run.job)
    for where, runs in wanted.items():
        yield from _copy(project, box.at(where), runs, limit, meter)
    yield from (Note(note) for note in (_point_latest(project, job) for job in sorted(copied_jobs)) if note)
    yield from map(Note, answer.notes)
    if targets and answer.error is None:
        reported = {run.job for run in answer.runs}
        yield from (Note(f"{target.job} has no run on {host}") for target in targets if target.job not in reported)
    yield from (NotMirrored(host, None, error) for error in answer.errors)


def _copy(
    project: OpenedProject, box: Box, runs: Sequence[tuple[KnownRun, Wanted]], limit: int, meter: Meter
) -> Iterator[Result]:
    known = {run.key: run for run, _ in runs}
    for copied in project.mirror.copy(box, [wanted for _, wanted in runs], limit, meter):
        if isinstance(copied, NotMirrored):
            yield copied
            if copied.report and (waiting := project.mirror.waiting(copied.report.job, copied.report.run_id)):
                yield Note(f"{copied.report.job} {copied.report.run_id}: {waiting}")
            continue
        before = known[copied.report.job, copied.report.run_id]
        is_complete = before.is_complete if copied.is_part else copied.complete
        try:
            found = project.known.get(*before.key)
            # If more has changed, it was, for example, restarted during the copy.
            if found is not None and replace(found, seen=before.seen, report=before.report) == before:
                now = before.with_report(copied.report, time.time())
                changes = {"state": now.state, "report": now.report, "seen": now.seen}
                project.known.update(before, **changes, is_complete=is_complete, removed="")
            yield replace(copied, complete=is_complete)
            if copied.is_part and not copied.files:
                yield Note(f"{copied.report.job} {copied.report.run_id}: no file matches --only and --exclude")
        except OrchError as error:
            yield NotMirrored(box.host, copied.report, error)


def _point_latest(project: OpenedProject, job: str) -> str:
    """Point the link `latest` to the run that the job's name means, among the runs with a copy."""
    runs = [run for run in project.known.all() if run.job == job and project.mirror.has_copy(job, run.run_id)]
    newest = newest_of_each_job(project, map(project.mirror.report, runs)).get(job)
    return project.mirror.point_latest(job, newest.run_id) if newest else ""
