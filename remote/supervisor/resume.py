"""What an attempt continues from: the newest complete checkpoint that no earlier attempt has failed to load."""

from __future__ import annotations

import os
import signal
from typing import Dict, List, Mapping, NamedTuple, Sequence, Set, Tuple

from remote.contract import protocol
from remote.contract.events import AttemptEnded, Event
from remote.contract.paths import RunPaths
from remote.contract.run_record import RunRecord
from remote.contract.variables import expand
from remote.supervisor.failures import signal_of
from remote.supervisor.history import since_restart

AT_ONCE_S = 300.0  # an attempt that fails sooner, before its first step, may have a checkpoint that does not load
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
MAX_NOTES = 5  # checkpoints that are named as skipped


class Resumption(NamedTuple):
    """How an attempt continues."""

    path: str = ""  # the checkpoint, absolute; "" for none
    shown: str = ""  # the same, relative to the run directory
    arguments: Tuple[str, ...] = ()  # added to the command, with variables
    notes: Tuple[str, ...] = ()  # why other checkpoints are not used

    def environment(self, record: RunRecord) -> Dict[str, str]:
        """Return what is added to the environment of the attempt."""
        return {protocol.ENV_RESUME: self.path} if record.job.checkpoints else {}

    def words(self, env: Mapping[str, str]) -> List[str]:
        """Return the arguments with their variables replaced."""
        return expand(self.arguments, env)


def resumption(run: RunPaths, record: RunRecord, number: int, events: Sequence[Event]) -> Resumption:
    """Return how attempt `number` of a run continues.

    Args:
        run: The run.
        record: Its record.
        number: The number of the attempt. The first one continues only what the launch has named.
        events: The events so far.
    """
    job, source = record.job, record.resume_from
    if not job.checkpoints:
        return Resumption(arguments=job.resume if number > 1 else ())
    from remote.supervisor.checkpoint_files import settled, shown  # imported late: most runs do not need it

    own = settled(run, record, job.checkpoints) if number > 1 else None
    paths = [each.path for each in own.found] if own else []
    paths += [source.path] if source and os.path.exists(source.path) else []
    failed = failed_at_once(events)
    notes = list(own.problems) if own else []
    for path in paths:
        name = shown(run, path)
        if name not in failed:
            return Resumption(path, name, job.resume, tuple(notes[:MAX_NOTES]))
        notes.append(f"{name}: the attempt that used it failed at once")
    if notes or (number > 1 and job.resume):
        notes = [
            *notes[:MAX_NOTES],
            f"attempt {number} starts from the beginning: there is no checkpoint to resume from",
        ]
    return Resumption(notes=tuple(notes))


def failed_at_once(events: Sequence[Event]) -> Set[str]:
    """Return the checkpoints that an attempt has used which failed before its first step.

    Only an error of the program counts, not that it was killed, or that the machine had too little memory.
    """
    found: Set[str] = set()
    used, started = "", 0.0
    for event in since_restart(events):
        what = event.what
        if isinstance(what, protocol.Starting):
            used, started = what.resumed_from or "", event.time
        elif isinstance(what, AttemptEnded) and used:
            is_error = what.reason == "exit" or (what.reason == "signal" and signal_of(what.exit_code) in _CRASHES)
            if is_error and not what.has_trained and event.time - started < AT_ONCE_S:
                found.add(used)
            used = ""
    return found
