"""Starting and stopping runs. Launching is idempotent: a run id that is there already is not started again."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any, Dict, List, Mapping, Sequence

from remote import launchers, protocol, rehearsals, slots, states, trees
from remote.files import TEMP_PREFIX, remove, write_json
from remote.locks import is_held, locked, try_lock
from remote.paths import NAME, RUN_ID, TREE_HASH, ProjectPaths, RunPaths
from remote.protocol import AgentError
from remote.runs import find_run, is_live, live_report, worker_lives

POLL = 0.02  # seconds
UNSUPERVISED_GRACE = 10.0  # seconds that a worker without a supervisor gets to end


def launch(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Start every run of the request, or none: `{"have_code": false}` while its snapshot is not here,
    `{"unrehearsed": [job, ...]}` while jobs of `rehearsed` (job -> key) have not passed their rehearsal here.
    """
    tree = str(args.get("code", {}).get("tree"))
    if not TREE_HASH.fullmatch(tree):
        raise AgentError("bad_request", f"{tree!r} is no tree hash")
    if not trees.has(paths, tree):
        return {"have_code": False}
    launcher = str(args["host"]["launcher"])
    launchers.check(launcher)
    if args.get("rehearsal"):
        rehearsals.remove_ended(paths, [entry["job"]["name"] for entry in args["runs"]])
    environment = rehearsals.environment(str(args["host"].get("python") or "python3"))
    for key in args.get("passed", ()):
        rehearsals.remember(paths, key, environment)
    unrehearsed = rehearsals.missing(paths, args.get("rehearsed") or {}, environment)
    if unrehearsed:
        return {"have_code": True, "unrehearsed": unrehearsed}
    with locked(paths.launch_lock()):
        runs = [_new_run(paths, entry) for entry in args["runs"]]
        needs = _resolve_needs(paths, args["runs"])
        for run, entry in zip(runs, args["runs"]):
            _keep_secrets(paths, run, entry.get("secrets") or {})
            _create(run, {**_record(args, entry), "needs": needs[run.job]})
            if entry["job"]["gpus"] and not entry["job"]["needs"] and not entry["job"]["prepare"]:
                slots.announce(paths.slots, slots.place(run))  # it goes to the queue at once
    for run in runs:
        if not (is_held(run.supervisor_lock) or worker_lives(run) or states.has_ended(run)):
            launchers.start(launcher, run)
    _wait_until_started(runs, float(args.get("confirm_s", 0)))
    return {"have_code": True, "runs": [live_report(run) for run in runs]}


def stop(paths: ProjectPaths, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Ask runs to stop; their supervisors see to it. A run without one is ended here."""
    runs = [find_run(paths, *pair) for pair in args["runs"]]
    for run in runs:
        if not states.has_ended(run):
            write_json(run.stop, {"time": time.time(), "by": str(args.get("by", ""))}, durable=True)
            _end_unsupervised(paths, run)
    return {"runs": [live_report(run) for run in runs]}


def _new_run(paths: ProjectPaths, entry: Mapping[str, Any]) -> RunPaths:
    job, run_id = entry["job"]["name"], entry["run_id"]
    if not (NAME.fullmatch(job) and RUN_ID.fullmatch(run_id)):
        raise AgentError("bad_request", f"{job!r}, {run_id!r} do not name a run")
    run = paths.run(job, run_id)
    for other in paths.all_runs():
        if other.job == job and other.run_id != run_id and is_live(other):
            hint = f"`orch tail {job}` follows it, `orch stop {job}` ends it"
            raise AgentError("already_running", f"{job} is already at work as run {other.run_id}", hint)
    return run


def _resolve_needs(paths: ProjectPaths, entries: Sequence[Mapping[str, Any]]) -> Dict[str, List[Dict[str, str]]]:
    """For each job, the runs that it waits for: of this launch, or the newest that lives or has succeeded."""
    launched = {entry["job"]["name"]: entry["run_id"] for entry in entries}
    usable = {run.job: run.run_id for run in paths.all_runs() if is_live(run) or states.has_succeeded(run)}
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
        "versions": {**args.get("versions", {}), "box_python": sys.version.split()[0]},
        "created": time.time(),
        "by": args.get("by", ""),
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


def _keep_secrets(paths: ProjectPaths, run: RunPaths, secrets: Mapping[str, str]) -> None:
    """In a file of mode 0600 that the run's supervisor reads, and removes at the run's end."""
    if secrets and not run.root.exists():
        paths.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(paths.secrets_of(run), secrets)


def _wait_until_started(runs: Sequence[RunPaths], patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and not all(_has_started(run) for run in runs):
        time.sleep(POLL)


def _has_started(run: RunPaths) -> bool:
    state = states.read_state(run)
    if isinstance(state, protocol.Queued):
        return state.waiting_for != states.A_SUPERVISOR
    return state is not None and not isinstance(state, protocol.Starting)


def _end_unsupervised(paths: ProjectPaths, run: RunPaths) -> None:
    lock = try_lock(run.supervisor_lock)
    if lock is None:
        return
    from remote.process import end_group, is_alive

    try:
        state = states.read_state(run)
        if isinstance(state, protocol.Running) and is_alive(state.pid, state.identity):
            pid, known_as = state.pid, state.identity
            end_group(pid, UNSUPERVISED_GRACE, lambda: not is_alive(pid, known_as))
        detail = "its supervisor was gone; ended by `orch stop`"
        states.enter(run, protocol.Stopped(time.time(), "asked", detail))
        remove(paths.secrets_of(run))
    finally:
        os.close(lock)
