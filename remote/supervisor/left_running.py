"""Which processes a worker has left running when it ended by itself. They are ended with their attempt."""

from __future__ import annotations

import os
import re
import time
from typing import Dict, Mapping, NamedTuple, Optional, Sequence

from remote.host.process import Stat, read_proc
from remote.supervisor.attempt import Attempt
from remote.supervisor.policy import End

SETTLE_S = 1.0  # seconds for them to end by themselves
SETTLE_IN_REHEARSAL_S = 3.0
MOST_NAMED = 3
LONGEST = 120  # characters of a command line
# Programs that serve others and outlive them: agents, trackers, build servers. They are ended without a word.
_HELPERS = re.compile(
    r"(?:ssh|gpg)-agent\b|dbus-|tensorboard|wandb-(?:core|service)|nvidia-cuda-mps|raylet|gcs_server|ray::|sccache"
    r"|multiprocessing\.(?:resource_tracker|forkserver)|redis-server|compile_worker"
)


class Watched(NamedTuple):
    """How watching a worker ended."""

    stop: Optional[End] = None  # why the supervisor ended it; None if it ended by itself
    left: Mapping[int, str] = {}  # if it ended by itself with exit code 0: the processes that it left, by pid


def find_left(worker: Attempt, settle: float) -> Dict[int, str]:
    """Return the command lines of the processes that the worker has left, by pid (see `command_lines`).

    Args:
        worker: An attempt that has ended.
        settle: Seconds for them to end by themselves.
    """
    until = time.monotonic() + settle
    while True:
        left = command_lines(worker.stats(), worker.secrets)
        if not left or time.monotonic() >= until:
            return left
        time.sleep(0.1)


def describe(commands: Sequence[str]) -> str:
    """Return some of the command lines, and how many more there are."""
    different = list(dict.fromkeys(commands))
    more = f" and {len(different) - MOST_NAMED} more" if len(different) > MOST_NAMED else ""
    return ", ".join(different[:MOST_NAMED]) + more


def command_lines(stats: Mapping[int, Stat], secrets: Mapping[str, str]) -> Dict[int, str]:
    """Return the command lines of processes by pid, shortened.

    Those that another one has started do not count, nor do helpers.

    Args:
        stats: The processes.
        secrets: Values to mask, by name.
    """
    if not stats:
        return {}
    from remote.contract.masking import mask_text  # most workers leave nothing

    found = {}
    for pid, stat in stats.items():
        words = read_proc(str(pid), "cmdline")[:4096].decode("utf-8", "replace").rstrip("\0").split("\0")
        line = " ".join([os.path.basename(words[0]), *words[1:]]).strip()
        if line and stat.parent not in stats and not _HELPERS.search(line):
            text = mask_text(" ".join(line.split()), secrets)
            found[pid] = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return found
