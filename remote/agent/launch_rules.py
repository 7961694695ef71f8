"""What a launch must respect: other runs of its jobs, and the runs that its jobs need."""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from remote.contract.files import read_json, to_json
from remote.contract.launches import LaunchRequest, RunEntry
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import HostRecord, JobRecord, RunRecord, RunRef
from remote.contract.schema import Malformed
from remote.contract.schema import to_json as as_object
from remote.host import run_state
from remote.host.liveness import is_live

MAX_NAMED = 5  # runs that an error names

Needs = Dict[str, Tuple[RunRef, ...]]  # by run id


def check(paths: ProjectPaths, request: LaunchRequest) -> Needs:
    """Return the runs that each run of a launch waits for.

    Raises:
        AgentError: The launch must be refused because of other runs, or because there are none that it needs.
    """
    check_live(paths, request)
    needs = resolve_needs(paths, request.runs)
    check_repeated(paths, request, needs)
    return needs


def already_running(run: RunPaths) -> AgentError:
    """Return the error for a job that has a live run, which may not have another one."""
    hint = f"to follow it: orch tail {run.job}; to stop it: orch stop {run.job}"
    return AgentError("already_running", f"{run.job} is already running (run {run.run_id})", hint)


def check_live(paths: ProjectPaths, request: LaunchRequest) -> None:
    """Raise AgentError if jobs may not be started because they are live.

    Raises:
        AgentError: `rehearsing`: one is being rehearsed. `already_running`: one has a live run, and the request does
            not say `beside`.
    """
    if request.beside and not paths.is_rehearsing:
        return
    for other in _others(paths, request):
        if not is_live(other):
            continue
        if paths.is_rehearsing:
            what = f"{other.job} is being rehearsed for another launch, which may have been interrupted"
            raise AgentError("rehearsing", what, "launch it again in a minute")
        raise already_running(other)


def check_repeated(paths: ProjectPaths, request: LaunchRequest, needs: Needs) -> None:
    """Raise AgentError if runs of the request repeat others, unless it says `again`.

    Args:
        paths: The project.
        request: The launch.
        needs: The runs that each of its runs waits for.

    Raises:
        AgentError: `already_running`: a run with the same code and settings is live. `already_succeeded`: one has
            succeeded.
    """
    if paths.is_rehearsing or request.again or not request.beside:
        return
    wanted = {
        _identity(request.code.tree, entry.job, request.host, needs[entry.run_id], entry.resume_from)
        for entry in request.runs
        if not paths.run(entry.job.name, entry.run_id).root.exists()  # otherwise this request was sent before
    }
    others = _others(paths, request) if wanted else ()
    same = [run for run, identity in _identities(others, request.code.tree) if identity in wanted]
    live = [run for run in same if is_live(run)]
    succeeded = [run for run in same if run_state.has_succeeded(run)]
    if live:
        raise AgentError("already_running", *_repeated(live, "is already running", "are already running"))
    if succeeded:
        raise AgentError("already_succeeded", *_repeated(succeeded, "has already succeeded", "have already succeeded"))


def _others(paths: ProjectPaths, request: LaunchRequest) -> List[RunPaths]:
    """Return the runs of the jobs of a launch that are not part of it."""
    own = {(entry.job.name, entry.run_id) for entry in request.runs}
    jobs = {entry.job.name for entry in request.runs}
    return [run for run in paths.all_runs() if run.job in jobs and (run.job, run.run_id) not in own]


def _repeated(runs: Sequence[RunPaths], one_does: str, several_do: str) -> Tuple[str, str]:
    """Return the message and the hint about runs that a launch would repeat."""
    hint = f"to look at it: orch status {runs[-1].run_id}; to launch it all the same: --again"
    if len(runs) == 1:
        return f"{runs[0].job} {one_does} with the same code and settings (run {runs[0].run_id})", hint
    more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
    which = ", ".join(f"{run.job} {run.run_id}" for run in runs[:MAX_NAMED]) + more
    return f"{len(runs)} runs with the same code and settings {several_do}: {which}", hint


def _identities(runs: Sequence[RunPaths], tree: str) -> Iterator[Tuple[RunPaths, bytes]]:
    """Yield the runs of a snapshot with what tells each from runs that do the same."""
    for run in runs:
        value = read_json(run.run) or {}
        code = value.get("code")
        if not isinstance(code, dict) or code.get("tree") != tree:
            continue  # most runs: do not read the rest
        try:
            record = RunRecord.read(value)
        except Malformed:
            continue
        source = record.resume_from.run if record.resume_from else None
        yield run, _identity(tree, record.job, record.host, record.needs, source)


def _identity(
    tree: str, job: JobRecord, host: HostRecord, needs: Tuple[RunRef, ...], source: Optional[RunRef]
) -> bytes:
    return to_json([tree, *map(as_object, (job, host, needs, source))])


def resolve_needs(paths: ProjectPaths, entries: Sequence[RunEntry]) -> Needs:
    """Return, for each run of a launch, the runs that it waits for.

    Each is a run of this launch (of several, one whose `values` the run has too), else the newest live run of the
    needed job, else the one that succeeded last.

    Raises:
        AgentError: `need_missing`: There is no such run.
    """
    launched: Dict[str, List[RunEntry]] = {}
    for entry in entries:
        launched.setdefault(entry.job.name, []).append(entry)
    wanted = {need for entry in entries for need in entry.job.needs}
    runs = [run for run in paths.all_runs() if run.job in wanted]
    usable = {run.job: run.run_id for run in runs if run_state.has_succeeded(run)}
    usable.update({run.job: run.run_id for run in runs if is_live(run)})
    needs: Needs = {}
    for entry in entries:
        found: List[RunRef] = []
        for need in entry.job.needs:
            run_id = _of_launch(launched.get(need, ()), entry) or usable.get(need)
            if run_id is None:
                message = f"{entry.job.name} needs {need}, of which no run is running or has succeeded here"
                raise AgentError("need_missing", message, f"launch both: orch launch {need} {entry.job.name}")
            found.append(RunRef(need, run_id))
        needs[entry.run_id] = tuple(found)
    return needs


def _of_launch(needed: Sequence[RunEntry], entry: RunEntry) -> Optional[str]:
    """Return the run of the same launch that a run needs, of several the one that has most `values` in common."""
    fitting = [other for other in needed if other.values.items() <= entry.values.items()] or needed
    return max(fitting, key=lambda other: (len(other.values), other.run_id)).run_id if fitting else None
