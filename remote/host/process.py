"""Processes: told apart from a later owner of the same pid, found with all that they started, ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from remote.contract.protocol import ENV_RUN_DIR

PROC = Path("/proc")
UNKILLABLE_S = 30.0  # a process in a hung driver or file system does not go even when killed: no use to wait on


class Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that are read here (proc(5))."""

    state: str
    parent: int
    group: int
    session: int
    cpu_ticks: int  # user and system time, in clock ticks
    started_ticks: str  # since boot
    rss_pages: int


def identity(pid: int) -> str:
    """What tells this process from a later one with the same pid; empty where there is none."""
    stat = read_stat(pid)
    if stat:
        return stat.started_ticks if stat.state != "Z" else ""
    if PROC.joinpath("self").exists():
        return ""
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "lstart="], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return listed.stdout.decode().strip()


def is_alive(pid: int, known_as: str) -> bool:
    return bool(known_as) and identity(pid) == known_as


def read_stat(pid: int) -> Optional[Stat]:
    """None where the process is gone or the machine has no /proc."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    rest = text[text.rindex(")") + 2 :].split()  # the command name may hold spaces and parentheses
    state, parent, group, session = rest[0], int(rest[1]), int(rest[2]), int(rest[3])
    return Stat(state, parent, group, session, int(rest[11]) + int(rest[12]), rest[19], int(rest[21]))


def environment_of(pid: int) -> bytes:
    """NAME=VALUE, each ended by a zero byte, as it was at its start; empty where that cannot be seen."""
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def is_stopped(pid: int) -> bool:
    """Whether a signal, or a debugger, holds it."""
    stat = read_stat(pid)
    return stat is not None and stat.state in "Tt"


def boot_id() -> str:
    """What tells one boot of the machine from the next; empty where it cannot be had."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    command = ["sysctl", "-n", "kern.boottime"]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode().strip()
    except OSError:
        return ""


def output_of(command: Sequence[str], limit: float) -> Tuple[int, bytes]:
    """Exit code and output (both streams) of a command; OSError or TimeoutExpired after at most `limit` seconds.

    One that hangs in a driver does not go when it is killed, so it is not waited for.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        signal_group(process.pid, signal.SIGKILL)
        _let_go(process)
        raise
    return process.returncode, said


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Reap it if it goes; one that a driver holds is left to be reaped by whoever outlives it."""
    try:
        process.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        if process.stdout:
            process.stdout.close()
        process.returncode = -signal.SIGKILL


# --- a worker and all that it started -------------------------------------------------------------------


def family(group: int, keeper: int = 0, run_dir: str = "") -> Dict[int, Stat]:
    """The living members of the process group (and session) `group`, and all descendants of theirs and of `keeper`
    (none without /proc). 0 stands for no group, no keeper.

    A worker's keeper is their subreaper: what left the session is found below it, also when the process that started
    it is gone. Where the keeper is gone too, only the environment tells: with `run_dir` every process is looked at,
    which takes some 10 microseconds each, and whoever was started with that ORCH_RUN_DIR belongs to the family.
    """
    stats: Dict[int, Stat] = {}
    if PROC.joinpath("self").exists():
        found = ((int(entry.name), read_stat(int(entry.name))) for entry in PROC.iterdir() if entry.name.isdigit())
        stats = {pid: stat for pid, stat in found if stat and stat.state != "Z"}
    members = {pid for pid, stat in stats.items() if group and group in (stat.group, stat.session)}
    if run_dir:
        members |= {pid for pid in stats if pid != os.getpid() and is_of_run(pid, run_dir)}
    grown = members | ({keeper} if keeper else set())
    while grown:
        grown = {pid for pid, stat in stats.items() if stat.parent in grown and pid not in members}
        members |= grown
    return {pid: stats[pid] for pid in sorted(members)}


def is_of_run(pid: int, run_dir: str) -> bool:
    """Whether a process was started with the ORCH_RUN_DIR of this run, however its path is spelled there."""
    mark = f"{ENV_RUN_DIR}=".encode()
    named = next((item for item in environment_of(pid).split(b"\0") if item.startswith(mark)), b"")[len(mark) :]
    wanted = os.fsencode(run_dir)
    if os.path.basename(named) != os.path.basename(wanted):
        return False
    return named == wanted or os.path.realpath(named) == os.path.realpath(wanted)


def is_empty(group: int, keeper: int = 0, run_dir: str = "") -> bool:
    if not PROC.joinpath("self").exists():
        return not (group and signal_group(group, 0))
    return not family(group, keeper) and not (run_dir and family(0, 0, run_dir))


def signal_group(group: int, number: int) -> bool:
    """Send a signal to every member; False where the group has none."""
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False


def signal_family(group: int, keeper: int, run_dir: str, *numbers: int) -> None:
    """Send the signals, one after the other, to every member."""
    outside = [pid for pid, stat in family(group, keeper, run_dir).items() if stat.group != group]
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
    keeper: int,
    grace: float,
    ended: Callable[[], bool],
    before_kill: Callable[[], None] = lambda: None,
    run_dir: str = "",
) -> bool:
    """End a worker and all that it started (see `family`); True where it went within `grace` seconds.

    The leader alone is asked first: a checkpoint needs the children (DataLoader) that a signal to the whole
    group would take away. What outlives the leader is asked too, and what outlives the grace is killed, once
    `before_kill` has had its look. `ended` says whether the leader is gone.
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
            if is_empty(group, keeper, run_dir):
                return True
            if not asked_all:
                signal_family(group, keeper, run_dir, signal.SIGTERM, signal.SIGCONT)
                asked_all = True
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    before_kill()
    deadline = time.monotonic() + UNKILLABLE_S
    while not (ended() and is_empty(group, keeper, run_dir)) and time.monotonic() < deadline:
        signal_family(group, keeper, run_dir, signal.SIGKILL)
        time.sleep(0.02)
    return False


def program_argv(argv: Sequence[str], python: str) -> List[str]:
    """`python` as the first word means the interpreter that the host names."""
    return [python, *argv[1:]] if argv[0] in ("python", "python3") else list(argv)
