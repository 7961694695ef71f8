"""The state of runs: ask all hosts at once, and decide which of their reports to accept.

A host may only report its own runs. Three kinds of reports are ignored, with a note: of a run that was launched on
another host; of a job that is not in jobs.toml; and of a run that was not launched from here and is not on its job's
host in jobs.toml.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from orchestrator.box.client import Box
from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.box.run_ids import is_ahead, is_older
from orchestrator.commands.project import Project
from orchestrator.errors import OrchError, SpecError
from orchestrator.spec.models import LOCAL
from orchestrator.spec.problems import suggestion
from orchestrator.system.concurrency import as_completed
from remote.contract.paths import RUN_ID
from remote.contract.requests import NONE
from remote.contract.run_report import RunReport

Key = tuple[str, str]  # job, run id
TICK_S = 1.0  # how often to yield what is known while a host has not answered
MOST_NEW = 500  # runs that one answer may add to the records
LAUNCH_INTERRUPTED = "its launch was interrupted; it may or may not have started"
LAUNCH_LOST_S = 600.0  # if the box still does not have the run after this time, the launch never arrived


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


def ask(
    project: Project,
    host: str,
    which: str,
    known: Iterable[KnownRun],
    named: bool = False,
    box: Box | None = None,
) -> HostStatus:
    """Ask one host for its runs, and record the reports. An error of the host is in the result.

    Takes one request for the host's current address, and one for each former address with unfinished runs. A host has
    former addresses if its `root` or the project's name was changed.

    Args:
        project: The project that has the runs.
        host: The host in jobs.toml.
        which: "current" and "all" as for `ask_all`; "none" for the runs in `known` alone.
        known: Records of runs, of any host.
        named: Whether the user named this host, which lets it report runs that were not launched from here.
        box: The box to use; None for the project's own.
    """
    current = project.address(host)
    on_host = [run for run in known if project.host_of(run) == host and (which == "none" or not run.is_complete)]
    groups: dict[Address, list[KnownRun]] = {current: []}
    for run in on_host:
        address = project.address_of_run(run)
        groups.setdefault(current if address.where == current.where else address, []).append(run)
    box = box or project.box(host)
    runs: list[RunReport] = []
    problems: list[str] = []
    notes: list[str] = []
    try:
        for address, expected in groups.items():
            open_runs = [run.key for run in expected if not run.has_ended or which != "current"]
            if address != current and not open_runs:
                continue
            answer = box.at(address.where).status(which if address == current else NONE, open_runs)
            accepted = accept(project, answer, address, named)
            runs += accepted.runs
            problems += accepted.problems
            notes += accepted.notes
            listed = {(run.job, run.run_id) for run in answer.runs}
            absent = [run for run in expected if run.key not in listed]
            runs += [_missing(project, run) for run in absent if run.confirmed and not run.has_ended]
            if which == "all":
                notes += _first_few([_lost_results(project, run) for run in absent if run.has_ended])
            for run in absent:
                if not run.confirmed and is_older(run.run_id, time.time(), LAUNCH_LOST_S):
                    project.record(partial(project.known.forget, run))
    except OrchError as error:
        return HostStatus(host, tuple(runs), error, tuple(problems), tuple(notes))
    notes += project.record(partial(project.known.note_asked, host, current))
    return HostStatus(host, tuple(runs), problems=tuple(problems), notes=tuple(notes))


def accept(project: Project, answer: HostStatus, address: Address, named: bool = False) -> HostStatus:
    """Record the reports that the host may make, and return them. The others become notes.

    Args:
        project: The project that has the runs.
        answer: What the host reported.
        address: Where on the host the runs are.
        named: Whether the user named this host, which lets it report runs that were not launched from here.
    """
    accepted: list[RunReport] = []
    notes: list[str] = []
    new: list[KnownRun] = []
    for report in answer.runs:
        known = project.known.get(report.job, report.run_id)
        refusal = _refusal(project, report, answer.host, known, named)
        if refusal:
            notes.append(refusal)
            continue
        before = known or KnownRun(report.job, report.run_id, answer.host, address)
        now = replace(before, host=answer.host, confirmed=True, state=report.state or before.state)
        if not report.has_ended or now.state != before.state:
            now = replace(now, is_complete=False)  # it was restarted, so its copy is out of date
        if known is None and len(new) >= MOST_NEW:
            continue
        if known is None:
            new.append(now)
        if now != known:
            notes += project.record(partial(project.known.save, now))
        accepted.append(report)
    if len(new) == MOST_NEW:
        notes.append(
            f"{answer.host} reports more than {MOST_NEW} runs that are not known here; the rest is read next time"
        )
    return replace(answer, runs=tuple(accepted), notes=tuple(_first_few(notes)))


def _refusal(project: Project, report: RunReport, host: str, known: KnownRun | None, named: bool) -> str:
    """Return why to ignore the host's report of a run; empty to accept it."""
    name = f"{report.job} {report.run_id}"
    if known is not None:
        owner = project.host_of(known) or known.host
        return "" if owner == host else f"{host} reports {name}, which was launched on {owner}: ignored"
    if report.job not in project.spec.jobs:
        return f"{host} reports {name}; jobs.toml has no job {report.job!r}: ignored"
    if named:
        return ""
    if is_ahead(report.run_id, time.time()):
        return f"{host} reports {name}, which is dated in the future: ignored; check the clocks"
    if project.spec.jobs[report.job].host == host:
        return ""
    return f"{host} reports {name}, which was not launched from here: hidden; `--on {host}` shows it"


def _first_few(notes: Sequence[str], most: int = 5) -> list[str]:
    rest = len(notes) - most
    return [*notes[:most], f"and {rest} more like this"] if rest > 1 else list(notes)


def _missing(project: Project, run: KnownRun) -> RunReport:
    """Return the report of an unfinished run that its host no longer has."""
    note = f"not on {project.host_of(run)}: {_why_absent(project, run)}"
    report = project.mirror.report(run)
    return replace(report, is_missing=True, supervised=False, note=note)


def _lost_results(project: Project, run: KnownRun) -> str:
    why = _why_absent(project, run)
    return f"{run.job} {run.run_id} is no longer on {project.host_of(run)}, and was not copied completely: {why}"


def _why_absent(project: Project, run: KnownRun) -> str:
    """Return why the host does not have the run, as far as it can be told from here."""
    now, then = project.address(project.host_of(run) or run.host), run.address
    pairs = (("ssh", then.ssh, now.ssh), ("root", then.root, now.root), ("project", then.project, now.project))
    changes = [f"{what} was {old!r}, is {new!r}" for what, old, new in pairs if old != new]
    return f"jobs.toml has changed since its launch ({', '.join(changes)})" if changes else "its directory was removed"


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
        notes = [*_without_host(self.project, known)]
        if self.on is None:
            notes += not_asked(self.project, {*(answer.host for answer in answers), *waiting})
        return Overview(tuple(runs), tuple(answers), tuple(notes), tuple(waiting))

    def _runs(
        self, known: Sequence[KnownRun], answers: Sequence[HostStatus], waiting: Sequence[str]
    ) -> dict[Key, RunReport]:
        """Return the runs in the answers. For the other hosts, return the previous overview or the last reports."""
        runs = {(run.job, run.run_id): run for answer in answers for run in answer.runs}
        answered = {answer.host for answer in answers if not answer.error}
        for run in known:
            host = self.project.host_of(run)
            if run.key in runs or (self.on is not None and host != self.on):
                continue
            if host in waiting:
                if run.key in self.before:
                    runs[run.key] = self.before[run.key]
            elif run.confirmed or host not in answered:
                report = self.project.mirror.report(run)
                runs[run.key] = report if run.confirmed else replace(report, note=LAUNCH_INTERRUPTED)
        return runs


def not_asked(project: Project, asked: Collection[str]) -> list[str]:
    """Return a note that names the hosts that were not asked; another laptop may have launched runs there."""
    hosts = [host for host in project.spec.hosts if host not in asked and (host != LOCAL or project.uses_local())]
    if not hosts:
        return []
    why = f"no unfinished run was launched from here; to ask anyway: orch status --on {hosts[0]}"
    return [f"not asked: {', '.join(hosts)} ({why})"]


def _is_current(run: RunReport, newest: dict[str, RunReport]) -> bool:
    return newest[run.job] is run or not (run.has_ended or run.is_missing)


def newest_of_each_job(project: Project, runs: Iterable[RunReport]) -> dict[str, RunReport]:
    """Return the run that each job's name means: its unfinished run, or else its newest run.

    Foreign runs (`Project.is_foreign`) count only if the job has no other runs, and runs dated in the future only
    after the others.
    """
    foreign = {run.key for run in project.known.all() if project.is_foreign(run)}
    newest: dict[str, RunReport] = {}
    for run in sorted(runs, key=lambda run: _rank(run, foreign)):
        newest[run.job] = run
    return newest


def _rank(run: RunReport, foreign: Collection[Key]) -> tuple[bool, bool, bool, str]:
    is_live = not (run.has_ended or run.is_lost or run.is_missing)
    return (run.job, run.run_id) not in foreign, is_live, not is_ahead(run.run_id, time.time()), run.run_id


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
