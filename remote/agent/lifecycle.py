"""Launch, stop and restart runs. Launching is idempotent: a run id that exists is not started again."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from remote.agent import code_store, passed_rehearsals
from remote.agent.status import find_run, live_report
from remote.contract import protocol, states
from remote.contract.events import Event, RunNote
from remote.contract.files import TEMP_PREFIX, append_jsonl, displace, read_json, remove, write_json
from remote.contract.launches import LaunchReply, LaunchRequest, RunEntry
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.ownership import check_project, check_run, make_private
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import write_record
from remote.contract.replies import NotStopped, RestartReply, StopReply
from remote.contract.requests import RestartRequest, StopRequest
from remote.contract.run_record import HostRecord, RestartRecord, ResumeRecord, RunRecord, RunRef, StopRecord
from remote.contract.schema import Malformed, to_json
from remote.host import launchers, reboot, run_state, slots
from remote.host.liveness import is_live, will_respawn
from remote.host.process import boot_id

POLL = 0.02  # seconds
UNSUPERVISED_GRACE = 10.0  # seconds that a worker without a supervisor gets to end


def launch(paths: ProjectPaths, request: LaunchRequest) -> LaunchReply:
    """Start all runs of the request, or none: if the snapshot is missing, or jobs must be rehearsed first.

    Returns:
        Whether the box has the snapshot, the jobs that must be rehearsed, and the reports of the runs.

    Raises:
        AgentError: The runs cannot be started, for example because the job is already running.
    """
    tree = request.code.tree
    if not code_store.has(paths, tree):
        return LaunchReply(have_code=False)
    launchers.check(request.host.launcher)
    if paths.is_rehearsing:
        passed_rehearsals.remove_ended(paths, [entry.job.name for entry in request.runs])
    environment = passed_rehearsals.environment(request.host.python)
    for key in request.passed:
        passed_rehearsals.remember(paths, key, environment)
    unrehearsed = passed_rehearsals.missing(paths, request.rehearsed, environment)
    if unrehearsed:
        return LaunchReply(have_code=True, unrehearsed=tuple(unrehearsed))
    with locked(paths.launch_lock()):
        check_project(paths)  # again: a first launch has just created its directory
        runs = [_new_run(paths, entry) for entry in request.runs]
        needs = _resolve_needs(paths, request.runs)
        sources = {entry.run_id: _resume_source(paths, entry) for entry in request.runs}
        for run, entry in zip(runs, request.runs):
            if not run.root.exists():
                _write_secrets(paths, run, entry.secrets)
            _create(run, _record(run, request, entry, needs[run.job], sources[run.run_id]))
            if entry.job.gpus and not (entry.job.needs or entry.job.prepare or entry.job.environment):
                slots.announce(paths.slots, slots.ticket_name(run))  # it has to wait only for devices
    if not paths.is_rehearsing and request.host.survive_reboot:
        reboot.ensure(paths)
    for run in runs:
        if not (is_held(run.supervisor_lock) or will_respawn(run) or run_state.has_ended(run)):
            launchers.start(request.host.launcher, run)
    _wait_until_started(runs, request.confirm_s)
    return LaunchReply(have_code=True, runs=tuple(map(live_report, runs)))


def stop(paths: ProjectPaths, request: StopRequest) -> StopReply:
    """Ask the supervisors of the runs to stop them. A run without a supervisor is ended here.

    Raises:
        AgentError: There is no such run; or the only run of the request cannot be stopped.
    """
    runs = [find_run(paths, *name) for name in request.runs]
    stopped: List[RunPaths] = []
    had_ended: List[Tuple[str, str]] = []
    errors: List[NotStopped] = []
    for run in runs:
        try:
            if not _stop(paths, run, request.by):
                had_ended.append((run.job, run.run_id))
            stopped.append(run)
        except (AgentError, OSError) as error:  # still stop the others
            if len(runs) == 1:
                raise
            known = error if isinstance(error, AgentError) else AgentError("os_error", f"the box reports: {error}")
            errors.append(NotStopped(run.job, run.run_id, known.record))
    return StopReply(tuple(map(live_report, stopped)), tuple(had_ended), tuple(errors))


def _stop(paths: ProjectPaths, run: RunPaths, by: str) -> bool:
    """Stop one run. Return False if it had already ended."""
    check_run(run)
    had_ended = run_state.has_ended(run)
    if not had_ended:
        displace(run.stop)
        write_record(run.stop, StopRecord(time.time(), by), durable=True)
    _end_unsupervised(paths, run)
    return not had_ended


def restart(paths: ProjectPaths, request: RestartRequest) -> RestartReply:
    """Continue ended runs from their last checkpoints, in the same directories and snapshots. Restart all, or none.

    The request contains the secrets, because the box deletes those of an ended run.

    Raises:
        AgentError: One of the runs cannot be restarted.
    """
    with locked(paths.launch_lock()):
        runs = [find_run(paths, *name) for name in request.runs]
        hosts = [_check_restartable(paths, run) for run in runs]
        for run in runs:
            moment = RestartRecord(time.time(), protocol.monotonic(), boot_id(), request.by)
            _write_secrets(paths, run, request.secrets.get(run.job) or {})
            for path in (run.stop, run.restarted, run.events):
                displace(path)  # in case a worker put something else in its place
            remove(run.stop)
            write_record(run.restarted, moment, durable=True)
            append_jsonl(run.events, to_json(Event(time.time(), RunNote(restarted_by=request.by))))
            run_state.enter(run, protocol.Queued(time.time(), states.A_SUPERVISOR))
    for run, host in zip(runs, hosts):
        if host.survive_reboot:
            reboot.ensure(paths)
        launchers.start(host.launcher, run)
    _wait_until_started(runs, request.confirm_s)
    return RestartReply(tuple(map(live_report, runs)))


def _check_restartable(paths: ProjectPaths, run: RunPaths) -> HostRecord:
    """Return the host in run.json. Raise AgentError unless the run has ended and can be restarted."""
    check_run(run)
    try:
        record = RunRecord.read(read_json(run.run))
    except Malformed:
        hint = f"launch the job again; its files are in {run.root} on the box"
        message = f"{run.job} {run.run_id}: its run.json cannot be read or is damaged"
        raise AgentError("damaged", message, hint) from None
    if run_state.has_succeeded(run):
        raise AgentError("succeeded", f"{run.job} {run.run_id} has already succeeded; nothing to restart")
    if not code_store.has(paths, record.code.tree):
        raise AgentError("no_code", f"{run.job} {run.run_id}: its code is no longer on the box", "launch it again")
    for other in paths.all_runs():
        if other.job == run.job and is_live(other):
            raise _already_running(other)
    return record.host


def _already_running(run: RunPaths) -> AgentError:
    hint = f"to follow it: orch tail {run.job}; to stop it: orch stop {run.job}"
    return AgentError("already_running", f"{run.job} is already running (run {run.run_id})", hint)


def _new_run(paths: ProjectPaths, entry: RunEntry) -> RunPaths:
    run = paths.run(entry.job.name, entry.run_id)
    for other in paths.all_runs():
        if other.job == run.job and other.run_id != run.run_id and is_live(other):
            if paths.is_rehearsing:
                what = f"{run.job} is being rehearsed for another launch, which may have been interrupted"
                raise AgentError("rehearsing", what, "launch it again in a minute")
            raise _already_running(other)
    check_run(run)
    return run


def _resolve_needs(paths: ProjectPaths, entries: Sequence[RunEntry]) -> Dict[str, Tuple[RunRef, ...]]:
    """Return, for each job, the runs that it waits for.

    Each is a run of this launch, else the newest live run of the needed job, else the one that succeeded last.
    """
    launched = {entry.job.name: entry.run_id for entry in entries}
    wanted = {need for entry in entries for need in entry.job.needs}
    runs = [run for run in paths.all_runs() if run.job in wanted]
    usable = {run.job: run.run_id for run in runs if run_state.has_succeeded(run)}
    usable.update({run.job: run.run_id for run in runs if is_live(run)})
    usable.update(launched)
    needs: Dict[str, Tuple[RunRef, ...]] = {}
    for entry in entries:
        for need in entry.job.needs:
            if need not in usable:
                message = f"{entry.job.name} needs {need}, of which no run is running or has succeeded here"
                raise AgentError("need_missing", message, f"launch both: orch launch {need} {entry.job.name}")
        needs[entry.job.name] = tuple(RunRef(need, usable[need]) for need in entry.job.needs)
    return needs


def _resume_source(paths: ProjectPaths, entry: RunEntry) -> Optional[ResumeRecord]:
    """Return the newest complete checkpoint of the run that a new run is to resume from; None if it names no run.

    Raises:
        AgentError: There is no such run, or no such checkpoint.
    """
    if entry.resume_from is None or paths.run(entry.job.name, entry.run_id).root.exists():
        return None
    from remote.supervisor.checkpoint_files import settled  # imported only here: few launches resume

    run = find_run(paths, entry.resume_from.job, entry.resume_from.run_id)
    check_run(run)
    named = f"{run.job} {run.run_id}"
    try:
        record = RunRecord.read(read_json(run.run))
    except Malformed:
        raise AgentError("damaged", f"{named}: its run.json cannot be read or is damaged") from None
    globs = record.job.checkpoints or entry.job.checkpoints
    found = settled(run, record, globs, is_running=is_live(run))
    if not found.found:
        why = f" ({found.problems[0]})" if found.problems else ""
        message = f"{named} has no complete checkpoint to resume from{why}: looked for {', '.join(globs)}"
        raise AgentError("no_checkpoint", message, f"to start from the beginning: orch launch {entry.job.name}")
    return ResumeRecord(found.found[0].path, entry.resume_from)


def _record(
    run: RunPaths, request: LaunchRequest, entry: RunEntry, needs: Tuple[RunRef, ...], source: Optional[ResumeRecord]
) -> RunRecord:
    return RunRecord(
        run_id=entry.run_id,
        project=ProjectPaths.of_run(run).project,
        job=entry.job,
        host=request.host,
        code=request.code,
        versions={**request.versions, "box_python": sys.version.split()[0]},
        by=request.by,
        created=time.time(),
        monotonic=protocol.monotonic(),
        boot=boot_id(),
        needs=needs,
        resume_from=source,
        attach=launchers.attach_command(request.host.launcher, run),
    )


def _create(run: RunPaths, record: RunRecord) -> None:
    """Create the run directory in one step, unless it exists."""
    if run.root.exists():
        return
    draft = RunPaths(run.root.with_name(TEMP_PREFIX + run.run_id))
    shutil.rmtree(str(draft.root), ignore_errors=True)
    for directory in (draft.root, draft.checkpoints, draft.diagnostics, draft.results):
        directory.mkdir(mode=0o700, parents=True)
    write_record(draft.run, record, durable=True)
    write_record(draft.state, protocol.Queued(time.time(), states.A_SUPERVISOR), durable=True)
    draft.log.touch(mode=0o600)
    draft.root.rename(run.root)


def _write_secrets(paths: ProjectPaths, run: RunPaths, secrets: Mapping[str, str]) -> None:
    """Write the secrets to a file of mode 0600. The supervisor reads it, and removes it when the run has ended."""
    if secrets:
        paths.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(paths.secrets)
        write_json(paths.secrets_of(run), secrets)


def _wait_until_started(runs: Sequence[RunPaths], timeout: float) -> None:
    until = time.monotonic() + timeout
    while time.monotonic() < until and not all(
        states.has_settled(run_state.read_state(run), time.time()) for run in runs
    ):
        time.sleep(POLL)


def _stop_signal(run: RunPaths) -> str:
    try:
        return RunRecord.read(read_json(run.run)).job.stop_signal
    except Malformed:
        return "SIGTERM"


def _end_unsupervised(paths: ProjectPaths, run: RunPaths) -> None:
    """End a run that has no supervisor, and no respawn loop that would start one."""
    lock = (
        None if will_respawn(run) else try_lock(run.supervisor_lock, timeout=1.0)
    )  # `is_held` may take it for a moment
    if lock is None:
        return
    from remote.supervisor.attempt import end_leftovers

    try:
        end_leftovers(run, {}, UNSUPERVISED_GRACE, _stop_signal(run))
        if run_state.has_recorded_end(run):
            return
        detail = "its supervisor was gone; ended by `orch stop`"
        run_state.enter(run, protocol.Stopped(time.time(), "asked", detail))
        run_state.tidy(run)
        reboot.release(paths)
    finally:
        os.close(lock)
