"""Validate the reports of runs that a box sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import AgentUnusable, OrchError
from orchestrator.text import shortened
from remote.contract.run_report import RunReport
from remote.contract.schema import Malformed, from_json

MAX_PROBLEM = 300  # characters
MAX_PROBLEMS = 5  # problems that are listed separately
MAX_RUNS = 10_000  # runs of one box that are read
OURS = ("host", "note", "is_missing")  # fields that this machine fills in


@dataclass(frozen=True)
class HostStatus:
    """The runs of one host, or why it did not answer.

    `problems` has messages about malformed entries of its reply, `notes` has messages about runs that are left out.
    """

    host: str
    runs: tuple[RunReport, ...] = ()
    error: OrchError | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[OrchError]:
        """All errors of this host, for the exit code of a command."""
        return [*([self.error] if self.error else []), *map(AgentUnusable, self.problems)]


def read_report(host: str, record: Any) -> RunReport:
    """Return the report of one run.

    A malformed field counts as missing, and the report's `note` names it.

    Raises:
        AgentUnusable: `record` does not name a run.
    """
    fields = {key: value for key, value in record.items() if key not in OURS} if isinstance(record, Mapping) else {}
    malformed: list[str] = []
    try:
        report = from_json(RunReport, fields, malformed)
    except Malformed as error:
        value = shortened(repr(fields.get(error.field)), 100)
        raise AgentUnusable(f"reading the status of {host}: invalid {error.field} of a run: {value}") from None
    if report.problem:
        note = f"{host} cannot report it: {shortened(report.problem, MAX_PROBLEM)}"
    else:
        note = f"{host} sent an invalid {', '.join(malformed)}" if malformed else ""
    return replace(report, host=host, note=note, problem="")


def read_reports(host: str, records: Sequence[Any]) -> HostStatus:
    """Return the runs that a box lists, each (job, run id) once. An entry that names no run becomes a problem."""
    runs: dict[tuple[str, str], RunReport] = {}
    problems = []
    for record in records[:MAX_RUNS]:
        try:
            run = read_report(host, record)
            runs.setdefault((run.job, run.run_id), run)
        except AgentUnusable as error:
            problems.append(error.message)
    if len(records) > MAX_RUNS:
        problems.append(f"{host} lists {len(records)} runs; only the first {MAX_RUNS} are read")
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"{host}: {len(problems) - MAX_PROBLEMS} more invalid runs"]
    return HostStatus(host, tuple(runs.values()), problems=tuple(problems))
