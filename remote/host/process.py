"""Identify processes despite reused pids; find a process with all its descendants, and end them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set

from remote.contract.protocol import ENV_RUN_DIR

PROC = Path("/proc")
UNKILLABLE_S = 30.0  # to wait after SIGKILL; a process that hangs in a driver or file system may not end at all


class Stat(NamedTuple):
    """Some fields of /proc/<pid>/stat (proc(5))."""

    state: str
    parent: int
    group: int
    session: int
    cpu_ticks: int  # user and system time, also of children that have ended, in clock ticks
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
    return Stat(state, parent, group, session, sum(map(int, rest[11:15])), rest[19], int(rest[21]))


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
            _send(pid, number)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def in_signal_mask(pid: int, mask: str, number: int) -> bool:
    """Return whether the signal is in a mask of the process (proc(5)): SigCgt (it is handled), SigIgn (ignored)."""
    status = read_proc(str(pid), "status").decode("utf-8", "replace")
    found = next((line.split()[1] for line in status.splitlines() if line.startswith(mask + ":")), "0")
    return bool(int(found, 16) >> (number - 1) & 1)


class _Family:
    """A worker and all its descendants (see `family`), while they are asked to end. Each is asked once."""

    def __init__(self, group: int, shim: int, run_dir: str, number: int) -> None:
        self._group, self._shim, self._run_dir, self._number = group, shim, run_dir, number
        self._asked: Set[int] = set()

    def ask_leader(self) -> None:
        """Ask the worker itself."""
        if self._group:
            self._ask(self._group)

    def ask_programs(self) -> None:
        """Ask the programs that the worker has started, but not the processes that a program has forked for itself."""
        members = family(self._group, self._shim, self._run_dir)
        programs = {pid: _program(pid) for pid in members}
        for pid, stat in members.items():
            is_forked = programs[pid] != "" and programs.get(stat.parent) == programs[pid]
            if pid not in self._asked and not is_forked:
                self._ask(pid)

    def ask_all(self) -> None:
        """Ask every process that was not asked."""
        if self._group and not PROC.joinpath("self").exists():
            signal_group(self._group, self._number)
        for pid in family(self._group, self._shim, self._run_dir):
            if pid not in self._asked:
                self._ask(pid)

    def _ask(self, pid: int) -> None:
        self._asked.add(pid)
        # A shell starts its background commands with SIGINT ignored.
        _send(pid, signal.SIGTERM if in_signal_mask(pid, "SigIgn", self._number) else self._number)
        _send(pid, signal.SIGCONT)  # a stopped process cannot act on the request


def _program(pid: int) -> str:
    """Return the program that the process runs; "" if that cannot be read."""
    try:
        return os.readlink(str(PROC / str(pid) / "exe"))
    except OSError:
        return ""


def end_family(
    group: int,
    shim: int,
    grace: float,
    ended: Callable[[], bool],
    before_kill: Callable[[], None] = lambda: None,
    run_dir: str = "",
    number: int = signal.SIGTERM,
) -> bool:
    """End a worker and all its descendants (see `family`).

    First only the leader is asked. A signal to the whole group would also end its children (of a DataLoader), and the
    leader may need them to write a checkpoint. Processes that outlive the leader are asked next. A leader that has not
    ended after a third of the grace period may be a shell that waits for the program that it has started: then those
    programs are asked, and after two thirds every process. Processes that outlive the grace period are killed.

    Args:
        group: The process group, whose leader is the worker; 0 for none.
        shim: The pid of the shim; 0 for none.
        grace: Seconds from the first signal to the kill.
        ended: Returns whether the leader has ended.
        before_kill: Called before the first SIGKILL.
        run_dir: As in `family`.
        number: The signal that asks a process to end. A process that ignores it gets SIGTERM.

    Returns:
        Whether all ended within `grace` seconds.
    """
    members = _Family(group, shim, run_dir, number)
    began = time.monotonic()
    if not ended():
        members.ask_leader()
    steps = [(grace / 3, members.ask_programs), (grace * 2 / 3, members.ask_all)]
    asked_all = False
    while True:
        waited = time.monotonic() - began
        if ended():
            if is_empty(group, shim, run_dir):
                return True
            if not asked_all:
                members.ask_all()
                asked_all = True
        elif steps and steps[0][0] <= waited < grace:
            steps.pop(0)[1]()
        if waited >= grace:
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
