"""Where the runs stand: every host is asked at once, and each is heard on its own.

A box's reports count only for its own runs. What it reports of another host's run, of a job that is not in jobs.toml,
or of a run that nobody here launched on a host that jobs.toml does not name for that job, is left out and said.
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
TICK_S = 1.0  # after which what is known is shown, though a host has not answered
MOST_NEW = 500  # runs that one answer makes known
CUT_OFF = "its launch was interrupted; it may or may not have started"
CUT_OFF_S = 600.0  # a launch of which its box knows nothing after so long was cut off before it arrived


@dataclass(frozen=True)
class Overview:
    """Runs as far as they are known, each host that has answered, and what a person should know beside them.

    `waiting_for` names the hosts that have yet to answer.
    """

    runs: tuple[RunReport, ...]
    hosts: tuple[HostStatus, ...]
    notes: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()


def as_answered(
    project: Project, names: Sequence[str], on: str | None, which: str = "current", before: Overview | None = None
) -> Iterator[Overview]:
    """Yield where the runs stand, every second while a host has yet to answer; the last one is complete.

    Args:
        project: The project whose runs are meant.
        names: Jobs or run ids; empty for all.
        on: Ask this host alone.
        which: "current" for the newest run of each job and what has not ended, "all" for every run.
        before: What was seen before, which stands for the hosts that have yet to answer.

    Raises:
        SpecError: A name means nothing, or `on` is no host of jobs.toml.
    """
    hosts = [project.spec.host(on).name] if on else project.hosts_to_ask()
    for host in hosts:
        project.transport(host)  # made here: the threads below share them
    known = list(project.known.all())
    view = _View(project, names, on, which, {(run.job, run.run_id): run for run in before.runs} if before else {})
    answers: list[HostStatus] = []
    for answer in as_completed(hosts, lambda host: ask(project, host, which, known, named=on is not None), TICK_S):
        if answer is not None:
            answers.append(answer)
        else:
            yield view.of(answers, [host for host in hosts if host not in {answer.host for answer in answers}])
    if names:
        _require_meaning(project, names, answers)
    yield view.of(answers, ())


def ask(
    project: Project,
    host: str,
    which: str,
    known: Iterable[KnownRun],
    named: bool = False,
    box: Box | None = None,
) -> HostStatus:
    """Ask one host for its runs, and record what it says of them.

    One exchange answers for all runs at the host's address; runs launched while the host had another root or project
    name take one more for each such address. `named` says that the user named this host; `box` stands in for the
    project's own.
    """
    current = project.address(host)
    mine = [run for run in known if project.host_of(run) == host and (which == "none" or not run.is_complete)]
    groups: dict[Address, list[KnownRun]] = {current: []}
    for run in mine:
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
            believed = believe(project, answer, address, named)
            runs += believed.runs
            problems += believed.problems
            notes += believed.notes
            listed = {(run.job, run.run_id) for run in answer.runs}
            absent = [run for run in expected if run.key not in listed]
            runs += [_missing(project, run) for run in absent if run.confirmed and not run.has_ended]
            if which == "all":
                notes += _few([_lost_results(project, run) for run in absent if run.has_ended])
            for run in absent:
                if not run.confirmed and is_older(run.run_id, time.time(), CUT_OFF_S):
                    project.record(partial(project.known.forget, run))
    except OrchError as error:
        return HostStatus(host, tuple(runs), error, tuple(problems), tuple(notes))
    notes += project.record(partial(project.known.note_asked, host, current))
    return HostStatus(host, tuple(runs), problems=tuple(problems), notes=tuple(notes))


def believe(project: Project, answer: HostStatus, address: Address, named: bool = False) -> HostStatus:
    """Return the reports of `answer` that its host may speak for, recorded; the others become notes."""
    believed: list[RunReport] = []
    notes: list[str] = []
    new: list[KnownRun] = []
    for report in answer.runs:
        known = project.known.get(report.job, report.run_id)
        refusal = _refusal(project, report, answer.host, known, named)
        if refusal:
            notes.append(refusal)
            continue
        before = known or KnownRun(report.job, report.run_id, answer.host, address, launched_here=False)
        now = replace(before, host=answer.host, confirmed=True, state=report.state or before.state)
        if not report.has_ended or now.state != before.state:
            now = replace(now, is_complete=False)  # it was restarted, and its copy is of before
        if known is None and len(new) >= MOST_NEW:
            continue
        if known is None:
            new.append(now)
        if now != known:
            notes += project.record(partial(project.known.save, now))
        believed.append(report)
    if len(new) == MOST_NEW:
        notes.append(
            f"{answer.host} reports more than {MOST_NEW} runs that are not known here; the rest is read next time"
        )
    return replace(answer, runs=tuple(believed), notes=tuple(_few(notes)))


def _refusal(project: Project, report: RunReport, host: str, known: KnownRun | None, named: bool) -> str:
    """Why the host's word on this run does not count; empty where it does."""
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


def _few(problems: Sequence[str], most: int = 5) -> list[str]:
    rest = len(problems) - most
    return [*problems[:most], f"and {rest} more like this"] if rest > 1 else list(problems)


def _missing(project: Project, run: KnownRun) -> RunReport:
    """A run that had not ended, and that its host does not have any more."""
    note = f"not on {project.host_of(run)}: {_why_absent(project, run)}"
    report = project.mirror.report(run)
    return replace(report, is_missing=True, supervised=False, note=note)


def _lost_results(project: Project, run: KnownRun) -> str:
    why = _why_absent(project, run)
    return f"{run.job} {run.run_id} is no longer on {project.host_of(run)}, and was not copied completely: {why}"


def _why_absent(project: Project, run: KnownRun) -> str:
    """The reason as far as it can be seen from here."""
    now, then = project.address(project.host_of(run) or run.host), run.address
    pairs = (("ssh", then.ssh, now.ssh), ("root", then.root, now.root), ("project", then.project, now.project))
    changes = [f"{what} was {old!r}, is {new!r}" for what, old, new in pairs if old != new]
    return f"jobs.toml has changed since its launch ({', '.join(changes)})" if changes else "its directory was removed"


@dataclass(frozen=True)
class _View:
    """What the user wants to see, and what was seen before."""

    project: Project
    names: Sequence[str]
    on: str | None
    which: str
    before: Mapping[Key, RunReport]

    def of(self, answers: Sequence[HostStatus], waiting: Sequence[str]) -> Overview:
        """What is known after these answers, while the hosts in `waiting` have yet to give theirs."""
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
        """What the hosts reported; for the others what was seen before, or last heard of."""
        runs = {(run.job, run.run_id): run for answer in answers for run in answer.runs}
        heard = {answer.host for answer in answers if not answer.error}
        for run in known:
            host = self.project.host_of(run)
            if run.key in runs or (self.on is not None and host != self.on):
                continue
            if host in waiting:
                if run.key in self.before:
                    runs[run.key] = self.before[run.key]
            elif run.confirmed or host not in heard:
                report = self.project.mirror.report(run)
                runs[run.key] = report if run.confirmed else replace(report, note=CUT_OFF)
        return runs


def not_asked(project: Project, asked: Collection[str]) -> list[str]:
    """Name the hosts of jobs.toml that nothing is known to run on: another laptop may have launched something there."""
    hosts = [host for host in project.spec.hosts if host not in asked and (host != LOCAL or project.uses_local())]
    if not hosts:
        return []
    why = f"no unfinished run was launched from here; to ask anyway: orch status --on {hosts[0]}"
    return [f"not asked: {', '.join(hosts)} ({why})"]


def _is_current(run: RunReport, newest: dict[str, RunReport]) -> bool:
    return newest[run.job] is run or not (run.has_ended or run.is_missing)


def newest_of_each_job(project: Project, runs: Iterable[RunReport]) -> dict[str, RunReport]:
    """Return the run that each job's name means: a live one before any other, then the newest by its id.

    A run that neither was launched here nor is on the job's own host comes after all others.
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
    """Runs of hosts that jobs.toml does not have any more."""
    lost: dict[str, int] = {}
    for run in known:
        if project.host_of(run) is None and not run.is_complete:
            lost[run.host] = lost.get(run.host, 0) + 1
    for host, count in lost.items():
        runs = "1 known run was" if count == 1 else f"{count} known runs were"
        yield (
            f"{runs} launched on {host!r}, which is no longer in jobs.toml: shown as last seen; "
            "to follow them, add the host again"
        )


def _require_meaning(project: Project, names: Sequence[str], answers: Sequence[HostStatus]) -> None:
    found = {text for answer in answers for run in answer.runs for text in (run.job, run.run_id)}
    found |= {text for run in project.known.all() for text in run.key} | set(project.spec.jobs)
    for name in names:
        if name not in found:
            raise unknown_name(project, name)


def unknown_name(project: Project, name: str) -> SpecError:
    if RUN_ID.fullmatch(name):
        return SpecError(f"no run {name!r}", "to list the runs: orch runs")
    return SpecError(f"no job or run {name!r}", suggestion(name, project.spec.jobs, "jobs"))
