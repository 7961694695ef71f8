"""What the box says of its runs: one report each, made from the run's own files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from remote import protocol
from remote.files import TEMP_PREFIX, read_json
from remote.locks import is_held
from remote.paths import NAME, RUN_ID, ProjectPaths, RunPaths
from remote.protocol import AgentError
from remote.reports import report
from remote.states import has_ended, is_awaited, read_state


def find_run(paths: ProjectPaths, job: Any, run_id: Any) -> RunPaths:
    """The run of these names, or the job's newest for a run id of None. Raises AgentError where there is none."""
    if not (isinstance(job, str) and NAME.fullmatch(job)):
        raise AgentError("bad_request", f"{job!r} does not name a job")
    if run_id is None:
        runs = [run for run in paths.all_runs() if run.job == job]
        if not runs:
            raise AgentError("no_run", f"{job} has no run here", f"`orch launch {job}` starts one")
        return runs[-1]
    if not (isinstance(run_id, str) and RUN_ID.fullmatch(run_id) and paths.run(job, run_id).run.exists()):
        raise AgentError("no_run", f"{job} has no run {run_id} here", "`orch runs` lists them")
    return paths.run(job, run_id)


def is_live(run: RunPaths) -> bool:
    """Whether the run has something at work: a supervisor, one that is about to come, or a worker that outlived it."""
    return is_supervised(run) or worker_lives(run)


def is_supervised(run: RunPaths) -> bool:
    """Whether a supervisor has it, or is about to: at its launch, or because its guard starts another."""
    return is_held(run.supervisor_lock) or is_awaited(run) or is_guarded(run)


def is_guarded(run: RunPaths) -> bool:
    record = read_json(run.supervisor) or {}
    pid, known_as = record.get("guard_pid"), record.get("guard_identity")
    if not isinstance(pid, int) or pid <= 1 or has_ended(run):
        return False
    from remote.process import is_alive

    return is_alive(pid, str(known_as))


def worker_lives(run: RunPaths) -> bool:
    state = read_state(run)
    if not isinstance(state, protocol.Running):
        return False
    from remote.process import boot_id, is_alive  # here alone: status of ended runs does without it

    return state.boot in ("", boot_id()) and is_alive(state.pid, state.identity)


def live_report(run: RunPaths) -> Dict[str, Any]:
    return report(run, supervised=is_supervised(run))


def status(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Reports of `all` runs, of the `current` ones (the newest of each job and whatever else is live) or of `none`;
    and of those in `also` ([[job, run_id], ...]) as far as they are here.
    """
    which, also = args.get("which", "current"), args.get("also", [])
    runs = list(paths.all_runs())
    newest = {run.job: run for run in runs}  # all_runs goes from old to new

    def is_asked_for(run: RunPaths) -> bool:
        if which == "all" or [run.job, run.run_id] in also:
            return True
        return which == "current" and (newest[run.job] is run or is_live(run))

    return {"runs": [live_report(run) for run in runs if is_asked_for(run)]}


def inventory(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Where a run lies and which files it holds; what is no plain file is named as left out."""
    run = find_run(paths, args.get("job"), args.get("run_id"))
    files: List[List[Any]] = []
    left_out: List[str] = []
    for directory, directories, names in os.walk(str(run.root)):
        for name in directories + names:
            path = Path(directory, name)
            found = _lstat(path)
            if found is None or name.startswith(TEMP_PREFIX):
                continue
            relative = str(path.relative_to(run.root))
            if stat.S_ISREG(found.st_mode):
                files.append([relative, found.st_size])
            elif not stat.S_ISDIR(found.st_mode):
                left_out.append(relative)
    return {"path": str(run.root), "files": sorted(files), "left_out": sorted(left_out), "report": live_report(run)}


def _lstat(path: Path) -> Optional[os.stat_result]:
    try:
        return path.lstat()
    except OSError:
        return None  # gone in the meantime
