"""The end of a run that cannot be supervised any more, and what is done at the end of every run."""

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

GRACE_S = 5.0  # for what a worker left behind


def without_directory(run: RunPaths) -> None:
    """End what is left of a run whose directory is gone; there is no place to say anything in."""
    end_family(0, 0, GRACE_S, ended=lambda: True, run_dir=str(run.root))
    run_state.tidy(run)


def without_record(run: RunPaths, error: Malformed) -> None:
    """End a run whose run.json is damaged: nobody knows any more what it was to do, nor how long it may take."""
    end_leftovers(run, {}, GRACE_S)
    recorder = Recorder(run)
    run_state.tidy(run)
    where = f": {error}" if error.field else ""
    detail = f"run.json, which says what to run, cannot be read{where}"
    recorder.enter(protocol.Failed(time.time(), "damaged", detail))
    settle(run, recorder)


def restore_directory(run: RunPaths, record: RunRecord) -> None:
    """Make a directory that is gone again, for run.json and how the run ended.

    Nothing is made where the whole project was removed, or where a file or a link lies in its place.
    """
    try:
        if not os.path.lexists(str(run.root)):
            run.root.mkdir(mode=0o700)
        try_lock(run.supervisor_lock)  # held until this process ends, so that nobody supervises the run anew
        if not run.run.exists():
            write_record(run.run, record)
    except OSError:
        pass  # a full disk, say


def settle(run: RunPaths, recorder: Recorder) -> None:
    """Block until the end is durable, then remove what only a live run needs."""
    if run.root.is_dir():
        recorder.settle()
    run_state.tidy(run)  # the disk may not have let go of it before
    from remote.host import reboot

    reboot.release(ProjectPaths.of_run(run))
