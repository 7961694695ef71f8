"""The state of all runs, for `status`, `runs` and `watch`: ask all hosts at once, and combine their answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from orchestrator.box.known_runs import KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.box.run_ids import is_ahead, launched_at
from orchestrator.commands.ask import ask
from orchestrator.commands.newest_run import Key, newest_of_each_job
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.run_names import meant, no_such_run
from orchestrator.errors import SpecError
from orchestrator.spec.models import LOCAL
from orchestrator.system.concurrency import merged
from remote.contract.protocol import Failed
from remote.contract.run_report import RunReport

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
        known: The job and run id of every known run, those that are not shown too.
        jobs: The jobs of jobs.toml.
    """

    runs: tuple[RunReport, ...]
    hosts: tuple[HostStatus, ...]
    notes: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()
    known: tuple[Key, ...] = ()
    jobs: tuple[str, ...] = ()


def ask_all(
    project: OpenedProject,
    names: Sequence[str],
    on: str | None,
    which: str = "current",
    before: Overview | None = None,
    is_thorough: bool = False,
) -> Iterator[Overview]:
    """Ask all hosts. Yield an overview every TICK_S seconds until all have answered; the last one is complete.

    Args:
        project: The project that has the runs.
        names: Jobs, runs, groups and patterns, as `run_names` reads them; empty for all.
        on: Ask only this host.
        which: "current" for the newest run of each job and all unfinished runs, "all" for every run.
        before: The previous overview, which is used for hosts that have not answered yet. Its runs are shown again.
        is_thorough: Whether to ask the hosts of all jobs, and to name the others even if there are runs to show.

    Raises:
        SpecError: There is no such job, run or host.
    """
    known = list(project.known.all())
    asked = {*project.hosts_to_ask(known), *(project.hosts_of_jobs() if is_thorough else ())}
    hosts = [project.spec.host(on).name] if on else sorted(asked)
    for host in hosts:
        project.transport(host)  # created before the threads start, which share it
    earlier = {(run.job, run.run_id): run for run in before.runs} if before else {}
    view = _View(project, names, on, which, known, earlier, is_thorough)

    def ask_host(host: str) -> Iterator[HostStatus]:
        yield ask(project, host, which, known, named=on is not None, is_brief=True)

    answers: list[HostStatus] = []
    asking = [partial(ask_host, host) for host in hosts]
    for answer in merged([*asking, partial(view.read_ahead)], TICK_S):
        if answer is not None:
            answers.append(answer)
        else:
            yield view.of(answers, [host for host in hosts if host not in {answer.host for answer in answers}])
    yield view.of(answers, ())


@dataclass(frozen=True)
class _View:
    """What the user wants to see, and the runs of the previous overview."""

    project: OpenedProject
    names: Sequence[str]
    on: str | None
    which: str
    known: Sequence[KnownRun]
    before: Mapping[Key, RunReport]
    is_thorough: bool
    _read: dict[Key, tuple[KnownRun, RunReport]] = field(default_factory=dict)

    def of(self, answers: Sequence[HostStatus], waiting: Sequence[str]) -> Overview:
        """Return the overview after these answers, while the hosts in `waiting` have not answered yet."""
        known = list(self.project.known.all()) if answers else self.known
        named = self._named(known, answers, bool(waiting))
        found = self._runs(known, named, answers, waiting)
        if self.names:
            found = {key: run for key, run in found.items() if key in named or run.job in self.names}
        runs = [found[key] for key in sorted(found)]
        if self.which == "current":
            newest = newest_of_each_job(self.project, runs)
            runs = [run for run in runs if _is_current(run, newest) or (run.job, run.run_id) in {*named, *self.before}]
        notes = [*_without_host(self.project, known), *_half_copied(self.project, known, runs)]
        if self.names and len(runs) == 1:
            notes += why_files_are_missing(self.project, runs)
        if self.which == "current" and not self.names:
            notes += _rest_of_groups(known, runs)
        if self.on is None and (self.is_thorough or not runs):
            notes += not_asked(self.project, {*(answer.host for answer in answers), *waiting})
        keys = tuple(run.key for run in known)
        return Overview(tuple(runs), tuple(answers), tuple(notes), tuple(waiting), keys, tuple(self.project.spec.jobs))

    def _named(self, known: Sequence[KnownRun], answers: Sequence[HostStatus], is_early: bool) -> set[Key]:
        """Return the runs that names other than those of jobs mean.

        Raises:
            SpecError: A name means no run and no job, or the end of a run id means several runs. Not if it `is_early`.
        """
        runs = [run for run in known if self.on is None or self.project.host_of(run) == self.on]
        recorded = {run.key for run in known}
        for answer in answers:  # a run of which no record could be written
            address = self.project.address(answer.host)
            new = [run for run in answer.runs if (run.job, run.run_id) not in recorded]
            runs += [KnownRun(run.job, run.run_id, answer.host, address, state=run.state) for run in new]
        jobs = {*self.project.spec.jobs, *(run.job for run in runs)}
        found: set[Key] = set()
        for name in self.names:
            if name in jobs:
                continue
            try:
                meaning = meant(self.project, runs, name)
                if not meaning:
                    raise no_such_run(self.project, name, runs)
                found |= {run.key for run in meaning}
            except SpecError:
                if not is_early:
                    raise
        return found

    def _runs(
        self, known: Sequence[KnownRun], named: Collection[Key], answers: Sequence[HostStatus], waiting: Sequence[str]
    ) -> dict[Key, RunReport]:
        """Return the runs in the answers. For the other hosts, return the previous overview or the last reports."""
        runs = {(run.job, run.run_id): run for answer in answers for run in answer.runs}
        answered = {answer.host for answer in answers if not answer.error}
        for run in self._shown(known, named):
            host = self.project.host_of(run)
            if run.key in runs:
                continue
            if host in waiting:
                if run.key in self.before:
                    runs[run.key] = self.before[run.key]
            elif run.confirmed or host not in answered:
                report = self._report(run)
                runs[run.key] = report if run.confirmed else replace(report, note=LAUNCH_INTERRUPTED)
        return runs

    def _shown(self, known: Sequence[KnownRun], named: Collection[Key]) -> list[KnownRun]:
        """Return the known runs that are to be shown."""
        shown = [run for run in known if self.on is None or self.project.host_of(run) == self.on]
        if self.names:
            shown = [run for run in shown if run.job in self.names or run.key in named]
        return self._without_older(shown, named) if self.which == "current" else shown

    def read_ahead(self) -> Iterator[HostStatus]:
        """Read the last reports of ended runs while the hosts answer. Yields nothing."""
        for run in self._shown(self.known, self._named(self.known, (), is_early=True)):
            if run.has_ended:
                self._report(run)
        yield from ()

    def _report(self, run: KnownRun) -> RunReport:
        """Return the last report of a run, which is read again only if its record has changed."""
        read = self._read.get(run.key)
        if read is None or read[0] is not run:
            read = self._read[run.key] = run, self.project.mirror.report(run)
        return read[1]

    def _without_older(self, known: Sequence[KnownRun], named: Collection[Key]) -> list[KnownRun]:
        """Return the runs without ended ones that are too old to be shown, unless they were named, or shown before.

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
        return [run for run in known if run.key not in left_out or run.key in named or run.key in self.before]


def not_asked(project: OpenedProject, asked: Collection[str]) -> list[str]:
    """Return a note that names the hosts that were not asked; another laptop may have launched runs there."""
    hosts = [host for host in project.spec.hosts if host not in asked and (host != LOCAL or project.uses_local())]
    if not hosts:
        return []
    why = f"no unfinished run was launched from here; to ask anyway: orch status --on {hosts[0]}"
    return [f"not asked: {', '.join(hosts)} ({why})"]


def why_files_are_missing(project: OpenedProject, runs: Iterable[RunReport]) -> list[str]:
    """Return a note for each failed run that misses a file which exists here but was not sent."""
    from orchestrator.code import not_sent  # needed only here

    failed = [(run, run.state.detail) for run in runs if isinstance(run.state, Failed)]
    notes = [(run.job, not_sent.explain(project.spec, detail)) for run, detail in failed]
    return [f"{job}: {note}" for job, note in notes if note]


def _half_copied(project: OpenedProject, known: Iterable[KnownRun], runs: Iterable[RunReport]) -> Iterator[str]:
    """Yield a note for each run whose copy was interrupted, so that nobody takes the copy for the complete run."""
    complete = {run.key for run in known if run.is_complete}
    for run in (run for run in runs if (run.job, run.run_id) not in complete):
        waiting = project.mirror.waiting(run.job, run.run_id)
        if waiting:
            yield f"{run.job} {run.run_id}: {waiting}"


def _rest_of_groups(known: Iterable[KnownRun], runs: Iterable[RunReport]) -> Iterator[str]:
    """Yield a note for each group of which some runs are shown, and others are not."""
    shown = {(run.job, run.run_id): run.group for run in runs if run.group}
    left_out = Counter(run.group for run in known if run.key not in shown)
    for group in dict.fromkeys(shown.values()):
        if left_out[group]:
            yield f"and {left_out[group]} more of {group}: orch status {group}"


def _is_current(run: RunReport, newest: dict[str, RunReport]) -> bool:
    return newest[run.job] is run or not (run.has_ended or run.is_missing)


def _without_host(project: OpenedProject, known: Iterable[KnownRun]) -> Iterator[str]:
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
