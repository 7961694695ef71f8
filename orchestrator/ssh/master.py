"""The master connection to a host: an `ssh` process of orch's own, through which all other `ssh` processes go.

OpenSSH calls it a ControlMaster. It logs in once, outlives the command that opened it, and ends some time
after its last use. orch never uses a master that it did not open.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from orchestrator.errors import HostError, HostTooSlow
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import PROMPT_S
from orchestrator.ssh.master_login import MasterLogin, start
from orchestrator.ssh.prompts import Asking
from orchestrator.system.file_lock import StillLocked, file_lock
from orchestrator.system.limits import TOO_SLOW, calling_after

NAME = "orch"  # of the directory in $XDG_RUNTIME_DIR
PROBE_S = 3.0  # seconds for the server to answer through the master; with QUIET_S before it, 5 s
WAIT_S = PROMPT_S  # seconds for another process to open it
CONTROL_S = 2.0  # seconds for a master to answer a command of its own
PLAIN = re.compile(r"/[A-Za-z0-9_./+@,=-]*")  # ssh gives a meaning to other characters of a path
UNUSED_S = 86400.0  # seconds after which the socket of a killed master is removed
MAX_PATH = 80  # bytes of a path: a socket's has at most 104 (macOS), and ssh adds 17 while it makes it


class Master:
    """The master connection to one host. `ready` opens it; several processes may use it at the same time."""

    def __init__(self, host: str, destination: Destination, config: SshConfig, asking: Asking | None = None) -> None:
        """Open nothing yet. `asking` surrounds questions to the user; None if nobody can be asked."""
        self._host, self._destination, self._config = host, destination, config
        self._login = MasterLogin(host, destination, config, asking)
        self._path: Path | None = None
        self._used: tuple[int, int] | None = None  # the socket that was used last

    # --- using it -----------------------------------------------------------------------------------------

    def options(self) -> list[str]:
        """Return the arguments of an `ssh` that goes through the master, all but the destination.

        If the master refuses a further session (MaxSessions of the server), `ssh` logs in by itself.
        """
        return ["-F", str(self._config.file()), "-o", f"ControlPath={self.path()}", *self._destination.options()]

    def path(self) -> Path:
        """Return the path of the master's socket.

        Its name is made from all that `ssh -G` resolves. An alias that is pointed to another machine, or whose keys are
        checked otherwise, has another master.
        """
        if self._path is None:
            hops = [hop for _, hop in self._config.route()]
            name = sha256(repr((hops, self._config.file())).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            self._path = _directory() / name
        return self._path

    def is_open(self) -> bool:
        """Return whether a process listens at the socket; it may be stopped, and its connection broken."""
        return _is_listening(self.path())

    def age_s(self) -> float | None:
        """Return the seconds since the master was opened; None if there is none."""
        with suppress(OSError):
            if self.is_open():
                return time.time() - self.path().stat().st_mtime
        return None

    def ready(self) -> bool:
        """Open the master unless it is open. Return whether this call opened it.

        Raises:
            HostError: It cannot be opened.
        """
        path = self.path()
        if _is_listening(path):
            self._used = _identity(path)
            return False
        try:
            with file_lock(Path(f"{path}.lock"), WAIT_S, lambda: self._login.is_closed):  # another process may open it
                if _is_listening(path):
                    self._used = _identity(path)
                    return False
                path.unlink(missing_ok=True)
                self._login.open(path)
                self._used = _identity(path)
                return True
        except StillLocked:
            self._login.require_open()
            why = f"another command has been connecting to it for {WAIT_S:g} s"
            raise HostTooSlow(f"connecting to {self._host}: {why}", "answer its questions, or end it") from None

    def shown_key(self) -> tuple[str, bytes] | None:
        """Return the type of the key that the host shows now, and the key in the wire format; None if it shows none."""
        return self._login.shown_key(self.path().parent)

    def probe(self) -> subprocess.Popen[bytes]:
        """Start to ask the server for a connection that it cannot make. If the process ends, the server has answered.

        This needs no login shell, which may be slow, and is answered even if the server refuses all forwarding.
        """
        command = ["ssh", *self.options(), "-W", "127.0.0.1:1", "--", self._destination.host]
        return start(command, subprocess.DEVNULL)

    def answer_s(self) -> float:
        """Return the seconds until the server answers through the master. Raise HostTooSlow after PROBE_S."""
        began = time.monotonic()
        probe = self.probe()
        try:
            with calling_after(PROBE_S, probe.kill):
                probe.wait()
        finally:
            probe.kill()
            probe.wait()
        passed = time.monotonic() - began
        if passed >= PROBE_S:
            raise HostTooSlow(f"asking {self._host} for an answer: none within {PROBE_S:g} s", TOO_SLOW)
        return passed

    def abandon(self) -> None:
        """Let the next use open another master: this one does not answer.

        What other processes do through it goes on. It ends by itself when it notices that its connection is broken. One
        that another command has opened in its place meanwhile is kept.
        """
        path = self.path()
        with suppress(StillLocked), file_lock(Path(f"{path}.lock"), CONTROL_S, lambda: self._login.is_closed):
            if _identity(path) == self._used:
                path.unlink(missing_ok=True)
        self._path = None
        self._config.forget()

    def disconnect(self) -> bool:
        """Close the connection, and with it all that goes through it. Return whether there was one."""
        path = self.path()
        if not _is_listening(path):
            return False
        closed = _identity(path)
        command = ["ssh", *self.options(), "-O", "exit", "--", self._destination.host]
        asking = start(command, subprocess.DEVNULL)
        with calling_after(CONTROL_S, asking.kill):
            asking.wait()
        if _identity(path) == closed:
            path.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Stop opening the master for good. One that is open stays for the next command."""
        self._login.close()

    def abort(self) -> None:
        """End a login that is in progress. The thread that waits for it gets an error."""
        self._login.abort()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONTROL_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a socket from another one that is later at the same path; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_made(path: Path) -> bool:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return True


def _directory() -> Path:
    """Return the directory of the sockets, which nobody else can use. Create it if it is missing.

    It is not in the home directory, whose path may be too long, or on a file system without sockets.

    Raises:
        HostError: The directory cannot be made, or it is not ours alone.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(given, NAME)
    is_short = len(given) < MAX_PATH - len(NAME) - 17
    try:
        if not (PLAIN.fullmatch(given) and is_short and _is_made(path)):
            path = Path(f"/tmp/orch-{os.getuid()}")
            path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise HostError(f"making {path}, for connections: {error.strerror}", "set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise HostError(
            f"using {path} for connections: it is not of this user alone", "remove it, or set XDG_RUNTIME_DIR"
        )
    _remove_stale(path)
    return path


def _remove_stale(directory: Path) -> None:
    """Remove sockets whose master was killed, after a day. Locks stay: another command may wait for one."""
    for path in directory.iterdir():
        with suppress(OSError, StillLocked):
            is_old = time.time() - path.lstat().st_mtime > UNUSED_S
            if is_old and re.fullmatch(r"[0-9a-f]{16}", path.name) and not _is_listening(path):
                with file_lock(Path(f"{path}.lock"), 0.0, lambda: True):
                    if not _is_listening(path):
                        path.unlink()
