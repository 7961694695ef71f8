"""The state of all runs, for `status`, `runs` and `watch`: ask all hosts at once, and combine their answers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.box.reports import HostStatus
from orchestrator.box.run_ids import is_ahead, launched_at
from orchestrator.commands.ask import ask
from orchestrator.commands.project import Project
from orchestrator.errors import SpecError
from orchestrator.spec.models import LOCAL
from orchestrator.spec.wording import suggestion
from orchestrator.system.concurrency import as_completed
from remote.contract.paths import RUN_ID
from remote.contract.protocol import Failed
from remote.contract.run_report import RunReport

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun

Key = tuple[str, str]  # job, run id
CLOCKS_S = 24 * 3600.0  # the clocks of two laptops differ by less
TICK_S = 1.0  # how often to yield what is known while a host has not answered
LAUNCH_INTERRUPTED = "its launch was interrupted; it may or may not have started"


@dataclass(frozen=True)
class Overview:
    """The state of runs, as far as it is known.

    Attributes:
        runs: The runs, sorted by job and run id.
        hosts: The answers of the hosts.
        notes: Warnings for the user that are not about one host.
        waiting_for: The hosts that have not answered yet.
    """

    runs: tuple[RunReport, ...]
    hosts: tuple[HostStatus, ...]
    notes: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()


def ask_all(
    project: Project, names: Sequence[str], on: str | None, which: str = "current", before: Overview | None = None
) -> Iterator[Overview]:
    """Ask all hosts. Yield an overview every TICK_S seconds until all have answered; the last one is complete.

    Args:
        project: The project that has the runs.
        names: Jobs or run ids; empty for all.
        on: Ask only this host.
        which: "current" for the newest run of each job and all unfinished runs, "all" for every run.
        before: The previous overview, which is used for hosts that have not answered yet.

    Raises:
        SpecError: There is no such job, run or host.
    """
    hosts = [project.spec.host(on).name] if on else project.hosts_to_ask()
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    known = list(project.known.all())
    view = _View(project, names, on, which, {(run.job, run.run_id): run for run in before.runs} if before else {})
    answers: list[HostStatus] = []
    for answer in as_completed(hosts, lambda host: ask(project, host, which, known, named=on is not None), TICK_S):
        if answer is not None:
            answers.append(answer)
        else:
            yield view.of(answers, [host for host in hosts if host not in {answer.host for answer in answers}])
    if names:
        _require_known(project, names, answers)
    yield view.of(answers, ())


@dataclass(frozen=True)
class _View:
    """What the user wants to see, and the runs of the previous overview."""

    project: Project
    names: Sequence[str]
    on: str | None
    which: str
    before: Mapping[Key, RunReport]

    def of(self, answers: Sequence[HostStatus], waiting: Sequence[str]) -> Overview:
        """Return the overview after these answers, while the hosts in `waiting` have not answered yet."""
        known = list(self.project.known.all())
        runs = sorted(self._runs(known, answers, waiting).values(), key=lambda run: (run.job, run.run_id))
        if self.names:
            runs = [run for run in runs if run.job in self.names or run.run_id in self.names]
        if self.which == "current":
            newest = newest_of_each_job(self.project, runs)
            runs = [run for run in runs if _is_current(run, newest) or run.run_id in self.names]
        notes = [*_without_host(self.project, known), *_half_copied(self.project, runs)]
        if self.names and len(runs) == 1:
            notes += why_files_are_missing(self.project, runs)
        if self.on is None:
            notes += not_asked(self.project, {*(answer.host for answer in answers), *waiting})
        return Overview(tuple(runs), tuple(answers), tuple(notes), tuple(waiting))

    def _runs(
        self, known: Sequence[KnownRun], answers: Sequence[HostStatus], waiting: Sequence[str]
    ) -> dict[Key, RunReport]:
        """Return the runs in the answers. For the other hosts, return the previous overview or the last reports."""
        runs = {(run.job, run.run_id): run for answer in answers for run in answer.runs}
        answered = {answer.host for answer in answers if not answer.error}
        shown = [run for run in known if self.on is None or self.project.host_of(run) == self.on]
        if self.which == "current":
            shown = self._without_older(shown)
        for run in shown:
            host = self.project.host_of(run)
            if run.key in runs:
                continue
            if host in waiting:
                if run.key in self.before:
                    runs[run.key] = self.before[run.key]
            elif run.confirmed or host not in answered:
                report = self.project.mirror.report(run)
                runs[run.key] = report if run.confirmed else replace(report, note=LAUNCH_INTERRUPTED)
        return runs

    def _without_older(self, known: Sequence[KnownRun]) -> list[KnownRun]:
        """Return the runs without ended ones that are too old to be shown, unless they were named by id.

        Reading the files of their copies would take long if there are many. Ids have the time of some laptop's clock,
        so a run counts as older than another one only if it was launched CLOCKS_S earlier.
        """
        now = time.time()
        newest: dict[tuple[str, str, bool], float] = {}
        old: list[tuple[KnownRun, tuple[str, str, bool], float]] = []
        for run in known:
            launched = launched_at(run.run_id)
            if launched is not None and run.has_ended and not is_ahead(run.run_id, now):
                group = run.job, run.host, self.project.is_foreign(run)
                newest[group] = max(launched, newest.get(group, launched))
                old.append((run, group, launched))
        left_out = {run.key for run, group, launched in old if launched <= newest[group] - CLOCKS_S}
        return [run for run in known if run.key not in left_out or run.run_id in self.names]


def not_asked(project: Project, asked: Collection[str]) -> list[str]:
    """Return a note that names the hosts that were not asked; another laptop may have launched runs there."""
    hosts = [host for host in project.spec.hosts if host not in asked and (host != LOCAL or project.uses_local())]
    if not hosts:
        return []
    why = f"no unfinished run was launched from here; to ask anyway: orch status --on {hosts[0]}"
    return [f"not asked: {', '.join(hosts)} ({why})"]


def why_files_are_missing(project: Project, runs: Iterable[RunReport]) -> list[str]:
    """Return a note for each failed run that misses a file which exists here but was not sent."""
    from orchestrator.code import not_sent  # needed only here

    failed = [(run, run.state.detail) for run in runs if isinstance(run.state, Failed)]
    notes = [(run.job, not_sent.explain(project.spec, detail)) for run, detail in failed]
    return [f"{job}: {note}" for job, note in notes if note]


def _half_copied(project: Project, runs: Iterable[RunReport]) -> Iterator[str]:
    """Yield a note for each run whose copy was interrupted, so that nobody takes the copy for the complete run."""
    for run in runs:
        waiting = project.mirror.waiting(run.job, run.run_id)
        if waiting:
            yield f"{run.job} {run.run_id}: {waiting}"


def _is_current(run: RunReport, newest: dict[str, RunReport]) -> bool:
    return newest[run.job] is run or not (run.has_ended or run.is_missing)


def newest_of_each_job(project: Project, runs: Iterable[RunReport]) -> dict[str, RunReport]:
    """Return the run that each job's name means: its unfinished run, or else its newest run.

    Runs of one host are ordered by the clock of the host. Run ids, which have the time of the laptop that launched the
    run, order only runs of different hosts: runs dated in the future come after the others. Foreign runs
    (`Project.is_foreign`) count only if the job has no other runs.
    """
    foreign = {run.key for run in project.known.all() if project.is_foreign(run)}
    newest_on: dict[tuple[str, str | None, bool], RunReport] = {}
    for run in sorted(runs, key=_age_rank):
        newest_on[run.job, run.host, (run.job, run.run_id) in foreign] = run
    newest: dict[str, RunReport] = {}
    for run in sorted(newest_on.values(), key=lambda run: _rank(run, foreign)):
        newest[run.job] = run
    return newest


def _is_live(run: RunReport) -> bool:
    return not (run.has_ended or run.is_lost or run.is_missing)


def _age_rank(run: RunReport) -> tuple[bool, float, str]:
    """Return the rank of a run among those of its host."""
    launched = run.created if run.created is not None else launched_at(run.run_id)
    return _is_live(run), launched or 0.0, run.run_id


def _rank(run: RunReport, foreign: Collection[Key]) -> tuple[bool, bool, bool, str]:
    is_dated_well = not is_ahead(run.run_id, time.time())
    return (run.job, run.run_id) not in foreign, _is_live(run), is_dated_well, run.run_id


def _without_host(project: Project, known: Iterable[KnownRun]) -> Iterator[str]:
    """Yield a note for each host that has known runs, but is no longer in jobs.toml."""
    counts: dict[str, int] = {}
    for run in known:
        if project.host_of(run) is None and not run.is_complete:
            counts[run.host] = counts.get(run.host, 0) + 1
    for host, count in counts.items():
        runs = "1 known run was" if count == 1 else f"{count} known runs were"
        yield (
            f"{runs} launched on {host!r}, which is no longer in jobs.toml: shown as last seen; "
            "to follow them, add the host again"
        )


def _require_known(project: Project, names: Sequence[str], answers: Sequence[HostStatus]) -> None:
    """Raise SpecError if a name is neither a job nor a run that is known here or was reported."""
    found = {text for answer in answers for run in answer.runs for text in (run.job, run.run_id)}
    found |= {text for run in project.known.all() for text in run.key} | set(project.spec.jobs)
    for name in names:
        if name not in found:
            raise unknown_name(project, name)


def unknown_name(project: Project, name: str) -> SpecError:
    """Return the error for a name that is neither a job nor a run."""
    if RUN_ID.fullmatch(name):
        return SpecError(f"no run {name!r}", "to list the runs: orch runs")
    return SpecError(f"no job or run {name!r}", suggestion(name, project.spec.jobs, "jobs"))
