"""The `openssh` client: requests, streams and rsync through one master connection of OpenSSH."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from orchestrator.box.transport import TRY_AGAIN, Handshake, Hop, Progress
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostTooSlow, HostUnreachable, OrchError
from orchestrator.ssh.command import TAIL_BYTES, RemoteCommand, command_failed
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.handshake import handshake_of
from orchestrator.ssh.known_hosts import HostKey, known_keys, pin_file, replaced_keys
from orchestrator.ssh.master import ANSWER_S, Master
from orchestrator.ssh.openssh_errors import failure, refusal_of
from orchestrator.ssh.prompts import Asking
from orchestrator.ssh.rsync import INSTALL, Rsync
from orchestrator.ssh.ssh_transport import SshTransport
from orchestrator.system.limits import ANSWER_S as REPLY_S
from orchestrator.system.limits import CALL_S, TOO_SLOW, LimitedReader, TooSlow, calling_after
from orchestrator.text import duration

QUIET_S = 2.0  # seconds without a byte before it is asked whether the server still answers
LATER_S = 10.0  # the same once it has answered
SLOWEST_BYTES_S = 16 << 10  # bytes per second of the slowest line
EXIT_S = 5.0  # seconds to wait for the exit code after the end of the output
FAILED = 255  # ssh's own exit code
TICK_S = 1.0


class OpenSshTransport(SshTransport):
    """One box, by OpenSSH. See `SshTransport`."""

    def __init__(self, host: str, *arguments: Any, asking: Asking | None = None, **options: Any) -> None:
        """Do not connect yet. `asking` surrounds questions to the user; None if nobody can be asked.

        For the other arguments see `SshTransport`.
        """
        super().__init__(host, *arguments, **options)
        self.master = Master(host, self._destination, self._config, asking)
        self._openssh_session = OpenSshSession(host, self._destination, self._config, self.master)

    @property
    def _session(self) -> OpenSshSession:
        return self._openssh_session

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""
        with self._rsync() as rsync:
            rsync.push(source, files, target, link_to)

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""
        with self._rsync() as rsync:
            rsync.upload(source, files, target, progress)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""
        if files:
            with self._rsync() as rsync:
                rsync.pull(source, target, files)

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host. See `Transport.route`."""
        return tuple(
            Hop(end.hostname, end.port, end.proxy_command is not None, end.connect_s, end.silence_s)
            for _, end in self._config.route()
        )

    def host_key(self) -> HostKey:
        """Return the key that the host shows now. See `SshTransport.host_key`."""
        doing = f"asking {self.host} for its host key"
        endpoint = self._config.endpoint(self._destination)
        pin_file(endpoint, self.host)
        shown = self.master.shown_key()
        if shown is None:
            self.master.ready()  # this explains why the host cannot be reached
            raise HostError(f"{doing}: the host showed none")
        kind, key = shown
        refusal = refusal_of(endpoint, kind, key)
        if refusal is not None and refusal.why == "revoked":
            raise refusal.error(doing)
        known = known_keys(endpoint)
        return HostKey(known.names[0], kind, key, replaced_keys(endpoint, key), refusal is None)

    def disconnect(self) -> bool:
        """Close the master. See `SshTransport.disconnect`."""
        return self.master.disconnect()

    def connection(self) -> str:
        """Return the client and the age of the master. See `Transport.connection`."""
        age = self.master.age_s()
        if age is None:
            return "openssh, which connects now"
        return f"openssh, connected for {duration(age)} (to close it: orch disconnect {self.host})"

    def handshake(self) -> Handshake | None:
        """Return what the SSH server and ssh tell each other. See `Transport.handshake`. It takes a new connection."""
        return handshake_of(self._destination, self._config)

    @contextmanager
    def _rsync(self) -> Iterator[Rsync]:
        """Yield rsync for a copy. If the copy fails, check whether the box has rsync at all."""
        self.master.ready()
        try:
            yield Rsync(self.host, self._destination, tuple(self.master.options()))
        except (CopyFailed, HostTooSlow):  # rsync ran on the box
            raise
        except OrchError as error:
            if not self._has_rsync():  # not always visible in rsync's exit code
                raise AgentUnusable(
                    f"copying to or from {self.host}: rsync is not installed on the box",
                    f'{INSTALL}; or write client = "fabric" for this host in jobs.toml',
                ) from error
            raise

    def _has_rsync(self) -> bool:
        doing = f"asking {self.host} for its rsync version"
        with self._session.limited(doing), closing(self._session.start("rsync --version", b"", REPLY_S)) as command:
            command.stdout.read()
            return command.exit_code() == 0


class OpenSshSession:
    """Commands on one host, each an `ssh` process through the master. See `Session`."""

    def __init__(self, host: str, destination: Destination, config: SshConfig, master: Master) -> None:
        self._host, self._destination, self._config, self._master = host, destination, config, master
        self._commands: set[ProcessCommand] = set()
        self._is_closed = False

    def start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run a command on the box. See `Session.start`. Return when its first byte, or its end, has come."""
        while True:
            is_new = self._master.ready()
            command = self._command(line, silence_s)
            try:
                command.send(data)
                command.stdout.peek(1)
            except HostUnreachable:  # the connection does not answer; every request can be sent again
                command.close()
                self._master.abandon()
                if is_new:
                    raise
                continue
            except BaseException:
                command.close()
                raise
            if command.has_failed() and not command.is_ended and not is_new:
                command.close()
                self._master.abandon()
                continue
            return command

    @contextmanager
    def limited(self, doing: str) -> Iterator[str]:
        """Limit the block to `CALL_S` seconds. See `Session.limited`."""
        has_expired = threading.Event()

        def expire() -> None:
            has_expired.set()
            self._master.abort()
            self._end_commands()

        try:
            with calling_after(CALL_S, expire), self.translated(doing):
                yield doing
        except HostError as error:
            if has_expired.is_set():
                raise HostTooSlow(f"{doing}: not finished within {CALL_S:g} s", TOO_SLOW) from error
            raise

    @contextmanager
    def translated(self, doing: str) -> Iterator[str]:
        """Turn errors of the system in the block into ours. See `Session.translated`."""
        try:
            yield doing
        except OrchError:
            raise
        except TooSlow as error:
            raise HostTooSlow(f"{doing}: {error}", TOO_SLOW) from error
        except OSError as error:
            raise HostUnreachable(f"{doing}: {error.strerror or error}", TRY_AGAIN) from error

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server, and of starting a process here."""
        self._master.ready()
        return self._master.answer_s()

    def close(self) -> None:
        """End every command for good. See `Session.close`. The master stays for the next command of orch."""
        self._is_closed = True
        self._master.close()
        self._end_commands()

    def _command(self, line: str, silence_s: float) -> ProcessCommand:
        if self._has_closed():
            raise HostError(f"connecting to {self._host}: the connection was closed on this machine")
        arguments = ["ssh", *self._master.options(), "--", self._destination.host, line]
        command = ProcessCommand(arguments, silence_s, self._master.probe, self._explain)
        self._commands.add(command)  # `close` ends those in the set; it may have been called since the last look
        if self._has_closed():
            command.end()
        return command

    def _has_closed(self) -> bool:
        return self._is_closed

    def _end_commands(self) -> None:
        for command in list(self._commands):
            command.end()

    def _explain(self, doing: str, errors: bytes) -> HostError:
        return failure(doing, self._host, self._destination, self._config, errors)


class ProcessCommand(RemoteCommand):
    """A command on the box, by an `ssh` process here."""

    def __init__(
        self,
        arguments: Sequence[str],
        silence_s: float,
        probe: Callable[[], subprocess.Popen[bytes]],
        explain: Callable[[str, bytes], HostError],
    ) -> None:
        """Start the process.

        Args:
            arguments: The process.
            silence_s: The seconds that the command may go without output.
            probe: Starts a process that ends when the server answers.
            explain: Returns the error for what ssh wrote to stderr before it failed.
        """
        pipe = subprocess.PIPE
        self.is_ended = False  # by us
        self._process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._explain = explain
        self._received = _Pipes(self._process.stdout, self._process.stderr, silence_s, probe)
        super().__init__(self._received)

    def send(self, data: bytes) -> None:
        """Send `data` as the whole stdin, then close stdin. If the command has already ended, just return.

        Raises:
            TimeoutError: The command does not read its stdin.
        """
        stdin = self._process.stdin
        assert stdin is not None
        left = memoryview(data)
        os.set_blocking(stdin.fileno(), False)
        with stdin, selectors.DefaultSelector() as ready, suppress(BrokenPipeError):
            ready.register(stdin, selectors.EVENT_WRITE)
            until = time.monotonic() + self._received.silence_s
            while left:
                if ready.select(TICK_S):
                    left = left[os.write(stdin.fileno(), left[: 1 << 16]) :]
                    until = time.monotonic() + self._received.silence_s
                else:
                    self._received.check()
                    if time.monotonic() > until:
                        raise TimeoutError(f"no answer for {self._received.silence_s:g} s")
        self._received.expect_silence(len(data) / SLOWEST_BYTES_S)

    def exit_code(self) -> int:
        """Wait for the exit code and return it; -1 if a signal ended the command or the connection broke."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(EXIT_S)
            return code if 0 <= code < FAILED else -1
        return -1

    def has_failed(self) -> bool:
        """Return whether ssh itself failed before the command wrote anything."""
        return not self.stdout.peek(1) and self.exit_code() < 0

    def explain(self, doing: str) -> NoReturn:
        """See `RemoteCommand.explain`."""
        code = self.exit_code()
        self._received.keep_errors()
        if code >= 0:
            raise command_failed(doing, code, self._received.errors)
        if self._received.errors.strip():
            raise self._explain(doing, self._received.errors)
        raise HostUnreachable(f"{doing}: the connection was cut off before the reply was complete", TRY_AGAIN)

    def end(self) -> None:
        """Kill the process; safe from any thread. A thread that reads its output gets the end of it."""
        self.is_ended = True
        self._process.kill()

    def close(self) -> None:
        """End the command on the box."""
        self.end()
        self._process.wait()
        self.stdout.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class _Pipes(LimitedReader):
    """The stdout of an `ssh`. Keeps the end of its stderr, and asks the server for an answer while nothing comes."""

    def __init__(
        self, stdout: IO[bytes], stderr: IO[bytes], silence_s: float, probe: Callable[[], subprocess.Popen[bytes]]
    ) -> None:
        super().__init__(silence_s)
        self._stdout, self._stderr, self._start_probe = stdout, stderr, probe
        os.set_blocking(stderr.fileno(), False)
        self._ready = selectors.DefaultSelector()
        self._ready.register(stdout, selectors.EVENT_READ)
        self._ready.register(stderr, selectors.EVENT_READ)
        self.errors = b""
        self._probe: subprocess.Popen[bytes] | None = None
        self._probe_at = time.monotonic() + QUIET_S

    def receive(self, size: int, wait_s: float) -> bytes | None:
        for key, _ in self._ready.select(max(0.0, min(wait_s, TICK_S))):
            if key.fileobj is self._stderr:
                if not self.keep_errors():
                    self._ready.unregister(self._stderr)
            else:
                data = os.read(self._stdout.fileno(), size)
                self._end_probe(LATER_S)
                return data
        self.check()
        return None

    def expect_silence(self, seconds: float) -> None:
        """Ask for an answer later: on a slow line, what was sent may take that long, and the answer waits behind it."""
        self._end_probe(QUIET_S + seconds)

    def check(self) -> None:
        """Ask the server for an answer if it is time. Raise HostUnreachable if none comes."""
        now = time.monotonic()
        if self._probe is None:
            if now >= self._probe_at:
                self._probe, self._probe_at = self._start_probe(), now + ANSWER_S
        elif self._probe.poll() is not None:
            self._end_probe(LATER_S)
        elif now >= self._probe_at:
            self._end_probe(LATER_S)
            raise HostUnreachable(
                f"the connection does not answer: no word from the server for {QUIET_S + ANSWER_S:g} s", TRY_AGAIN
            )

    def keep_errors(self) -> bool:
        """Read what is in stderr. Return False at its end."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._stderr.fileno(), 1 << 16):
                self.errors = (self.errors + chunk)[-TAIL_BYTES:]
            return False
        return True

    def close(self) -> None:
        self._end_probe(LATER_S)
        self._ready.close()
        super().close()

    def _end_probe(self, next_s: float) -> None:
        probe, self._probe = self._probe, None
        self._probe_at = time.monotonic() + next_s
        if probe is not None:
            probe.kill()
            probe.wait()
