"""The process of a supervisor: take the run's lock, redirect stderr to its log, supervise, record any error."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from remote.contract.files import open_own, read_json
from remote.contract.locks import try_lock
from remote.contract.ownership import refusal
from remote.contract.paths import RunPaths
from remote.contract.processes import SupervisorRecord
from remote.contract.records import write_record
from remote.contract.run_record import RunRecord
from remote.contract.schema import Malformed
from remote.host import run_state
from remote.host.process import identity
from remote.supervisor import endings
from remote.supervisor.supervisor import Supervisor

TERMINATED = 128 + int(signal.SIGTERM)  # the exit code after SIGTERM


def supervise(directory: Path) -> int:
    """Supervise the run in `directory` until it ends.

    Returns:
        The exit code: 0 if there is nothing left to do; otherwise the respawn loop starts another supervisor.
    """
    run = RunPaths(directory)
    problem = refusal(run)
    if problem:  # report this on our stderr, and write no file
        sys.stderr.write(f"orch: {run.job} {run.run_id} is not supervised: {problem}\n")
        return 0
    if run.root.is_symlink() or not run.root.is_dir():
        endings.without_directory(run)
        return 0
    if try_lock(run.supervisor_lock, timeout=5) is None or run_state.has_recorded_end(run):
        return 0
    with os.fdopen(open_own(run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # under tmux it would be lost with the terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal or the connection that started us is gone
    _record_ourselves(run)
    try:
        record = RunRecord.read(read_json(run.run))
    except Malformed as error:
        endings.without_record(run, error)
        return 0
    supervisor = Supervisor(run, record)
    signal.signal(signal.SIGTERM, lambda number, frame: supervisor.control.terminate())
    try:
        is_over = supervisor.run_to_end()
    except Exception as error:  # noqa: BLE001 - the outermost loop: the run must record any error
        import traceback  # imported late: a healthy run does not need it, and starts faster without it

        _print_error(supervisor.masked(traceback.format_exc()))
        is_over = supervisor.give_up(error)
        if not is_over:
            return 1  # the respawn loop starts another, which takes over what runs
    if not is_over:
        supervisor.recorder.flush()
        return TERMINATED
    endings.settle(run, supervisor.recorder)
    return 0


def _record_ourselves(run: RunPaths) -> None:
    """Record our pid and the respawn loop's, so that others can find us."""
    pid, loop = os.getpid(), os.getppid()
    try:
        write_record(run.supervisor, SupervisorRecord(pid, identity(pid), loop, identity(loop)))
    except OSError:
        pass  # a full disk


def _print_error(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass  # our log is on a full disk
