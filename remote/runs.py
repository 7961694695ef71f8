"""What the box says of its runs: which there are, and one report each, made from the run's own files."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable, List, Mapping, Optional

from remote import protocol
from remote.files import MAX_RECORD_BYTES, read_json
from remote.locks import is_held
from remote.paths import NAME, RUN_ID, ProjectPaths, RunPaths
from remote.protocol import AgentError, RunState
from remote.reports import report
from remote.states import has_ended, is_awaiting, read_state, recorded


def find_run(paths: ProjectPaths, job: Any, run_id: Any) -> RunPaths:
    """The run of these names, or the job's newest for a run id of None. Raises AgentError where there is none."""
    if not (isinstance(job, str) and NAME.fullmatch(job)):
        raise AgentError("bad_request", f"{job!r} does not name a job")
    if run_id is None:
        run = newest(run for run in paths.all_runs() if run.job == job)
        if run is None:
            raise AgentError("no_run", f"{job} has no run here", f"`orch launch {job}` starts one")
        return run
    if not (isinstance(run_id, str) and RUN_ID.fullmatch(run_id) and is_directory(paths.run(job, run_id))):
        raise AgentError("no_run", f"{job} has no run {run_id} here", "`orch runs` lists them")
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


def is_live(run: RunPaths) -> bool:
    """Whether the run has something at work: a supervisor, one that is about to come, or a worker that outlived it."""
    if is_held(run.supervisor_lock):
        return True
    state = recorded(run)  # one look at the files for all that is asked of them: most runs have ended
    return not isinstance(state, protocol.Ended) and (_is_expected(run, state) or _works(state))


def is_supervised(run: RunPaths) -> bool:
    """Whether a supervisor has it, or is about to: at its launch, or because its guard starts another."""
    if is_held(run.supervisor_lock):
        return True
    state = recorded(run)
    return not isinstance(state, protocol.Ended) and _is_expected(run, state)


def _is_expected(run: RunPaths, state: Optional[RunState]) -> bool:
    return is_awaiting(state) or _has_guard(run)


def is_guarded(run: RunPaths) -> bool:
    """Whether a guard starts another supervisor of the run where the one it has is ended."""
    return not has_ended(run) and _has_guard(run)


def _has_guard(run: RunPaths) -> bool:
    record = read_json(run.supervisor, MAX_RECORD_BYTES) or {}
    pid, known_as = record.get("guard_pid"), record.get("guard_identity")
    if not isinstance(pid, int) or pid <= 1:
        return False
    from remote.process import is_alive

    return is_alive(pid, str(known_as))


def worker_lives(run: RunPaths) -> bool:
    return _works(read_state(run))


def _works(state: Optional[RunState]) -> bool:
    if not isinstance(state, protocol.Running):
        return False
    from remote.process import boot_id, is_alive  # here alone: status of ended runs does without it

    return state.boot in ("", boot_id()) and is_alive(state.pid, state.identity)


def live_report(run: RunPaths) -> Dict[str, Any]:
    """The run's report; one that cannot be made is a record of its names and its `problem`, so that it hides no other.

    Never raises.
    """
    try:
        return report(run, supervised=is_supervised(run))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one run is said of that run alone
        why = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        return {"job": run.job, "run_id": run.run_id, "problem": f"its directory cannot be read: {why:.200}"}


def status(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Reports of `all` runs, of the `current` ones (the newest of each job and whatever else is live) or of `none`;
    and of those in `also` ([[job, run_id], ...]) as far as they are here.
    """
    which, also = args.get("which", "current"), args.get("also", [])
    runs = list(paths.all_runs())
    asked_for = runs if which == "all" else _current(runs) if which == "current" else []
    chosen = {run.root for run in asked_for} | {run.root for run in runs if [run.job, run.run_id] in also}
    return {"runs": [live_report(run) for run in runs if run.root in chosen]}


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
