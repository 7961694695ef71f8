"""The login of a master connection: the `ssh` that connects, asks what it must ask, and stays as the master."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from orchestrator.errors import HostError, HostTooSlow, LoginRefused
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import CONNECT_S, HANDSHAKE_S, PROMPT_S, Endpoint
from orchestrator.ssh.openssh_errors import NO_REASON, failure, has_no_reason, is_login_refused, shown_key
from orchestrator.ssh.prompts import MAX_ERRORS, Asking, Prompter, can_ask, terminal_reserved
from orchestrator.system.file_lock import StillLocked
from orchestrator.system.limits import TOO_SLOW, calling_after

PERSIST_S = 600  # seconds without use after which a master ends
OPEN_S = CONNECT_S + HANDSHAKE_S  # seconds for each hop to connect and log in without questions
RESTORE_S = 2.0  # seconds to restore the terminal after questions


class MasterLogin:
    """Logs in to one host. `asking` is None if no person can be asked."""

    def __init__(self, host: str, destination: Destination, config: SshConfig, asking: Asking | None) -> None:
        self._host, self._destination, self._config, self._asking = host, destination, config, asking
        self._process: subprocess.Popen[bytes] | None = None
        self._has_asked = threading.Event()  # cleared while ssh asks
        self._has_asked.set()
        self.is_closed = False

    def open(self, path: Path) -> None:
        """Log in and leave the master running, with its socket at `path`.

        Log in without questions first. If the host refuses that, and there is a terminal, let ssh ask.

        Raises:
            HostError: The host cannot be reached, or refuses the login.
        """
        for _, hop in self._config.route():
            _require_plain_files(hop)
        code, errors = self._explained(*self._log_in(path))
        asks = code != 0 and is_login_refused(errors) and self._can_ask()
        if asks:
            with self._prompter(path.parent) as prompter:
                code, errors = self._log_in(path, prompter)
            code, errors = self._explained(code, errors)
        if code != 0:
            doing = f"connecting to {self._host} ({self._config.endpoint(self._destination)})"
            error = failure(doing, self._host, self._destination, self._config, errors)
            if isinstance(error, LoginRefused) and not asks:
                error.hint += (
                    f"; if the key has a passphrase, or the host asks for a password or a code: run"
                    f" `orch doctor {self._host}` in a terminal; the connection then stays {PERSIST_S // 60} minutes"
                )
            raise error

    def shown_key(self, folder: Path) -> tuple[str, bytes] | None:
        """Return the key that the host shows. See `openssh_errors.shown_key`. A jump host may ask before.

        Args:
            folder: The directory of the locks.
        """
        shown = shown_key(self._destination, self._config)
        has_jump_host = len(self._config.route()) > 1
        if shown is None and has_jump_host and self._can_ask() and is_login_refused(self._explained(1, NO_REASON)[1]):
            with self._prompter(folder) as prompter:
                return shown_key(self._destination, self._config, lambda command: self._run(command, prompter))
        return shown

    def close(self) -> None:
        """End the login for good."""
        self.is_closed = True
        self.abort()

    def abort(self) -> None:
        """End a login that is in progress. The thread that waits for it gets an error."""
        if (process := self._process) is not None:
            end_group(process)
            self._has_asked.wait(RESTORE_S)  # that thread restores the terminal, and this process may end soon

    def require_open(self) -> None:
        """Raise HostError if it was closed."""
        if self.is_closed:
            raise HostError(f"connecting to {self._host}: the connection was closed on this machine")

    # --- one login ----------------------------------------------------------------------------------------

    def _can_ask(self) -> bool:
        return self._asking is not None and can_ask()

    @contextmanager
    def _prompter(self, folder: Path) -> Iterator[Prompter]:
        """Reserve the terminal for questions of ssh. `folder` is the directory of the locks."""
        assert self._asking is not None
        self._has_asked.clear()
        try:
            with terminal_reserved(folder, lambda: self.is_closed) as prompter, self._asking():
                yield prompter
        except StillLocked:
            self.require_open()
            why = f"another command has been asking in this terminal for {PROMPT_S} s"
            raise HostTooSlow(f"connecting to {self._host}: {why}", "answer it, or end it") from None
        finally:
            self._has_asked.set()

    def _explained(self, code: int, errors: bytes) -> tuple[int, bytes]:
        """Replace `errors` by what a jump host or a ProxyCommand says, if ssh only says that it has ended.

        ssh hides what they say if it opens a lasting master.
        """
        if code == 0 or not has_no_reason(errors):
            return code, errors
        command = ["ssh", "-F", str(self._config.file()), *self._destination.options()]
        try:
            again, said = self._run([*command, "--", self._destination.host, "exit"], None)
        except HostTooSlow:
            return code, errors
        return code, (said if again else b"") or errors

    def _log_in(self, path: Path, prompter: Prompter | None = None) -> tuple[int, bytes]:
        """Log in and leave the master running, with its socket at `path`. See `_run`."""
        command = ["ssh", "-F", str(self._config.file(asks=prompter is not None)), "-M", "-N", "-f"]
        command += ["-o", f"ControlPath={path}", "-o", f"ControlPersist={PERSIST_S}"]
        return self._run([*command, *self._destination.options(), "--", self._destination.host], prompter)

    def _run(self, command: list[str], prompter: Prompter | None) -> tuple[int, bytes]:
        """Run an `ssh` that ends when it has logged in. Return its exit code and the end of what it wrote.

        Args:
            command: The process.
            prompter: Lets ssh ask for a password, a code or a touch; None if it may not ask.
        """
        self.require_open()
        limit = PROMPT_S if prompter else OPEN_S * len(self._config.route())
        has_expired = threading.Event()
        with ExitStack() as stack:
            if prompter is None:
                process = start(command, subprocess.PIPE)
            else:
                process, terminal = prompter.start(command)
                stack.callback(os.close, terminal)

            def expire() -> None:
                has_expired.set()
                end_group(process)

            self._process = process
            if self.is_closed:  # `abort` may have looked before
                end_group(process)
            try:
                with calling_after(limit, expire):
                    errors = _errors_of(process) if prompter is None else prompter.pass_on(process, terminal)
                    code = process.wait()
            except BaseException:
                end_group(process)
                raise
            finally:
                self._process = None
        if has_expired.is_set():
            what = "its questions were not answered" if prompter else "not logged in"
            hint = "run the command again, and answer them" if prompter else TOO_SLOW
            raise HostTooSlow(f"connecting to {self._host}: {what} within {limit} s", hint)
        return code, errors


def _errors_of(process: subprocess.Popen[bytes]) -> bytes:
    """Return the end of what a process writes to stderr, when it has closed it."""
    assert process.stderr is not None
    errors = b""
    with process.stderr:
        while chunk := os.read(process.stderr.fileno(), 1 << 16):
            errors = (errors + chunk)[-MAX_ERRORS:]
    return errors


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its jump hosts."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def start(command: list[str], stderr: int) -> subprocess.Popen[bytes]:
    """Start an `ssh` that reads no stdin and whose stdout is not needed.

    Raises:
        HostError: It is not installed.
    """
    try:
        null = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=null, stdout=null, stderr=stderr, start_new_session=True)
    except FileNotFoundError:
        raise HostError("starting ssh: it is not installed here", "install the OpenSSH client") from None


def _require_plain_files(hop: Endpoint) -> None:
    """Raise HostError if ssh would wait for ever while it opens a file of the configuration, such as a FIFO."""
    for file in (*hop.known_hosts, *hop.identities, *hop.certificates, *filter(None, [hop.revoked_file])):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise HostError(f"connecting to {hop.name}: {file} is not a file", "correct the SSH configuration")
