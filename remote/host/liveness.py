"""Check whether a run is alive: its supervisor, its respawn loop, its worker."""

from __future__ import annotations

from typing import Optional

from remote.contract import protocol
from remote.contract.files import MAX_RECORD_BYTES
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from remote.contract.processes import SupervisorRecord
from remote.contract.protocol import RunState
from remote.contract.records import read_record
from remote.contract.states import is_awaiting, recorded
from remote.host.run_state import has_ended


def is_live(run: RunPaths) -> bool:
    """Return whether the run has a supervisor, one that is about to start, or a worker that outlived it."""
    if is_held(run.supervisor_lock):
        return True
    state = recorded(run)  # read the state only once, because most runs have ended
    return not isinstance(state, protocol.Ended) and (_is_expected(run, state) or _has_worker(state))


def is_supervised(run: RunPaths) -> bool:
    """Return whether the run has a supervisor, or one is about to start: after its launch, or by its respawn loop."""
    if is_held(run.supervisor_lock):
        return True
    state = recorded(run)
    return not isinstance(state, protocol.Ended) and _is_expected(run, state)


def _is_expected(run: RunPaths, state: Optional[RunState]) -> bool:
    return is_awaiting(state) or _has_respawn_loop(run)


def will_respawn(run: RunPaths) -> bool:
    """Return whether the run has not ended and its respawn loop will replace a supervisor that ends."""
    return not has_ended(run) and _has_respawn_loop(run)


def _has_respawn_loop(run: RunPaths) -> bool:
    record = read_record(SupervisorRecord, run.supervisor, MAX_RECORD_BYTES)
    if record is None or not record.loop_pid:
        return False
    from remote.host.process import is_alive

    return is_alive(record.loop_pid, record.loop_identity)


def _has_worker(state: Optional[RunState]) -> bool:
    if not isinstance(state, protocol.Running):
        return False
    from remote.host.process import boot_id, is_alive  # imported only here: the status of ended runs does not need it

    return state.boot in ("", boot_id()) and is_alive(state.pid, state.identity)
