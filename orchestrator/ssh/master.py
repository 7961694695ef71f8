"""The master connection to a host: an `ssh` process of orch's own, through which all other `ssh` processes go.

OpenSSH calls it a ControlMaster. It logs in once, outlives the command that opened it, and ends after `PERSIST_S`
without use. orch never uses a master that it did not open.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from orchestrator.errors import HostError, HostTooSlow, LoginRefused
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import CONNECT_S, HANDSHAKE_S, Endpoint
from orchestrator.ssh.openssh_errors import failure, has_no_reason, is_login_refused
from orchestrator.system.limits import TOO_SLOW, calling_after

NAME = "orch"  # of the directory in $XDG_RUNTIME_DIR
PERSIST_S = 600  # seconds without use after which a master ends
OPEN_S = CONNECT_S + HANDSHAKE_S  # seconds for each hop to connect and log in without questions
PROMPT_S = 300  # seconds for a person to answer the questions of a login
ANSWER_S = 3.0  # seconds for the server to answer through the master; with QUIET_S before it, 5 s
CONTROL_S = 2.0  # seconds for a master to answer a command of its own
MAX_ERRORS = 1 << 16  # bytes of ssh's stderr that are kept
UNUSED_S = 86400.0  # seconds after which the socket of a killed master is removed
MAX_PATH = 80  # bytes of a path: a socket's has at most 104 (macOS), and ssh adds 17 while it makes it
_PROMPTING = threading.Lock()  # one host asks at a time


class Master:
    """The master connection to one host. `ready` opens it; several processes may use it at the same time."""

    def __init__(self, host: str, destination: Destination, config: SshConfig) -> None:
        self._host, self._destination, self._config = host, destination, config
        self._path: Path | None = None
        self._opening: subprocess.Popen[bytes] | None = None
        self.is_closed = False

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
            return False
        with _locked(path):  # another process may be opening it
            if _is_listening(path):
                return False
            path.unlink(missing_ok=True)
            self._open()
            return True

    def probe(self) -> subprocess.Popen[bytes]:
        """Start to ask the server for a connection that it cannot make. If the process ends, the server has answered.

        This needs no login shell, which may be slow, and is answered even if the server refuses all forwarding.
        """
        command = ["ssh", *self.options(), "-W", "127.0.0.1:1", "--", self._destination.host]
        return _start(command, subprocess.DEVNULL)

    def answer_s(self) -> float:
        """Return the seconds until the server answers through the master. Raise HostTooSlow after ANSWER_S."""
        began = time.monotonic()
        probe = self.probe()
        try:
            with calling_after(ANSWER_S, probe.kill):
                probe.wait()
        finally:
            probe.kill()
            probe.wait()
        passed = time.monotonic() - began
        if passed >= ANSWER_S:
            raise HostTooSlow(f"asking {self._host} for an answer: none within {ANSWER_S:g} s", TOO_SLOW)
        return passed

    def abandon(self) -> None:
        """Let the next use open another master: this one does not answer.

        What other processes do through it goes on. It ends by itself when it notices that its connection is broken.
        """
        self.path().unlink(missing_ok=True)
        self._path = None  # the configuration may have changed

    def disconnect(self) -> bool:
        """Close the connection, and with it all that goes through it. Return whether there was one."""
        path = self.path()
        if not _is_listening(path):
            return False
        command = ["ssh", *self.options(), "-O", "exit", "--", self._destination.host]
        asking = _start(command, subprocess.DEVNULL)
        with calling_after(CONTROL_S, asking.kill):
            asking.wait()
        path.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Stop opening the master for good. One that is open stays for the next command."""
        self.is_closed = True
        self.abort()

    def abort(self) -> None:
        """End a login that is in progress. The thread that waits for it gets an error."""
        if self._opening is not None:
            end_group(self._opening)

    # --- opening it ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        for _, hop in self._config.route():
            _require_plain_files(hop)
        code, errors = self._login(asks=False)
        if code != 0 and is_login_refused(errors) and (terminal := _terminal()) is not None:
            os.close(terminal)
            with _PROMPTING:
                code, errors = self._login(asks=True)
        if code != 0 and has_no_reason(errors):
            errors = self._complaint() or errors
        if code != 0:
            doing = f"connecting to {self._host} ({self._config.endpoint(self._destination)})"
            error = failure(doing, self._host, self._destination, self._config, errors)
            if isinstance(error, LoginRefused):
                error.hint += (
                    f"; if the key has a passphrase, or the host asks for a password or a code: run"
                    f" `orch doctor {self._host}` in a terminal; the connection then stays {PERSIST_S // 60} minutes"
                )
            raise error

    def _complaint(self) -> bytes:
        """Return what a jump host or a ProxyCommand says when it fails. `ssh` hides it if it opens a lasting master."""
        command = ["ssh", "-F", str(self._config.file()), *self._destination.options()]
        asking = _start([*command, "--", self._destination.host, "exit"], subprocess.PIPE)
        assert asking.stderr is not None
        with asking.stderr, calling_after(OPEN_S, lambda: end_group(asking)):
            errors = asking.stderr.read(MAX_ERRORS)
        asking.wait()
        return errors if asking.returncode else b""

    def _login(self, asks: bool) -> tuple[int, bytes]:
        """Log in and leave the master running. Return ssh's exit code and what it wrote to stderr.

        Args:
            asks: Whether ssh may ask for a password, a code or a touch, on the terminal.
        """
        command = ["ssh", "-F", str(self._config.file(asks)), "-M", "-N", "-f"]
        command += ["-o", f"ControlPath={self.path()}", "-o", f"ControlPersist={PERSIST_S}"]
        command += [*self._destination.options(), "--", self._destination.host]
        if self.is_closed:
            raise HostError(f"connecting to {self._host}: the connection was closed on this machine")
        # ssh asks on /dev/tty, which a session of its own would not have.
        self._opening = process = _start(command, subprocess.PIPE, start_new_session=not asks)
        assert process.stderr is not None
        errors = b""
        limit = PROMPT_S if asks else OPEN_S * len(self._config.route())
        has_expired = threading.Event()

        def expire() -> None:
            has_expired.set()
            end_group(process)

        try:
            with process.stderr, calling_after(limit, expire):
                while chunk := os.read(process.stderr.fileno(), 1 << 16):
                    errors = (errors + chunk)[-MAX_ERRORS:]
                    if asks:
                        sys.stderr.buffer.write(chunk)
                        sys.stderr.flush()
                code = process.wait()
        except BaseException:
            end_group(process)
            raise
        finally:
            self._opening = None
        if has_expired.is_set():
            raise HostTooSlow(f"connecting to {self._host}: not logged in within {limit} s", TOO_SLOW)
        return code, errors


def _require_plain_files(hop: Endpoint) -> None:
    """Raise HostError if ssh would wait for ever while it opens a file of the configuration, such as a FIFO."""
    for file in (*hop.known_hosts, *hop.identities, *filter(None, [hop.revoked_file])):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise HostError(f"connecting to {hop.name}: {file} is not a file", "correct the SSH configuration")


def _start(command: list[str], stderr: int, start_new_session: bool = True) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=start_new_session,
        )
    except FileNotFoundError:
        raise HostError("starting ssh: it is not installed here", "install the OpenSSH client") from None


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and its jump hosts if it has a session of its own."""
    with suppress(OSError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, 9)
    process.kill()


def _terminal() -> int | None:
    """Return a descriptor of the terminal in which a person can answer; None if there is none."""
    if not sys.stdin.isatty():
        return None
    with suppress(OSError):
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    return None


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONTROL_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time open the master at `path`."""
    with open(f"{path}.lock", "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _directory() -> Path:
    """Return the directory of the sockets, which nobody else can use. Create it if it is missing.

    It is not in the home directory, whose path may be too long, or on a file system without sockets.

    Raises:
        HostError: The directory cannot be made, or it is not ours alone.
    """
    given = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    is_usable = given.is_absolute() and given.is_dir() and len(os.fsencode(given)) < MAX_PATH - 21
    path = given / NAME if is_usable else Path(f"/tmp/orch-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise HostError(f"making {path}, for connections: {error.strerror}", "set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise HostError(f"using {path} for connections: it is not a directory of this user alone", "remove it")
    _remove_stale(path)
    return path


def _remove_stale(directory: Path) -> None:
    """Remove sockets whose master was killed, and their locks, after a day."""
    for path in directory.iterdir():
        with suppress(OSError):
            is_old = time.time() - path.lstat().st_mtime > UNUSED_S
            if is_old and re.fullmatch(r"[0-9a-f]{16}", path.name) and not _is_listening(path):
                path.unlink()
                Path(f"{path}.lock").unlink(missing_ok=True)
