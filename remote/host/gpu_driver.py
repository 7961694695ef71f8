"""The GPUs of this box and what each process uses of them, as nvidia-smi reports it.

Without a working driver all results are empty.
"""

from __future__ import annotations

import subprocess
import time
from typing import Dict, List, Sequence, Set

from remote.contract import nvidia
from remote.contract.nvidia import Gpu
from remote.contract.protocol import monotonic
from remote.host.commands import run_command

LIMIT_S = 10.0  # seconds for one command: with a broken driver it hangs
FREE_S = 10.0  # seconds for the driver to free the memory of an ended process


def cards() -> List[Gpu]:
    """Return the GPUs of the box."""
    return nvidia.parse_cards(_output(nvidia.CARDS))


def utilization() -> Dict[int, int]:
    """Return the percent of its GPU's multiprocessors that each process uses, by pid, where the driver reports it."""
    return nvidia.parse_utilization(_output(nvidia.UTILIZATION))


def memory() -> Dict[int, int]:
    """Return the MiB of GPU memory that each process holds, by pid; 0 where the driver does not report it."""
    return {process.pid: process.memory or 0 for process in nvidia.parse_processes(_output(nvidia.PROCESSES))}


def memory_left(pids: Set[int]) -> Dict[str, int]:
    """Return the MiB that ended processes still hold, by pid, after the driver had FREE_S seconds to free them."""
    until = monotonic() + FREE_S
    while True:
        held = {str(pid): mib for pid, mib in memory().items() if pid in pids}
        if not held or monotonic() > until:
            return held
        time.sleep(0.5)


def _output(command: Sequence[str]) -> str:
    try:
        output = run_command(command, LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return output.out.decode("utf-8", "replace") if output.code == 0 else ""
