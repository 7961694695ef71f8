"""contain.py SECONDS COMMAND...

Runs a command and leaves nothing of it behind: what outlives it is named, ended, and counts as a failure.

As a subreaper (Linux) this process inherits whatever the command's descendants detach, daemons included. They
have SECONDS to end by themselves, and as long again once they are told to.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def main(grace: float, command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen(command)
    try:
        status = wait_for(child.pid)
        left = reap_until(time.monotonic() + grace)
        if left:
            for pid in descendants():
                print(f"==> left running: {pid} {command_line(pid)}", flush=True)
        return status or int(left)
    finally:
        end_descendants(grace)


def end_descendants(patience: float) -> None:
    number = signal.SIGTERM
    while not childless():
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        reap_until(time.monotonic() + patience)
        number, patience = signal.SIGKILL, 1.0


def wait_for(pid: int) -> int:
    """Reap everything inherited until `pid` has ended; its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


def reap_until(deadline: float) -> bool:
    """Reap until no child is left (False) or the time is up (True)."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    return True
                time.sleep(0.05)
        except ChildProcessError:
            return False


def childless() -> bool:
    return not reap_until(0.0)


def descendants() -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended)"


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
