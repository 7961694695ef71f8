"""A box with its own network, boot, clock and disk, each of which can be broken (Linux, as root)."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import SshdBox, descendants, end_leftovers, left_by, name_of, wait_until

BOOT_ID = "/proc/sys/kernel/random/boot_id"
CRON = "/usr/sbin/cron"
CRONTABS = "/var/spool/cron"
FAKETIME = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")
# libfaketime 0.9.10 passes an absolute sleep on the real clock to the kernel wrongly (EINVAL); this one does not.
SLEEP_SOURCE = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
    return syscall(SYS_clock_nanosleep, clock, flags, wanted, left) == 0 ? 0 : errno;
}
"""
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_numbers = itertools.count(os.getpid() * 37)


def missing() -> str:
    """Return why faults cannot be injected on this machine; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "faults need Linux"
    if os.getuid() != 0:
        return "network namespaces need root"
    for program in ("sshd", "ssh", "rsync", "ip", "tc", "nft", "ss", "unshare", "nsenter", "chattr"):
        if shutil.which(program, path=SEARCHED) is None:
            return f"{program} is not installed"
    probe = [
        "unshare",
        "-m",
        "-n",
        "-T",
        "--monotonic",
        "1",
        "sh",
        "-c",
        "nft add table inet a && mount -t tmpfs a /run",
    ]
    done = subprocess.run(probe, capture_output=True, text=True, env={**os.environ, "PATH": SEARCHED}, check=False)
    return "" if done.returncode == 0 else f"namespaces cannot be used: {done.stderr.strip()}"


def missing_clock() -> str:
    """Return why a box's clock cannot be moved on this machine; empty if it can."""
    if not any(path.is_dir() for path in map(Path, FAKETIME)):
        return "libfaketime is not installed"
    return "" if shutil.which("cc") else "cc is not installed"


def remove_left_clocks() -> None:
    """Remove what libfaketime left of killed processes in shared memory: later ones with the same pids would fail."""
    for path in Path("/dev/shm").glob("*faketime_*_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


@dataclass
class ChaosBox(SshdBox):
    """A box whose sshd, and all that it starts, run in namespaces; the client connects over a veth pair."""

    has_small_disk: bool = False  # HOME is a separate file system, which can be filled
    has_own_clock: bool = False  # everything started through sshd uses libfaketime
    number: int = field(default_factory=lambda: next(_numbers) % 12_000)
    _boot: Path = Path()
    _uptime: int = 10_000
    _begun: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespace = f"chaos{self.number}"
        self._far, self._near = f"cb{self.number}", f"ch{self.number}"
        subnet = f"10.{200 + self.number // 250}.{self.number % 250}"
        self.address = f"{subnet}.2"
        self._boot, self._clock = self.folder / "boot_id", self.folder / "clock"
        self._crontabs = self.folder / "cron"
        (self._crontabs / "crontabs").mkdir(parents=True)
        self._new_boot()
        if self.has_own_clock:
            self.env.update(self._clock_environment())
        super().__post_init__()
        if self.has_small_disk:
            _run(["mount", "-t", "tmpfs", "-o", "size=1400m,nr_inodes=6000", "chaos", str(self.home)])
        self._make_network(subnet)

    # --- life -------------------------------------------------------------------------------------------

    def daemon_command(self, sshd: list[str]) -> list[str]:
        """Wrap `sshd` so that the box has its own boot id, monotonic clock, empty /run and crontabs."""
        up = float(Path("/proc/uptime").read_text().split()[0])
        offset = f"{int(self._uptime - up):d}"
        steps = (
            f"mount --bind {self._boot} {BOOT_ID}",
            f"{{ test ! -d {CRONTABS} || mount --bind {self._crontabs} {CRONTABS}; }}",
            "mount -t tmpfs chaos /run",
            "mkdir /run/sshd",
            f"echo $$ > {self._pid_file}",
            'exec "$@"',
        )
        inner = " && ".join(steps)
        clocks = ["unshare", "-T", f"--monotonic={offset}", f"--boottime={offset}", "--fork", "--kill-child"]
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "-m", "--propagation", "private"]
        return [*enter, *clocks, "sh", "-c", inner, "sh", *sshd]

    @property
    def _pid_file(self) -> Path:
        return self.folder / "sshd.pid"

    def start(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        super().start()

    def stop(self) -> None:
        if self._daemon is not None:
            with suppress(ProcessLookupError):
                os.kill(self.sshd_pid, signal.SIGTERM)
            self._daemon.wait(timeout=10)
            self._daemon = None

    @property
    def sshd_pid(self) -> int:
        return int(self._pid_file.read_text())

    def close(self) -> None:
        super().close()
        end_leftovers([self.home])
        for process in self._begun:
            process.wait()
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)
        if self.has_small_disk:
            subprocess.run(["umount", "-l", str(self.home)], capture_output=True, check=False)

    def inside(self, command: Sequence[str]) -> list[str]:
        """Wrap `command` to run in the box's namespaces with the environment of cron."""
        env = ["env", "-i", f"HOME={self.home}", "PATH=/usr/bin:/bin", "SHELL=/bin/sh", "LOGNAME=root"]
        return ["nsenter", "-t", str(self.sshd_pid), "-m", "-n", "-T", *env, *command]

    def power_off(self) -> None:
        """Kill every process of the box at once."""
        if self._daemon is not None:
            self.kill_connections()
        self.stop()
        end_leftovers([self.home])

    def power_on(self) -> None:
        self._new_boot()
        self._uptime = 30
        self.start()

    def start_cron(self) -> None:
        """Start the real cron; it runs the @reboot lines once per boot."""
        self.begin([CRON, "-f"])

    def begin(self, command: Sequence[str]) -> None:
        """Start a command on the box; `close` waits for it."""
        quiet = subprocess.DEVNULL
        self._begun.append(subprocess.Popen(self.inside(command), stdin=quiet, stdout=quiet, stderr=quiet))

    def crontab(self) -> str:
        return "".join(path.read_text() for path in (self._crontabs / "crontabs").iterdir())

    def resume(self, python: str, root: Path) -> None:
        """Do what cron's @reboot line does."""
        agent = max((self.home / ".cache/orch").glob("agent-*.pyz"), key=lambda path: path.stat().st_mtime)
        _run(self.inside([python, "-I", "-S", str(agent), "resume", str(root)]))

    def _new_boot(self) -> None:
        self._boot.write_text(f"{uuid.uuid4()}\n")

    # --- network ----------------------------------------------------------------------------------------

    def _make_network(self, subnet: str) -> None:
        for line in (
            f"ip netns add {self.namespace}",
            f"ip link add {self._near} type veth peer name {self._far}",
            f"ip link set {self._far} netns {self.namespace}",
            f"ip addr add {subnet}.1/30 dev {self._near}",
            f"ip link set {self._near} up",
            f"ip -n {self.namespace} addr add {subnet}.2/30 dev {self._far}",
            f"ip -n {self.namespace} link set {self._far} up",
            f"ip -n {self.namespace} link set lo up",
        ):
            _run(line.split())

    def _in_network(self, line: str) -> None:
        _run(["ip", "netns", "exec", self.namespace, *line.split()])

    def cut(self) -> None:
        """Drop all packets silently."""
        self._filter("drop")

    @contextmanager
    def lossy(self, percent: int) -> Iterator[None]:
        self._filter(f"numgen random mod 100 < {percent} drop")
        try:
            yield
        finally:
            self.mend()

    def mend(self) -> None:
        self._in_network("nft flush ruleset")

    def _filter(self, rule: str) -> None:
        self._in_network("nft flush ruleset")
        self._in_network("nft add table inet chaos")
        self._in_network("nft add chain inet chaos in { type filter hook input priority 0 ; }")
        self._in_network(f"nft add rule inet chaos in {rule}")

    def reset_connections(self) -> None:
        """Reset every connection on both ends."""
        self._in_network(f"ss -K sport = {self.port}")

    @contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Limit both directions to `rate`, written as for tc."""
        shape = f"root tbf rate {rate} burst 32kbit latency 400ms"
        self._in_network(f"tc qdisc add dev {self._far} {shape}")
        _run(f"tc qdisc add dev {self._near} {shape}".split())
        try:
            yield
        finally:
            self._in_network(f"tc qdisc del dev {self._far} root")
            _run(f"tc qdisc del dev {self._near} root".split())

    def is_busy(self) -> bool:
        """Return whether a command runs that sshd has started."""
        return any(not name_of(pid).startswith("sshd") for pid in descendants(self.sshd_pid))

    @contextmanager
    def unresponsive(self) -> Iterator[None]:
        """Stop sshd and its connections: the kernel accepts what is sent, but nobody answers."""
        stopped = [self.sshd_pid, *self.sessions()]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # --- disk -------------------------------------------------------------------------------------------

    def fill_disk(self) -> None:
        """Fill the disk to the last block, in steps: a file system undoes an allocation that fails."""
        with (self.home / "filler").open("ab") as file:
            for step in (64 << 20, 1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)

    def fill_inodes(self) -> None:
        folder = self.home / "fillers"
        folder.mkdir(exist_ok=True)
        with suppress(OSError):
            for number in itertools.count():
                (folder / str(number)).touch()

    def free_disk(self) -> None:
        (self.home / "filler").unlink(missing_ok=True)
        shutil.rmtree(self.home / "fillers", ignore_errors=True)

    @contextmanager
    def read_only(self, root: Path) -> Iterator[None]:
        """Forbid to create, rename or remove files under `root`; open files can still be written."""
        folders = [str(path) for path in (root, *root.rglob("*")) if path.is_dir() and not path.is_symlink()]
        subprocess.run(["chattr", "+i", *folders], capture_output=True, check=False)  # some may be gone
        try:
            yield
        finally:
            subprocess.run(["chattr", "-i", *folders], capture_output=True, check=False)

    # --- clock ------------------------------------------------------------------------------------------

    def _clock_environment(self) -> dict[str, str]:
        library = next(path for path in map(Path, FAKETIME) if path.is_dir()) / "libfaketime.so.1"
        sleep = self.folder / "sleep.so"
        source = self.folder / "sleep.c"
        source.write_text(SLEEP_SOURCE)
        _run(["cc", "-shared", "-fPIC", "-o", str(sleep), str(source)])
        self.set_clock(0)
        remove_left_clocks()
        return {
            "LD_PRELOAD": f"{sleep} {library}",
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def set_clock(self, seconds: int) -> None:
        """Shift the clock of all processes of the box by `seconds` from the real time."""
        draft = self._clock.with_name("clock.new")
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self._clock)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": SEARCHED}, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_gone(folders: list[Path], timeout: float = 20.0) -> list[int]:
    """Wait until no process names one of the folders; return those that are left after `timeout` seconds."""
    until = time.monotonic() + timeout
    while (left := left_by(folders)) and time.monotonic() < until:
        time.sleep(0.1)
    return left


__all__ = ["ChaosBox", "missing", "missing_clock", "wait_gone", "wait_until"]
