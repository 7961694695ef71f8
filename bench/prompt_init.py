"""Run a command, and reap every process that is orphaned below it at once, as the init of a real box does.

Where process 1 is slow to reap, an ended job stays a zombie, which `tail --pid` takes for a live process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("this kernel has no subreapers")
    child = subprocess.Popen(command)

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child.pid, number)

    signal.signal(signal.SIGTERM, forward)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
