"""Ask one host for its runs, and decide which of its reports to accept.

A host may only report its own runs. Three kinds of reports are ignored, with a note: of a run that was launched on
another host; of a job that is not in jobs.toml; and of a run that was not launched from here and is not on its job's
host in jobs.toml.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.box.run_ids import is_ahead, is_older
from orchestrator.errors import OrchError
from remote.contract.requests import NONE

if TYPE_CHECKING:
    from orchestrator.box.client import Box
    from orchestrator.commands.project import Project
    from remote.contract.run_report import RunReport

MAX_NEW = 5000  # how many runs one answer may add to the records
LAUNCH_LOST_S = 600.0  # if the box still does not have the run after this time, the launch never arrived


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
        which: "current" for the newest run of each job and all unfinished runs, "all" for every run, "none" for only
            the runs in `known`.
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
    new, unread = 0, 0
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
        if known is None and new >= MAX_NEW:
            unread += 1
            continue
        new += known is None
        if now != known:
            notes += project.record(partial(project.known.save, now))
        accepted.append(report)
    if unread:
        notes.append(
            f"{answer.host} reports more than {MAX_NEW} runs that are not known here; to read the rest:"
            f" orch runs --on {answer.host}"
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
