"""Whether a run is alive: its supervisor, its respawn loop, its worker."""

from __future__ import annotations

from typing import Optional

from remote.contract import protocol
from remote.contract.files import MAX_RECORD_BYTES, read_json
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from remote.contract.protocol import RunState
from remote.contract.states import is_awaiting, recorded
from remote.host.run_state import has_ended, read_state


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
    from remote.host.process import is_alive

    return is_alive(pid, str(known_as))


def worker_lives(run: RunPaths) -> bool:
    return _works(read_state(run))


def _works(state: Optional[RunState]) -> bool:
    if not isinstance(state, protocol.Running):
        return False
    from remote.host.process import boot_id, is_alive  # here alone: status of ended runs does without it

    return state.boot in ("", boot_id()) and is_alive(state.pid, state.identity)
