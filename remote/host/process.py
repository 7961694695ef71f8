"""Identify processes despite reused pids; find a process with all its descendants, and end them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from remote.contract.protocol import ENV_RUN_DIR

PROC = Path("/proc")
UNKILLABLE_S = 30.0  # to wait after SIGKILL; a process that hangs in a driver or file system may not end at all


class Stat(NamedTuple):
    """Some fields of /proc/<pid>/stat (proc(5))."""

    state: str
    parent: int
    group: int
    session: int
    cpu_ticks: int  # user and system time, in clock ticks
    started_ticks: str  # since boot
    rss_pages: int


def identity(pid: int) -> str:
    """Return a text that distinguishes this process from a later one with the same pid; "" if there is no process."""
    stat = read_stat(pid)
    if stat:
        return stat.started_ticks if stat.state != "Z" else ""
    if PROC.joinpath("self").exists():
        return ""
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "lstart="], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return listed.stdout.decode().strip()


def is_alive(pid: int, known_as: str) -> bool:
    """Return whether the process `pid` with the identity `known_as` is alive."""
    return bool(known_as) and identity(pid) == known_as


def read_stat(pid: int) -> Optional[Stat]:
    """Return the fields of the process, or None if it does not exist or the machine has no /proc."""
    text = read_proc(str(pid), "stat").decode("utf-8", "replace")
    if not text:
        return None
    rest = text[text.rindex(")") + 2 :].split()  # the command name may contain spaces and parentheses
    state, parent, group, session = rest[0], int(rest[1]), int(rest[2]), int(rest[3])
    return Stat(state, parent, group, session, int(rest[11]) + int(rest[12]), rest[19], int(rest[21]))


def read_proc(*parts: str) -> bytes:
    """Return a file below /proc; b"" if it cannot be read."""
    try:
        return PROC.joinpath(*parts).read_bytes()
    except OSError:
        return b""


def run_dir_of(pid: int) -> bytes:
    """Return the ORCH_RUN_DIR that the process was started with; b"" if it has none or may not be read."""
    mark = f"{ENV_RUN_DIR}=".encode()
    variables = read_proc(str(pid), "environ").split(b"\0")
    return next((item for item in variables if item.startswith(mark)), b"")[len(mark) :]


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped by a signal or a debugger."""
    stat = read_stat(pid)
    return stat is not None and stat.state in "Tt"


def boot_id() -> str:
    """Return a text that distinguishes this boot of the machine from others; "" if it is not available."""
    found = read_proc("sys/kernel/random/boot_id").decode().strip()
    if found:
        return found
    command = ["sysctl", "-n", "kern.boottime"]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode().strip()
    except OSError:
        return ""


# --- a worker and all its descendants -------------------------------------------------------------------


def family(group: int, shim: int = 0, run_dir: str = "") -> Dict[int, Stat]:
    """Return the living processes of a worker, by pid; none on a machine without /proc.

    These are the members of a process group or session, and all their descendants and those of the shim. The shim is
    their subreaper: processes that left the session are below it, even if their parent is gone. If the shim is gone
    too, only the environment identifies them.

    Args:
        group: The process group and session; 0 for none.
        shim: The pid of the shim; 0 for none.
        run_dir: Include every process that was started with this ORCH_RUN_DIR; "" for none. This reads the
            environment of every process of the machine, about 10 microseconds each.
    """
    stats: Dict[int, Stat] = {}
    if PROC.joinpath("self").exists():
        found = ((int(entry.name), read_stat(int(entry.name))) for entry in PROC.iterdir() if entry.name.isdigit())
        stats = {pid: stat for pid, stat in found if stat and stat.state != "Z"}
    members = {pid for pid, stat in stats.items() if group and group in (stat.group, stat.session)}
    if run_dir:
        members |= {pid for pid in stats if pid != os.getpid() and is_of_run(pid, run_dir)}
    grown = members | ({shim} if shim else set())
    while grown:
        grown = {pid for pid, stat in stats.items() if stat.parent in grown and pid not in members}
        members |= grown
    return {pid: stats[pid] for pid in sorted(members)}


def is_of_run(pid: int, run_dir: str) -> bool:
    """Return whether the process was started with the ORCH_RUN_DIR of this run, however its path is written."""
    named, wanted = run_dir_of(pid), os.fsencode(run_dir)
    if os.path.basename(named) != os.path.basename(wanted):
        return False
    return named == wanted or os.path.realpath(named) == os.path.realpath(wanted)


def is_empty(group: int, shim: int = 0, run_dir: str = "") -> bool:
    """Return whether no process is left (see `family`)."""
    if not PROC.joinpath("self").exists():
        return not (group and signal_group(group, 0))
    return not family(group, shim) and not (run_dir and family(0, 0, run_dir))


def signal_group(group: int, number: int) -> bool:
    """Send a signal to every member of the process group. Return False if it has none."""
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False


def signal_family(group: int, shim: int, run_dir: str, *numbers: int) -> None:
    """Send the signals, one after the other, to every process (see `family`)."""
    outside = [pid for pid, stat in family(group, shim, run_dir).items() if stat.group != group]
    for number in numbers:
        if group:
            signal_group(group, number)
        for pid in outside:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass


def end_family(
    group: int,
    shim: int,
    grace: float,
    ended: Callable[[], bool],
    before_kill: Callable[[], None] = lambda: None,
    run_dir: str = "",
) -> bool:
    """End a worker and all its descendants (see `family`).

    First only the leader gets SIGTERM. A signal to the whole group would also end its children (of a DataLoader), and
    the leader may need them to write a checkpoint. Processes that outlive the leader get SIGTERM next. Processes that
    outlive the grace period are killed.

    Args:
        group: The process group, whose leader is the worker; 0 for none.
        shim: The pid of the shim; 0 for none.
        grace: Seconds from the first signal to the kill.
        ended: Returns whether the leader has ended.
        before_kill: Called before the first SIGKILL.
        run_dir: As in `family`.

    Returns:
        Whether all ended within `grace` seconds.
    """
    deadline = time.monotonic() + grace
    if group and not ended():
        try:
            os.kill(group, signal.SIGTERM)
            os.kill(group, signal.SIGCONT)  # a stopped process cannot act on the request
        except ProcessLookupError:
            pass
    asked_all = False
    while True:
        if ended():
            if is_empty(group, shim, run_dir):
                return True
            if not asked_all:
                signal_family(group, shim, run_dir, signal.SIGTERM, signal.SIGCONT)
                asked_all = True
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    before_kill()
    deadline = time.monotonic() + UNKILLABLE_S
    while not (ended() and is_empty(group, shim, run_dir)) and time.monotonic() < deadline:
        signal_family(group, shim, run_dir, signal.SIGKILL)
        time.sleep(0.02)
    return False


def program_argv(argv: Sequence[str], python: str) -> List[str]:
    """Return the command. If its first word is `python` or `python3`, it becomes `python`, the host's interpreter."""
    return [python, *argv[1:]] if argv[0] in ("python", "python3") else list(argv)
