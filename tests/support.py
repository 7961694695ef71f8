"""Helpers for tests: a real sshd, waiting for a condition, ending processes that a test left behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.spec.problems import Report
from orchestrator.spec.tables import Table
from remote.contract.requests import Request

if TYPE_CHECKING:  # paramiko takes 0.2 s to import, and most tests do not need it
    from orchestrator.ssh.fabric import FabricTransport
    from orchestrator.ssh.openssh import OpenSshTransport
    from orchestrator.ssh.ssh_transport import SshTransport

T = TypeVar("T")
AnyTable = TypeVar("AnyTable", bound=Table)
ROOT = Path(__file__).resolve().parents[1]  # of the source tree
RECORDED = ROOT / "tests" / "unit" / "recorded"
PROC = Path("/proc")
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")


def wait_until(condition: Callable[[], T], timeout: float = 15.0, what: str = "") -> T:
    """Return the first true value of `condition`; raise AssertionError naming `what` after `timeout` seconds."""
    until = time.monotonic() + timeout
    pause = 0.001
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or condition}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return value


def toy_request(op: str, args: Mapping[str, Any] | None = None) -> Request:
    """Return a request that only a toy agent answers."""
    kind = make_dataclass("Toy", list(args or {}))
    kind.op = op  # type: ignore[attr-defined]
    return Request(kind(**(args or {})))


def make_wheel(folder: Path, name: str, version: str = "1.0", code: str = "", **files: str) -> None:
    """Write a wheel with one module `name`, which is also a program that prints the version, or with `files`."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    module = {f"{name}.py": f"VERSION = {version!r}\n\ndef main():\n    print(VERSION)\n{code}"}
    texts = {
        **(files or module),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    texts[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*texts, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in texts.items():
            archive.writestr(path, text)


def path_with_t4(folder: Path) -> str:
    """Return a `PATH` with an nvidia-smi that reports a free T4."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    card = "0, Tesla T4, 535.183.01, 15360, 0, 14940, 0, Default, GPU-5d0ec4f2, 30"
    tool.write_text(f'#!/bin/sh\ncase "$1" in *apps*) ;; *) echo "{card}";; esac\n')
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- a box behind a real sshd ---------------------------------------------------------------------------

SERVER = """\
{options}
Port {port}
ListenAddress {address}
{host_keys}
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100:30:200
LogLevel VERBOSE
Subsystem sftp {sftp}
SetEnv {env}
"""


@dataclass
class SshdBox:
    """An sshd on a loopback port, with the files that a client needs to reach it as `box`.

    HOME on the box is `home`. `env`, `host_key_types` and `options` (lines of sshd_config that win over SERVER) take
    effect at the next `start`.
    """

    folder: Path
    alias: str = "box"
    port: int = field(default_factory=free_port)
    env: dict[str, str] = field(default_factory=dict)
    host_key_types: tuple[str, ...] = ("ed25519",)
    options: dict[str, object] = field(default_factory=dict)
    address: str = "127.0.0.1"
    sftp: str = "internal-sftp"  # the server of SFTP; takes effect at the next `start`
    client: str = "openssh"
    _daemon: subprocess.Popen[bytes] | None = None
    _transports: list[SshTransport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.log = self.folder / "sshd.log"
        self.config = self.folder / "ssh_config"
        self.known_hosts = self.folder / "known_hosts"
        self.identity = self.folder / "id_ed25519"
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.home.mkdir()
        self.env = {"HOME": str(self.home), "TMUX_TMPDIR": str(self.folder), **self.env}
        self.env.setdefault("PATH", os.environ.get("PATH", "/usr/bin:/bin"))
        self.env.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        make_key(self.identity)
        shutil.copy(f"{self.identity}.pub", self.folder / "authorized_keys")
        for kind in self.host_key_types:
            make_key(self.host_key(kind), kind)
        self.known_hosts.write_text("".join(self.known_line(kind) for kind in self.host_key_types))
        self.add_host(self.alias)

    def add_host(self, name: str, **options: object) -> None:
        """Add a `Host` block for this sshd; `options` replace or add lines."""
        lines: dict[str, object] = {
            "HostName": self.address,
            "Port": self.port,
            "User": self.user,
            "IdentityFile": self.identity,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            **options,
        }
        with self.config.open("a") as file:
            file.write(f"Host {name}\n" + "".join(f"  {key} {value}\n" for key, value in lines.items()))

    def host_key(self, kind: str = "ed25519") -> Path:
        return self.folder / f"host_{kind}"

    def known_line(self, kind: str = "ed25519") -> str:
        public = Path(f"{self.host_key(kind)}.pub").read_text().split()
        return f"[{self.address}]:{self.port} {public[0]} {public[1]}\n"

    def fingerprint(self, kind: str = "ed25519") -> str:
        return fingerprint_of(Path(f"{self.host_key(kind)}.pub"))

    def transport(self, **options: Any) -> SshTransport:
        """Return a transport to this box by its `client`, closed with it; `options` replace constructor arguments."""
        return self.openssh(**options) if self.client == "openssh" else self.fabric(**options)

    def fabric(self, **options: Any) -> FabricTransport:
        """Return a transport to this box by fabric, whatever its `client` is."""
        from orchestrator.ssh.fabric import FabricTransport

        transport = FabricTransport(**self._arguments(options))
        self._transports.append(transport)
        return transport

    def openssh(self, **options: Any) -> OpenSshTransport:
        """Return a transport to this box by OpenSSH, whatever its `client` is. Its master is closed with the box."""
        from orchestrator.ssh.openssh import OpenSshTransport

        transport = OpenSshTransport(**self._arguments(options))
        self._transports.append(transport)
        return transport

    def _arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        python = os.path.realpath(sys.executable)  # the `python3` on PATH may be a slow shim
        return {
            "host": "gpu1",
            "ssh": self.alias,
            "identity": None,
            "python": python,
            "config": self.config,
            **options,
        }

    def logins(self) -> int:
        return self.log.read_text(errors="replace").count("Accepted publickey")

    def start(self) -> None:
        """Start the daemon and return when it listens."""
        if self._daemon is not None:
            return
        assert SSHD is not None
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        settings = self.folder / "sshd_config"
        keys = "\n".join(f"HostKey {self.host_key(kind)}" for kind in self.host_key_types)
        env = " ".join(f'"{name}={value}"' for name, value in self.env.items())
        values = {"address": self.address, "port": self.port, "host_keys": keys, "folder": self.folder, "env": env}
        values["options"] = "\n".join(f"{name} {value}" for name, value in self.options.items())
        settings.write_text(SERVER.format(sftp=self.sftp, **values))
        with self.log.open("ab") as log:
            command = self.daemon_command([SSHD, "-D", "-e", "-f", str(settings)])
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._listens, what=f"sshd to listen; its log: {self.log.read_text(errors='replace')}")

    def daemon_command(self, sshd: list[str]) -> list[str]:
        """Return the command that starts the daemon; a signal to it must end the daemon."""
        return sshd

    def restart(self) -> None:
        """Start the daemon again with changed settings; open connections continue."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop listening, and break the connections, which would outlive a real sshd."""
        if self._daemon is not None:
            self.kill_connections()
            self._daemon.terminate()
            self._daemon.wait(timeout=10)
            self._daemon = None

    def kill_connections(self) -> None:
        """Break every connection of this sshd; their commands get no signal."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def sessions(self) -> list[int]:
        """Return the processes that serve the open connections."""
        assert self._daemon is not None, "its connections are known by their parent: look before `stop`"
        return [pid for pid in descendants(self._daemon.pid) if name_of(pid).startswith("sshd")]

    def freeze(self) -> None:
        """Answer no new connection, as a host that hangs; `thaw` ends it."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()
        self.stop()

    def _listens(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, f"sshd ended: {self.log.read_text(errors='replace')}"
        with socket.socket() as sock:
            return sock.connect_ex((self.address, self.port)) == 0


def sftp_server() -> str:
    """Return the program of OpenSSH that serves SFTP. sshd starts it with the login shell."""
    places = ("/usr/lib/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/openssh/sftp-server")
    return next((place for place in (*places, "/usr/libexec/sftp-server") if Path(place).exists()), places[0])


def make_key(path: Path, kind: str = "ed25519") -> None:
    size = ["-b", "2048"] if kind == "rsa" else []  # the default of 3072 can take seconds to find
    command = ["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def fingerprint_of(public: Path) -> str:
    """Return the fingerprint as OpenSSH prints it."""
    done = subprocess.run(["ssh-keygen", "-l", "-f", str(public)], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


# --- a box that is this machine ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalBox:
    """A project and HOME of its own, and the root of the runs on this machine."""

    project: Path
    home: Path

    @property
    def root(self) -> Path:
        return self.project / ".orch"


def sizes(folder: Path) -> dict[str, int]:
    """Return the regular files of `folder` with their sizes, as an inventory lists them."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


# --- processes ----------------------------------------------------------------------------------------------


def pids() -> Iterator[int]:
    if PROC.is_dir():
        yield from (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def name_of(pid: int) -> str:
    return _read(pid, "comm").decode("utf-8", "replace").strip()


def command_of(pid: int) -> list[bytes]:
    """Return the words of the command line of `pid`; none if it has ended."""
    return _read(pid, "cmdline").split(b"\0")[:-1]


def parent_of(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def descendants(pid: int) -> list[int]:
    """Return the descendants of `pid`, children first."""
    parents = {child: parent_of(child) for child in pids()}
    found = [child for child, parent in parents.items() if parent == pid]
    for known in found:  # grows during the loop
        found += [child for child, parent in parents.items() if parent == known]
    return found


def left_by(folders: list[Path]) -> list[int]:
    """Return processes whose command line or environment names one of `folders`, except this one and its parents."""
    marks = [f"{folder}{end}".encode() for folder in folders for end in ("/", "\0")]
    ours, parent = set(), os.getpid()
    while parent > 0:
        ours.add(parent)
        parent = parent_of(parent)
    said = {pid: _read(pid, "cmdline") + b"\0" + _read(pid, "environ") for pid in pids() if pid not in ours}
    return [pid for pid, text in said.items() if any(mark in text for mark in marks)]


def end_leftovers(folders: list[Path]) -> None:
    """Kill what `left_by` finds until nothing is left (a supervisor may start one more while it dies)."""
    for _ in range(20):
        left = left_by(folders)
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def clean_environment(environ: Mapping[str, str], home: Path) -> dict[str, str | None]:
    """Return the changes to the environment for a test; None removes a variable."""
    changes: dict[str, str | None] = {
        name: None
        for name in environ
        if name.startswith(("ORCH_", "XDG_", "GIT_", "SLURM_"))
        or name in ("SSH_AUTH_SOCK", "TMUX", "CUDA_VISIBLE_DEVICES")
    }
    return {
        **changes,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "TMUX_TMPDIR": str(home),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # it ended or belongs to another user
        return b""


def checked(kind: type[AnyTable], **values: object) -> AnyTable:
    """Return a table of jobs.toml with these values, checked as those of a file are."""
    report = Report("test")
    table = report.check(kind, values, lambda loc: "")
    report.raise_if_any()
    assert table is not None
    return table
