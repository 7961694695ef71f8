"""A run's supervisor and its guard: known by their command lines, ended together."""

from __future__ import annotations

import os
from pathlib import Path

from remote.contract.locks import is_held
from tests.chaos.pair import Pair
from tests.support import parent_of, wait_until


def command_of(pair: Pair, job: str) -> list[str]:
    """With which another supervisor of the run is started."""
    words = Path(f"/proc/{pair.supervisor_pid(job)}/cmdline").read_bytes().split(b"\0")[:-1]
    return [os.fsdecode(word) for word in words]


def end_supervision(pair: Pair, job: str) -> None:
    """Nobody starts another."""
    victim = pair.supervisor_pid(job)
    guard = parent_of(victim)
    if b"orch-guard" in Path(f"/proc/{guard}/cmdline").read_bytes():  # one that a test started has none
        pair.kill(guard)
    pair.kill(victim)
    wait_until(lambda: not is_held(pair.run(job).supervisor_lock), what="the supervisor's end")
