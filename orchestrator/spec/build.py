"""Build the hosts and jobs of a jobs.toml from its tables, and check the references between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from orchestrator.spec.models import MERGED, Job
from orchestrator.spec.problems import Report
from orchestrator.spec.tables import Table
from orchestrator.spec.wording import Loc, header, show, suggestion

NamedTable = TypeVar("NamedTable", bound=Table)


def build_table(
    table: type[NamedTable], kind: str, name: str, own: Mapping[str, Any], defaults: Mapping[str, Any], report: Report
) -> NamedTable | None:
    """Return the table [KIND.NAME] as a `table`, or None if `report` was given mistakes.

    Args:
        table: The class of the table.
        kind: "hosts" or "jobs".
        name: The name of the host or job.
        own: The values that the table has.
        defaults: The values of [defaults], used for keys that the table does not have.
        report: Collects the mistakes.
    """
    if "name" in own:
        report.add(header(kind, name), "unknown key 'name'", f"the name is the one in {header(kind, name)}")
    values = {**defaults, **own, "name": name}
    for key in MERGED:
        if isinstance(defaults.get(key), dict) and isinstance(own.get(key), dict):
            values[key] = {**defaults[key], **own[key]}
    return report.check(table, values, lambda loc: table_of(kind, name, own, defaults, loc))


def table_of(kind: str, name: str, own: Mapping[str, Any], defaults: Mapping[str, Any], loc: Loc) -> str:
    """Return the header of the table that sets the value at `loc`: the table itself, or [defaults]."""
    key = loc[0] if loc else ""
    if key in MERGED and len(loc) > 1 and isinstance(own.get(key), dict) and isinstance(defaults.get(key), dict):
        own, defaults, key = own[key], defaults[key], loc[1]
    return "[defaults]" if key in defaults and key not in own else header(kind, name)


def check_references(
    hosts: Iterable[str],
    names: Iterable[str],
    jobs: Mapping[str, Job],
    table_of: Callable[[str, str], str],
    report: Report,
) -> None:
    """Check that the hosts and jobs that jobs name exist, and that no jobs need each other.

    Args:
        hosts: The names of all hosts.
        names: The names of all jobs.
        jobs: The jobs to check, without those that have mistakes of their own.
        table_of: Returns the header of the table that sets a key of a job, for errors.
        report: Collects the mistakes.
    """
    for job in jobs.values():
        if job.host not in hosts:
            report.add(
                table_of(job.name, "host"), f"host: no host {show(job.host)}", suggestion(job.host, hosts, "hosts")
            )
        for need in job.needs:
            if need not in names:
                report.add(table_of(job.name, "needs"), f"needs: no job {show(need)}", suggestion(need, names, "jobs"))
            elif need in jobs and jobs[need].host != job.host:
                where = f"{need!r} runs on {show(jobs[need].host)}, this job on {show(job.host)}"
                report.add(
                    table_of(job.name, "needs"), f"needs: {where}", "a job must run on the host of the jobs it needs"
                )
    try:
        TopologicalSorter({job.name: [need for need in job.needs if need in jobs] for job in jobs.values()}).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        report.add(table_of(cycle[0], "needs"), f"needs: jobs need each other in a circle: {', '.join(cycle)}")
