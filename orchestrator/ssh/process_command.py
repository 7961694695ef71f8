"""One command on a box, by an `ssh` process here that goes through the master."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, NoReturn

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostError, HostUnreachable
from orchestrator.ssh.command import TAIL_BYTES, RemoteCommand, command_failed
from orchestrator.ssh.master import PROBE_S
from orchestrator.system.limits import LimitedReader

QUIET_S = 2.0  # seconds without a byte before it is asked whether the server still answers
LATER_S = 10.0  # the same once it has answered
SLOWEST_BYTES_S = 16 << 10  # bytes per second of the slowest line
EXIT_S = 5.0  # seconds to wait for the exit code after the end of the output
FAILED = 255  # ssh's own exit code
TICK_S = 1.0


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
                self._probe, self._probe_at = self._start_probe(), now + PROBE_S
        elif self._probe.poll() is not None:
            self._end_probe(LATER_S)
        elif now >= self._probe_at:
            self._end_probe(LATER_S)
            raise HostUnreachable(
                f"the connection does not answer: no word from the server for {QUIET_S + PROBE_S:g} s", TRY_AGAIN
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
