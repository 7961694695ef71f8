"""Which known runs the names on a command line mean: jobs, runs, groups, and patterns of them.

    train                   a job: its unfinished runs, or else its newest run
    20261128T140237-2ab4    a run id
    2ab4, 37-2ab4           the end of a run id, of at least 3 characters, if only one run has it
    train/2ab4              the same, of this job
    lr-sweep                a group (`orch launch --name`): all its runs
    train*, lr-*, train/*   a pattern: all runs whose job, group, run id or JOB/RUN matches it

The first that fits counts. So no box can take over the id of a run with the name of a group, which it may report for
runs that were not launched here. Nor can its runs join the group of another host: the runs of a group are on the hosts
on which this machine has launched runs of it; if it has launched none, they are all on one host.

No host is asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from orchestrator.errors import SpecError
from orchestrator.spec.wording import suggestion
from orchestrator.text import listed
from remote.contract.paths import RUN_ID

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject

MIN_SUFFIX = 3  # characters of a run id
_SUFFIX = re.compile(r"[0-9T]*-?[0-9a-f]{1,4}")


def short_ids(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return for each run, as job and run id, the shortest end of its id that no other run has: at least the hex part.

    Args:
        runs: All runs of the project, because the short id of one depends on the others.
    """
    named = list(runs)
    found: dict[tuple[str, str], str] = {}
    for length in range(len("2ab4"), len("20261128T140237-2ab4") + 1):
        left = [run for run in named if run not in found]
        counts: dict[str, int] = {}
        for _, run_id in named:
            counts[run_id[-length:]] = counts.get(run_id[-length:], 0) + 1
        is_start = length == len("-2ab4")  # a leading hyphen would be read as an option
        found |= {run: run[1][-length:] for run in left if counts[run[1][-length:]] == 1 and not is_start}
    return found | {run: run[1] for run in named if run not in found}  # two jobs may have runs with the same id


def is_pattern(name: str) -> bool:
    """Return whether a name is a pattern, which may mean several runs."""
    return any(sign in name for sign in "*?[")


def named_runs(project: OpenedProject, names: Sequence[str], on: str | None = None) -> list[KnownRun]:
    """Return the known runs that the names mean, each once, in the order of the names.

    Args:
        project: The project that has the runs.
        names: What the user wrote.
        on: Consider only runs on this host.

    Raises:
        SpecError: A name means no known run, or the end of a run id means several; the hint has the nearest names. Or
            there is no such host.
    """
    known = project.runs_on(on)
    found: dict[tuple[str, str], KnownRun] = {}
    for name in names:
        runs = meant(project, known, name)
        if not runs:
            raise no_such_run(project, name, known)
        found |= {run.key: run for run in runs}
    return list(found.values())


def one_run(project: OpenedProject, name: str, on: str | None = None, newest: bool = False) -> KnownRun | None:
    """Return the one known run that a name means; None if it means none.

    Args:
        project: The project that has the run.
        name: What the user wrote.
        on: Consider only runs on this host.
        newest: Let a job with several unfinished runs mean the newest of them.

    Raises:
        SpecError: The name means several runs, or there is no such host.
    """
    runs = meant(project, project.runs_on(on), name)
    if newest and len(runs) > 1 and all(run.job == name for run in runs):
        runs = _newest(project, runs)
    if len(runs) > 1:
        raise means_several(name, ["/".join(run.key) for run in runs])
    return runs[0] if runs else None


def means_several(name: str, runs: Sequence[str]) -> SpecError:
    """Return the error for a name that means several runs, given as JOB/RUN, where one is needed."""
    return SpecError(f"{name!r} means {len(runs)} runs: {listed(runs)}", f"name one of them: {runs[-1]}")


def meant(project: OpenedProject, known: Collection[KnownRun], name: str) -> list[KnownRun]:
    """Return the runs of `known` that one name means; none if it means none.

    Raises:
        SpecError: It is the end of several run ids, or a group of several hosts that was not launched here.
    """
    of_job = [run for run in known if run.job == name]
    if of_job:
        return current(project, of_job)
    exact = [run for run in known if name in (run.run_id, "/".join(run.key))]
    found = exact or _ending_with(known, name)
    if found:
        return found
    if is_pattern(name):
        groups = {group: _of_group(project, known, group) for group in {run.group for run in known if run.group}}
        members = {run.key for runs in groups.values() for run in runs}
        return [run for run in known if _matches(run, name, run.group if run.key in members else "")]
    members_of_one = _of_group(project, known, name)
    if not members_of_one and any(run.group == name for run in known):
        raise SpecError(
            f"{name!r}: several hosts report a group of this name", "name its runs; to list them: orch runs"
        )
    return members_of_one


def is_end_of_run_id(name: str) -> bool:
    """Return whether a name may mean a run by the end of its id, or by the complete id."""
    return len(name) >= MIN_SUFFIX and _SUFFIX.fullmatch(name) is not None


def _of_group(project: OpenedProject, known: Iterable[KnownRun], group: str) -> list[KnownRun]:
    """Return the runs of a group; none if it was not launched here and several hosts report it."""
    hosts = [(run, project.host_of(run) or run.host) for run in known if run.group == group]
    trusted = {host for run, host in hosts if run.launched_here} or {host for _, host in hosts}
    if len(trusted) > 1 and not any(run.launched_here for run, _ in hosts):
        return []
    return [run for run, host in hosts if host in trusted]


def current(project: OpenedProject, runs: Sequence[KnownRun]) -> list[KnownRun]:
    """Return those of a job's runs that its name means: the unfinished ones, or else the newest one."""
    unfinished = [run for run in runs if not run.has_ended]
    if unfinished or len(runs) == 1:
        return unfinished or list(runs)
    return _newest(project, runs)


def _newest(project: OpenedProject, runs: Sequence[KnownRun]) -> list[KnownRun]:
    """Return the newest of a job's runs."""
    from orchestrator.commands.newest_run import newest_of_each_job  # takes a while to import

    reports = newest_of_each_job(project, (project.mirror.report(run) for run in runs))
    newest = {(report.job, report.run_id) for report in reports.values()}
    return [run for run in runs if run.key in newest]


def _matches(run: KnownRun, pattern: str, group: str) -> bool:
    texts = filter(None, (run.job, group, run.run_id, "/".join(run.key)))
    return any(fnmatchcase(text, pattern) for text in texts)


def _ending_with(known: Iterable[KnownRun], name: str) -> list[KnownRun]:
    job, slash, end = name.rpartition("/")
    if not is_end_of_run_id(end):
        return []
    found = [run for run in known if run.run_id.endswith(end) and (not slash or run.job == job)]
    if len(found) > 1:
        several = listed(["/".join(run.key) for run in found])
        raise SpecError(f"{len(found)} runs end with {name!r}: {several}", "give more characters of the run id")
    return found


def no_such_run(
    project: OpenedProject, name: str, known: Collection[KnownRun], hosts: Collection[str] = ()
) -> SpecError:
    """Return the error for a name that means no run, with the most similar name as its hint.

    Args:
        project: The project.
        name: What the user wrote.
        known: The runs that it may have meant.
        hosts: Hosts that it may have meant, where the command takes hosts too.
    """
    if is_pattern(name):
        return SpecError(f"no run matches {name!r}", "to list all runs: orch runs")
    if RUN_ID.fullmatch(name.rpartition("/")[2]):
        return SpecError(f"no run {name!r}", "to list the runs: orch runs")
    if name in project.spec.jobs:
        return SpecError(f"{name} has no run yet", f"to start one: orch launch {name}")
    begun = [run.key for run in known if name[:1].isdigit() and run.run_id.startswith(name)]
    if begun:
        short = short_ids(run.key for run in known)
        ends = ", ".join(short[key] for key in begun[:5]) + (", ..." if len(begun) > 5 else "")
        return SpecError(f"no job, run or group {name!r}", f"run ids may be shortened to their end: {ends}")
    names = [*project.spec.jobs, *(run.job for run in known), *(run.group for run in known if run.group), *hosts]
    one, several = (
        ("job, run, group or host", "jobs, groups and hosts") if hosts else ("job, run or group", "jobs and groups")
    )
    return SpecError(f"no {one} {name!r}", suggestion(name, dict.fromkeys(names), several))
