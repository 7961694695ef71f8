"""End runs that can no longer be supervised, and clean up at the end of every run."""

from __future__ import annotations

import os
import time

from remote.contract import protocol
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.records import write_record
from remote.contract.run_record import RunRecord
from remote.contract.schema import Malformed
from remote.host import run_state
from remote.host.process import end_family
from remote.host.run_state import Recorder
from remote.supervisor.attempt import end_leftovers

GRACE_S = 5.0  # seconds for processes that a worker left behind


def without_directory(run: RunPaths) -> None:
    """End the processes of a run whose directory is gone. There is no place to record this."""
    end_family(0, 0, GRACE_S, ended=lambda: True, run_dir=str(run.root))
    run_state.tidy(run)


def without_record(run: RunPaths, error: Malformed) -> None:
    """End a run whose run.json is damaged: its command and its limits are unknown."""
    end_leftovers(run, {}, GRACE_S)
    recorder = Recorder(run)
    run_state.tidy(run)
    where = f": {error}" if error.field else ""
    detail = f"run.json, which says what to run, cannot be read{where}"
    recorder.enter(protocol.Failed(time.time(), "damaged", detail))
    settle(run, recorder)


def restore_directory(run: RunPaths, record: RunRecord) -> None:
    """Create a missing run directory again, for run.json and the final state.

    Nothing is created if the whole project was removed, or if a file or a link is in its place.
    """
    try:
        if not os.path.lexists(str(run.root)):
            run.root.mkdir(mode=0o700)
        try_lock(run.supervisor_lock)  # kept until this process ends, so that no other supervisor takes the run
        if not run.run.exists():
            write_record(run.run, record)
    except OSError:
        pass  # for example a full disk


def settle(run: RunPaths, recorder: Recorder) -> None:
    """Block until the final state is durable, then remove what only a live run needs."""
    if run.root.is_dir():
        recorder.settle()
    run_state.tidy(run)  # again: on a full or read-only disk the first attempt may have failed
    from remote.host import reboot

    reboot.release(ProjectPaths.of_run(run))
