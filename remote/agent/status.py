"""Find runs and report their status, from the files in their directories."""

from __future__ import annotations

import os
import stat
from typing import Dict, Iterable, List, Optional

from remote.contract.paths import NAME, RUN_ID, ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.replies import StatusReply
from remote.contract.requests import ALL, CURRENT, StatusRequest
from remote.contract.run_report import RunReport, report
from remote.contract.states import recorded
from remote.host.liveness import is_live, is_supervised
from remote.host.run_state import read_state


def find_run(paths: ProjectPaths, job: str, run_id: Optional[str]) -> RunPaths:
    """Return the run `run_id` of `job`. If `run_id` is None, return the run that `newest` chooses.

    Raises:
        AgentError: `no_run`: there is none. `bad_request`: `job` is not a valid name.
    """
    if not NAME.fullmatch(job):
        raise AgentError("bad_request", f"{job!r} is not a valid job name")
    if run_id is None:
        run = newest(run for run in paths.all_runs() if run.job == job)
        if run is None:
            raise AgentError("no_run", f"{job} has no run here", f"to start one: orch launch {job}")
        return run
    if not (RUN_ID.fullmatch(run_id) and is_directory(paths.run(job, run_id))):
        raise AgentError("no_run", f"{job} has no run {run_id} here", "to list the runs: orch runs")
    return paths.run(job, run_id)


def newest(runs: Iterable[RunPaths]) -> Optional[RunPaths]:
    """Return the run that a job's name means: the newest live one, else the newest with a run.json.

    The newest is the one that was launched last by the clock of this box. Run ids are times of the laptops' clocks: if
    one of those is ahead, an ended run may have a later id than the live one.
    """
    ordered = oldest_first(runs)[::-1]
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    return next((run for run in ordered if is_live(run)), ordered[0])


def oldest_first(runs: Iterable[RunPaths]) -> List[RunPaths]:
    """Return runs in the order in which this box started them. Those without a run.json come first.

    run.json is written once, at the launch, so its date is that of the launch, and reading that is cheap.
    """
    return sorted(runs, key=lambda run: (_launched(run), run.run_id))


def _launched(run: RunPaths) -> float:
    try:
        found = os.stat(str(run.run))
    except OSError:
        return 0.0
    return found.st_mtime if stat.S_ISREG(found.st_mode) else 0.0


def newest_run_id(paths: ProjectPaths) -> Optional[str]:
    """Return the largest run id of the project, which the next one must exceed; None if it has no run."""
    return max((run.run_id for run in paths.all_runs() if has_record(run)), default=None)


def has_record(run: RunPaths) -> bool:
    """Return whether the run has a run.json. A launch that crashed may leave a directory without one."""
    return os.path.isfile(str(run.run))


def is_directory(run: RunPaths) -> bool:
    """Return whether the run has a directory that is not a symlink."""
    return os.path.isdir(str(run.root)) and not os.path.islink(str(run.root))


def live_report(run: RunPaths) -> RunReport:
    """Return the run's report. Never raises: an error becomes the `problem` of the report."""
    try:
        supervised = is_supervised(run)
        return report(run, read_state(run) if supervised else recorded(run), supervised)
    except Exception as error:  # noqa: BLE001 - a problem with one run must not hide the others
        why = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        return RunReport(run.job, run.run_id, problem=f"its directory cannot be read: {why:.200}")


def status(paths: ProjectPaths, request: StatusRequest) -> StatusReply:
    """Return the reports of the runs that the request asks for.

    `which` is ALL, NONE or CURRENT: the live runs, and of each other job the run that its name means. Runs in
    `also` that do not exist are skipped.
    """
    runs = list(paths.all_runs())
    asked_for = runs if request.which == ALL else _current(runs) if request.which == CURRENT else []
    chosen = {run.root for run in asked_for} | {run.root for run in runs if (run.job, run.run_id) in request.also}
    return StatusReply(tuple(live_report(run) for run in runs if run.root in chosen))


def _current(runs: List[RunPaths]) -> List[RunPaths]:
    """Return the live runs, and for each job without one the run that its name means."""
    found: List[RunPaths] = []
    of_jobs: Dict[str, List[RunPaths]] = {}
    for run in runs:
        of_jobs.setdefault(run.job, []).append(run)
    for siblings in of_jobs.values():
        live = [run for run in siblings if is_live(run)]
        found += live or oldest_first(siblings)[-1:]
    return found
