"""Processes: started in a group of their own, told apart from a later owner of the same pid, ended as a group."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence

PROC = Path("/proc")
DRAIN_S = 10.0  # for what a worker printed last to reach its log
UNKILLABLE_S = 30.0  # a process in a hung driver or file system does not go even when killed: no use to wait on


class Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that are read here (proc(5))."""

    state: str
    group: int
    cpu_ticks: int  # user and system time, in clock ticks
    started_ticks: str  # since boot
    rss_pages: int


class Worker:
    """A program at work in a session, and so a process group, of its own."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        descriptors: Sequence[int] = (),
        pump: Sequence[str] = (),
    ) -> None:
        """Start it, its output appended to `log`; `descriptors` stay open in it.

        The log is its own descriptor: it needs no reader, so no death of a supervisor can block it. A command given
        as `pump` stands before the log, in a session of its own, so that the same holds.
        """
        self._pump = _start_pump(pump) if pump else None
        with open(str(log), "ab", buffering=0) as file:
            output = self._pump.stdin if self._pump and self._pump.stdin else file
            with output:  # the pump ends with its last writer
                self._process = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=str(cwd),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=list(descriptors),
                )
        self.pid = self._process.pid
        self.identity = identity(self.pid)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int:
        """Waits for it; negative for the signal that ended it, or that could not end it either."""
        try:
            return self._process.wait(UNKILLABLE_S)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL

    def end(self, grace: float) -> bool:
        """As `end_group`; the log is whole afterwards."""
        in_time = end_group(self.pid, grace, self.has_ended)
        if self._pump:
            try:
                self._pump.wait(DRAIN_S)
            except subprocess.TimeoutExpired:
                pass  # something that left the group still holds its pipe: it goes on masking that
        return in_time


def _start_pump(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        list(argv), stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    )


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
    return Stat(rest[0], int(rest[2]), int(rest[11]) + int(rest[12]), rest[19], int(rest[21]))


def group_stats(group: int) -> Iterator[Stat]:
    """The living members of a process group (none where the machine has no /proc)."""
    if not PROC.joinpath("self").exists():
        return
    for entry in PROC.iterdir():
        stat = read_stat(int(entry.name)) if entry.name.isdigit() else None
        if stat and stat.group == group and stat.state != "Z":
            yield stat


def signal_group(group: int, number: int) -> bool:
    """Send a signal to every member; False where the group has none."""
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False


def group_is_empty(group: int) -> bool:
    if PROC.joinpath("self").exists():
        return not any(True for _ in group_stats(group))
    return not signal_group(group, 0)


def end_group(group: int, grace: float, ended: Callable[[], bool]) -> bool:
    """End a worker and all that it started; True where it went within `grace` seconds.

    The leader alone is asked first: a checkpoint needs the children (DataLoader) that a signal to the whole
    group would take away. What outlives the leader is asked too, and what outlives the grace is killed.
    `ended` says whether the leader is gone (and reaps it).
    """
    deadline = time.monotonic() + grace
    if not ended():
        try:
            os.kill(group, signal.SIGTERM)
            os.kill(group, signal.SIGCONT)  # a stopped process cannot act on the request
        except ProcessLookupError:
            pass
    asked_all = False
    while time.monotonic() < deadline:
        if ended():
            if group_is_empty(group):
                return True
            if not asked_all:
                asked_all = signal_group(group, signal.SIGTERM)
                signal_group(group, signal.SIGCONT)
        time.sleep(0.05)
    signal_group(group, signal.SIGKILL)
    deadline = time.monotonic() + UNKILLABLE_S
    while not (ended() and group_is_empty(group)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return False


def program_argv(argv: Sequence[str], python: str) -> List[str]:
    """`python` as the first word means the interpreter that the host names."""
    return [python, *argv[1:]] if argv[0] in ("python", "python3") else list(argv)
