"""Runs as they were last seen: from this machine's records and copies, and from their hosts as far as these answer.

A run whose copy is complete is shown without asking anybody. For the others, the host is asked for the newest report
and for a few small files, which are added to the copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.box.meter import Meter
from orchestrator.box.mirror import Mirrored
from orchestrator.box.run_copy import Wanted
from orchestrator.commands.ask import ask
from orchestrator.commands.run_names import named_runs, one_run
from orchestrator.errors import OrchError, SpecError
from orchestrator.system.concurrency import as_completed
from remote.contract.paths import RUN_ID

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject
    from orchestrator.commands.sync import Chosen
    from remote.contract.paths import RunPaths
    from remote.contract.requests import Where
    from remote.contract.run_report import RunReport

Key = tuple[str, str]  # job, run id
RECORDS = (
    "run.json",
    "state.json",
    "events.jsonl",
    "environment.json",
    "outputs.json",
    "latest_metrics.json",
    "restart.json",
)
HISTORY = (*RECORDS, "metrics.jsonl")
MAX_BYTES = 1 << 28  # of the files that are fetched to look at one run


@dataclass(frozen=True)
class SeenRun:
    """A run as it was last seen.

    Attributes:
        known: This machine's record of it.
        report: The newest report.
        copy: The paths of its copy, which may have all of its files, some or none.
        at: When its host reported it, in seconds since the epoch by this machine's clock. None if that is not known.
        is_new: Whether the host was asked just now.
        files: All its files on the host and their sizes in bytes, if the host was asked; else None.
        error: Why the host could not be asked, or why files of the run could not be fetched.
    """

    known: KnownRun
    report: RunReport
    copy: RunPaths
    at: float | None
    is_new: bool = False
    files: Mapping[str, int] | None = None
    error: OrchError | None = None


def find_run(project: OpenedProject, name: str, newest: bool = True) -> KnownRun:
    """Return the run that a name means, as `run_names.one_run`. Ask the hosts if no known run has the name.

    Args:
        project: The project that has the run.
        name: What the user wrote.
        newest: Let a job with several unfinished runs mean the newest of them.

    Raises:
        SpecError: The name means no run, or several.
        HostError: It means no run that is known here, and a host that may have it cannot be asked.
    """
    found = one_run(project, name, newest=newest)
    if found is None:
        known_runs(project, [name])
        found = one_run(project, name, newest=newest)
        assert found is not None  # else `known_runs` has raised
    return found


def known_runs(project: OpenedProject, names: Sequence[str]) -> list[KnownRun]:
    """Return the runs that names mean. Ask the hosts that may have new runs if a name means no known run.

    Raises:
        SpecError: A name means no run.
        HostError: It means no run that is known here, and a host that may have it cannot be asked.
    """
    try:
        return named_runs(project, names)
    except SpecError:
        errors = _ask_for_new(project)
        try:
            return named_runs(project, names)
        except SpecError:
            for error in errors:
                if any(name in project.spec.jobs or RUN_ID.fullmatch(name) for name in names):
                    raise error from None
            raise


def _ask_for_new(project: OpenedProject) -> list[OrchError]:
    """Record the runs of all hosts that may have new ones. Return the errors of those that could not be asked."""
    hosts, known = project.hosts_to_ask(), list(project.known.all())
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    answers = as_completed(hosts, lambda host: ask(project, host, "all", known))
    return [answer.error for answer in answers if answer is not None and answer.error]


def look(project: OpenedProject, runs: Sequence[KnownRun], names: Collection[str] = RECORDS) -> list[SeenRun]:
    """Return runs as they were last seen, in the same order.

    Args:
        project: The project that has the runs.
        runs: The runs.
        names: The files to fetch of those runs whose copy is not complete.
    """
    return look_for(project, runs, lambda name: name in names, MAX_BYTES)


def look_for(project: OpenedProject, runs: Sequence[KnownRun], chosen: Chosen, limit: int) -> list[SeenRun]:
    """Do the same as `look`, for the files that `chosen` tells by their paths.

    A run whose chosen files have more than `limit` bytes gets none of them, and an error.
    """
    by_host: dict[str, list[KnownRun]] = {}
    errors: dict[Key, OrchError] = {}
    for run in runs:
        if not is_here(project, run):
            try:
                by_host.setdefault(project.require_host(run), []).append(run)
            except SpecError as error:
                errors[run.key] = error
    hosts = list(by_host)
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    answers: dict[Key, _Answer] = {}
    meter = Meter("fetching", project.show_transfer)
    for found in as_completed(hosts, lambda host: _fetch(project, host, by_host[host], chosen, limit, meter)):
        answers |= found or {}
    return [_seen(project, run, answers.get(run.key), errors.get(run.key)) for run in runs]


def is_here(project: OpenedProject, run: KnownRun) -> bool:
    """Return whether the copy of the run is complete."""
    return run.is_complete and project.mirror.has_copy(*run.key)


@dataclass
class _Answer:
    report: RunReport | None = None
    files: Mapping[str, int] | None = None
    error: OrchError | None = None


def _fetch(
    project: OpenedProject, host: str, runs: Sequence[KnownRun], chosen: Chosen, limit: int, meter: Meter
) -> dict[Key, _Answer]:
    """Ask a host for runs, and fetch the chosen files."""
    answer = ask(project, host, "none", runs, named=True)
    found = {run.key: _Answer(error=answer.error) for run in runs}
    places: dict[Where, list[Wanted]] = {}  # by where on the host the runs are
    for report in answer.runs:
        key = report.job, report.run_id
        known = project.known.get(*key)
        if key in found and known is not None:
            found[key].report = report
            if not report.is_missing:
                where = project.address_of_run(known).where
                places.setdefault(where, []).append(Wanted(report, keep=True, chosen=chosen))
    for where, wanted in places.items():
        for copied in project.mirror.copy(project.box(host).at(where), wanted, limit, meter):
            if copied.report is None:
                continue
            one = found[copied.report.job, copied.report.run_id]
            one.files = copied.there
            if not isinstance(copied, Mirrored):
                one.error = copied.error
    return found


def _seen(project: OpenedProject, run: KnownRun, answer: _Answer | None, error: OrchError | None) -> SeenRun:
    known = project.known.get(*run.key) or run
    is_new = answer is not None and answer.report is not None
    report = answer.report if answer is not None and answer.report is not None else project.mirror.report(known)
    return SeenRun(
        known,
        report,
        project.mirror.run(*run.key),
        known.seen,
        is_new,
        answer.files if answer else None,
        answer.error if answer else error,
    )
