"""Starting and stopping runs. Launching is idempotent: a run id that is there already is not started again."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any, Dict, List, Mapping, Sequence

from remote.agent import code_store, passed_rehearsals
from remote.agent.status import find_run, live_report
from remote.contract import protocol, states
from remote.contract.files import TEMP_PREFIX, append_jsonl, displace, read_json, remove, write_json
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.ownership import check_project, check_run, make_private
from remote.contract.paths import NAME, RUN_ID, TREE_HASH, ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.host import launchers, reboot, run_state, slots
from remote.host.liveness import is_guarded, is_live
from remote.host.process import boot_id
from remote.supervisor import history

POLL = 0.02  # seconds
UNSUPERVISED_GRACE = 10.0  # seconds that a worker without a supervisor gets to end


def launch(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Start every run of the request, or none: `{"have_code": false}` while its snapshot is not here,
    `{"unrehearsed": [job, ...]}` while jobs of `rehearsed` (job -> key) have not passed their rehearsal here.
    """
    tree = str(args.get("code", {}).get("tree"))
    if not TREE_HASH.fullmatch(tree):
        raise AgentError("bad_request", f"{tree!r} is no tree hash")
    if not code_store.has(paths, tree):
        return {"have_code": False}
    launcher = str(args["host"]["launcher"])
    launchers.check(launcher)
    if args.get("rehearsal"):
        passed_rehearsals.remove_ended(paths, [entry["job"]["name"] for entry in args["runs"]])
    environment = passed_rehearsals.environment(str(args["host"].get("python") or "python3"))
    for key in args.get("passed") or ():
        passed_rehearsals.remember(paths, key, environment)
    unrehearsed = passed_rehearsals.missing(paths, args.get("rehearsed") or {}, environment)
    if unrehearsed:
        return {"have_code": True, "unrehearsed": unrehearsed}
    with locked(paths.launch_lock()):
        check_project(paths)  # again: now it is there
        runs = [_new_run(paths, entry) for entry in args["runs"]]
        needs = _resolve_needs(paths, args["runs"])
        for run, entry in zip(runs, args["runs"]):
            if not run.root.exists():
                _write_secrets(paths, run, entry.get("secrets") or {})
            _create(run, {**_record(args, entry), "needs": needs[run.job]})
            job = entry["job"]
            if job.get("gpus") and not job["needs"] and not job.get("prepare"):
                slots.announce(paths.slots, slots.place(run))  # it goes to the queue at once
    if not args.get("rehearsal"):
        _survive_reboot(paths, args["host"])
    for run in runs:
        if not (is_held(run.supervisor_lock) or is_guarded(run) or run_state.has_ended(run)):
            launchers.start(launcher, run)
    _wait_until_started(runs, float(args.get("confirm_s") or 0))
    return {"have_code": True, "runs": [live_report(run) for run in runs]}


def stop(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Ask runs to stop; their supervisors see to it. What no supervisor looks after is ended here.

    `had_ended` lists those that had ended before, so that nobody takes them for stopped just now; `errors` has what
    kept single runs from being stopped, which are not in `runs`.
    """
    runs = [find_run(paths, *pair) for pair in args["runs"]]
    by = str(args.get("by") or "")
    stopped: List[RunPaths] = []
    had_ended: List[List[str]] = []
    errors: List[Dict[str, str]] = []
    for run in runs:
        try:
            if not _stop(paths, run, by):
                had_ended.append([run.job, run.run_id])
            stopped.append(run)
        except (AgentError, OSError) as error:  # the others are to be stopped all the same
            if len(runs) == 1:
                raise
            said = error if isinstance(error, AgentError) else AgentError("os_error", f"the box's system says: {error}")
            errors.append({"job": run.job, "run_id": run.run_id, **said.to_json()})
    return {"runs": [live_report(run) for run in stopped], "had_ended": had_ended, "errors": errors}


def _stop(paths: ProjectPaths, run: RunPaths, by: str) -> bool:
    """False where it had ended before."""
    check_run(run)
    had_ended = run_state.has_ended(run)
    if not had_ended:
        displace(run.stop)
        write_json(run.stop, {"time": time.time(), "by": by}, durable=True)
    _end_unsupervised(paths, run)
    return not had_ended


def restart(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Let ended runs go on from their last checkpoint, in their own directory and snapshot, as at a launch.

    `secrets` (job -> name -> value) come anew: those of an ended run are gone. All of it is refused, or nothing.
    """
    with locked(paths.launch_lock()):
        runs = [find_run(paths, *pair) for pair in args["runs"]]
        for run in runs:
            _check_restartable(paths, run)
        for run in runs:
            moment = {
                "time": time.time(),
                "monotonic": protocol.monotonic(),
                "boot": boot_id(),
                "by": args.get("by") or "",
            }
            _write_secrets(paths, run, (args.get("secrets") or {}).get(run.job) or {})
            for path in (run.stop, run.restarted, run.events):
                displace(path)  # what a worker made in the place of our own files
            remove(run.stop)
            write_json(run.restarted, moment, durable=True)
            append_jsonl(run.events, {"time": time.time(), history.RESTARTED: str(args.get("by") or "")})
            run_state.enter(run, protocol.Queued(time.time(), states.A_SUPERVISOR))
    for run in runs:
        host = (read_json(run.run) or {})["host"]
        _survive_reboot(paths, host)
        launchers.start(str(host["launcher"]), run)
    _wait_until_started(runs, float(args.get("confirm_s") or 0))
    return {"runs": [live_report(run) for run in runs]}


def _check_restartable(paths: ProjectPaths, run: RunPaths) -> None:
    check_run(run)
    record = read_json(run.run) or {}
    code, host = (record.get(name) for name in ("code", "host"))
    if not (isinstance(code, dict) and isinstance(host, dict) and host.get("launcher") in launchers.LAUNCHERS):
        hint = f"launch the job again; its files are in {run.root} on the box"
        raise AgentError("damaged", f"{run.job} {run.run_id}: its run.json cannot be read or is damaged", hint)
    if run_state.has_succeeded(run):
        raise AgentError("succeeded", f"{run.job} {run.run_id} has succeeded: there is nothing left to do for it")
    if not code_store.has(paths, str(code.get("tree"))):
        raise AgentError("no_code", f"{run.job} {run.run_id}: its code is not on the box any more", "launch it anew")
    for other in paths.all_runs():
        if other.job == run.job and is_live(other):
            raise _already_running(other)


def _survive_reboot(paths: ProjectPaths, host: Mapping[str, Any]) -> None:
    if host.get("survive_reboot", True):
        reboot.ensure(paths)


def _already_running(run: RunPaths) -> AgentError:
    hint = f"`orch tail {run.job}` follows it, `orch stop {run.job}` ends it"
    return AgentError("already_running", f"{run.job} is already running (run {run.run_id})", hint)


def _new_run(paths: ProjectPaths, entry: Mapping[str, Any]) -> RunPaths:
    job, run_id = entry["job"]["name"], entry["run_id"]
    if not (NAME.fullmatch(job) and RUN_ID.fullmatch(run_id)):
        raise AgentError("bad_request", f"{job!r}, {run_id!r} do not name a run")
    run = paths.run(job, run_id)
    for other in paths.all_runs():
        if other.job == job and other.run_id != run_id and is_live(other):
            raise _already_running(other)
    check_run(run)
    return run


def _resolve_needs(paths: ProjectPaths, entries: Sequence[Mapping[str, Any]]) -> Dict[str, List[Dict[str, str]]]:
    """For each job, the runs that it waits for: of this launch, or the newest live one, or that has succeeded last."""
    launched = {entry["job"]["name"]: entry["run_id"] for entry in entries}
    wanted = {need for entry in entries for need in entry["job"]["needs"]}
    runs = [run for run in paths.all_runs() if run.job in wanted]
    usable = {run.job: run.run_id for run in runs if run_state.has_succeeded(run)}
    usable.update({run.job: run.run_id for run in runs if is_live(run)})
    usable.update(launched)
    needs: Dict[str, List[Dict[str, str]]] = {}
    for name, entry in zip(launched, entries):
        for need in entry["job"]["needs"]:
            if need not in usable:
                message = f"{name} needs {need}, of which no run is at work or has succeeded here"
                raise AgentError("need_missing", message, f"launch both: orch launch {need} {name}")
        needs[name] = [{"job": need, "run_id": usable[need]} for need in entry["job"]["needs"]]
    return needs


def _record(args: Mapping[str, Any], entry: Mapping[str, Any]) -> Dict[str, Any]:
    return {
        "schema": protocol.SCHEMA,
        "run_id": entry["run_id"],
        "project": args["project"],
        "job": entry["job"],
        "host": args["host"],
        "code": args["code"],
        "versions": {**(args.get("versions") or {}), "box_python": sys.version.split()[0]},
        "created": time.time(),
        "monotonic": protocol.monotonic(),
        "boot": boot_id(),
        "by": args.get("by") or "",
    }


def _create(run: RunPaths, record: Mapping[str, Any]) -> None:
    """The run directory appears whole, or not at all."""
    if run.root.exists():
        return
    draft = RunPaths(run.root.with_name(TEMP_PREFIX + run.run_id))
    shutil.rmtree(str(draft.root), ignore_errors=True)
    for directory in (draft.root, draft.checkpoints, draft.evidence, draft.results):
        directory.mkdir(mode=0o700, parents=True)
    attach = launchers.attach_command(record["host"]["launcher"], run)
    write_json(draft.run, {**record, "attach": attach}, durable=True)
    queued = protocol.Queued(time.time(), states.A_SUPERVISOR)
    write_json(draft.state, protocol.state_to_json(queued), durable=True)
    draft.log.touch(mode=0o600)
    draft.root.rename(run.root)


def _write_secrets(paths: ProjectPaths, run: RunPaths, secrets: Mapping[str, str]) -> None:
    """In a file of mode 0600 that the run's supervisor reads, and removes at the run's end."""
    if secrets:
        paths.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(paths.secrets)
        write_json(paths.secrets_of(run), secrets)


def _wait_until_started(runs: Sequence[RunPaths], patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and not all(_has_started(run) for run in runs):
        time.sleep(POLL)


def _has_started(run: RunPaths) -> bool:
    state = run_state.read_state(run)
    if isinstance(state, protocol.Queued):
        return state.waiting_for != states.A_SUPERVISOR
    return state is not None and not isinstance(state, protocol.Starting)


def _end_unsupervised(paths: ProjectPaths, run: RunPaths) -> None:
    """End what no supervisor looks after, and will not: its guard is gone too."""
    lock = None if is_guarded(run) else try_lock(run.supervisor_lock, patience=1.0)  # somebody may be looking
    if lock is None:
        return
    from remote.supervisor.attempt import end_leftovers

    try:
        end_leftovers(run, {}, UNSUPERVISED_GRACE)
        if run_state.has_recorded_end(run):
            return
        detail = "its supervisor was gone; ended by `orch stop`"
        run_state.enter(run, protocol.Stopped(time.time(), "asked", detail))
        run_state.tidy(run)
        reboot.release(paths)
    finally:
        os.close(lock)
