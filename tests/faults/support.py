"""Find and end a run's supervisor together with its respawn loop."""

from __future__ import annotations

import os
from pathlib import Path

from remote.contract.locks import is_held
from tests.chaos.pair import Pair
from tests.support import parent_of, wait_until


def command_of(pair: Pair, job: str) -> list[str]:
    """Return the command that starts another supervisor of the run."""
    words = Path(f"/proc/{pair.supervisor_pid(job)}/cmdline").read_bytes().split(b"\0")[:-1]
    return [os.fsdecode(word) for word in words]


def end_supervision(pair: Pair, job: str) -> None:
    """End the supervisor and whoever would start another."""
    victim = pair.supervisor_pid(job)
    respawn_loop = parent_of(victim)
    if b"orch-respawn" in Path(f"/proc/{respawn_loop}/cmdline").read_bytes():  # one that a test started has none
        pair.kill(respawn_loop)
    pair.kill(victim)
    wait_until(lambda: not is_held(pair.run(job).supervisor_lock), what="the supervisor's end")
