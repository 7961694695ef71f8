"""Which run the name of a job means, among reports of runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from orchestrator.box.run_ids import is_ahead, launched_at

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from remote.contract.run_report import RunReport

Key = tuple[str, str]  # job, run id


def newest_of_each_job(project: OpenedProject, runs: Iterable[RunReport]) -> dict[str, RunReport]:
    """Return the run that each job's name means: its unfinished run, or else its newest run.

    Runs of one host are ordered by the clock of the host. Run ids, which have the time of the laptop that launched the
    run, order only runs of different hosts: runs dated in the future come after the others. Foreign runs
    (`OpenedProject.is_foreign`) count only if the job has no other runs.
    """
    foreign = {run.key for run in project.known.all() if project.is_foreign(run)}
    newest_on: dict[tuple[str, str | None, bool], RunReport] = {}
    for run in sorted(runs, key=age_rank):
        newest_on[run.job, run.host, (run.job, run.run_id) in foreign] = run
    newest: dict[str, RunReport] = {}
    for run in sorted(newest_on.values(), key=lambda run: _rank(run, foreign)):
        newest[run.job] = run
    return newest


def age_rank(run: RunReport) -> tuple[bool, float, str]:
    """Return the rank of a run among those of its host."""
    launched = run.created if run.created is not None else launched_at(run.run_id)
    return run.is_live, launched or 0.0, run.run_id


def _rank(run: RunReport, foreign: Collection[Key]) -> tuple[bool, bool, bool, str]:
    is_dated_well = not is_ahead(run.run_id, time.time())
    return (run.job, run.run_id) not in foreign, run.is_live, is_dated_well, run.run_id
