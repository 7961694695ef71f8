"""What the box says of its runs: which there are, and one report each, made from the run's own files."""

from __future__ import annotations

import os
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
    """The run of these names, or the job's newest for a run id of None. Raises AgentError where there is none."""
    if not NAME.fullmatch(job):
        raise AgentError("bad_request", f"{job!r} does not name a job")
    if run_id is None:
        run = newest(run for run in paths.all_runs() if run.job == job)
        if run is None:
            raise AgentError("no_run", f"{job} has no run here", f"to start one: orch launch {job}")
        return run
    if not (RUN_ID.fullmatch(run_id) and is_directory(paths.run(job, run_id))):
        raise AgentError("no_run", f"{job} has no run {run_id} here", "to list the runs: orch runs")
    return paths.run(job, run_id)


def newest(runs: Iterable[RunPaths]) -> Optional[RunPaths]:
    """The run that a job's name stands for: the newest live one, else the newest that was launched as a whole.

    A run id is the clock of the laptop that launched it: one whose clock is ahead does not hide what is running.
    """
    ordered = sorted(runs, key=lambda run: run.run_id, reverse=True)
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    for test in (is_live, has_record):
        found = next((run for run in ordered if test(run)), None)
        if found is not None:
            return found
    return ordered[0]


def newest_run_id(paths: ProjectPaths) -> Optional[str]:
    """The run id after which the next one of the project has to sort; None where it has no run."""
    return max((run.run_id for run in paths.all_runs() if has_record(run)), default=None)


def has_record(run: RunPaths) -> bool:
    """Whether its launch came to its end: a crash, or a neighbour, may leave a directory without a run.json."""
    return os.path.isfile(str(run.run))


def is_directory(run: RunPaths) -> bool:
    return os.path.isdir(str(run.root)) and not os.path.islink(str(run.root))


def live_report(run: RunPaths) -> RunReport:
    """The run's report; one that cannot be made is a report of its names and its `problem`, so that it hides no other.

    Never raises.
    """
    try:
        supervised = is_supervised(run)
        return report(run, read_state(run) if supervised else recorded(run), supervised)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one run is said of that run alone
        why = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        return RunReport(run.job, run.run_id, problem=f"its directory cannot be read: {why:.200}")


def status(paths: ProjectPaths, request: StatusRequest) -> StatusReply:
    """Reports of all runs, of the current ones (the newest of each job and whatever else is live) or of none; and of
    those that are named, as far as they are here.
    """
    runs = list(paths.all_runs())
    asked_for = runs if request.which == ALL else _current(runs) if request.which == CURRENT else []
    chosen = {run.root for run in asked_for} | {run.root for run in runs if (run.job, run.run_id) in request.also}
    return StatusReply(tuple(live_report(run) for run in runs if run.root in chosen))


def _current(runs: List[RunPaths]) -> List[RunPaths]:
    """The live runs, and of a job that has none the run that its name stands for."""
    found: List[RunPaths] = []
    of_jobs: Dict[str, List[RunPaths]] = {}
    for run in runs:
        of_jobs.setdefault(run.job, []).append(run)
    for siblings in of_jobs.values():
        live = [run for run in siblings if is_live(run)]
        standing = live or [run for run in siblings if has_record(run)][-1:] or siblings[-1:]
        found += standing
    return found
