"""Run one command over an SSH channel: send stdin, read stdout, get the exit code. Imports no SSH library."""

from __future__ import annotations

import io
from typing import Any, NoReturn

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import AgentUnusable, HostUnreachable
from orchestrator.ssh.rsync import TAIL_BYTES, last_line
from orchestrator.system.limits import LimitedReader

EXIT_S = 5  # seconds to wait for the exit code after the end of the output
TICK_S = 0.25  # seconds between two reads of stderr while stdout is silent
SET_PYTHON = "set `python` of this host in jobs.toml to a Python 3.8 or newer on the box"


class RemoteCommand:
    """A command that runs on the box. Call `send`, then read `stdout`. The last `TAIL_BYTES` of stderr are kept."""

    def __init__(self, channel: Any, silence_s: float) -> None:
        self._channel = channel
        self._output = _Output(channel, silence_s)
        self.stdout = io.BufferedReader(self._output, 1 << 16)

    def send(self, data: bytes) -> None:
        """Send `data` as the whole stdin, then close stdin.

        If the command or the connection has already ended, just return: reading `stdout` shows which of them it was.

        Raises:
            TimeoutError: The command does not read its stdin.
        """
        self._channel.settimeout(self._output.silence_s)
        try:
            self._channel.sendall(data)
            self._channel.shutdown_write()
        except TimeoutError:
            raise
        except OSError:
            pass
        self._channel.settimeout(TICK_S)

    def allow(self, seconds: float) -> None:
        """Limit the total time for reading `stdout` from now on: reads after `seconds` raise TooSlow."""
        self._output.allow(seconds)

    def exit_code(self) -> int:
        """Wait for the exit code and return it; -1 if a signal ended the command or the connection broke."""
        self._channel.status_event.wait(EXIT_S)
        return int(self._channel.exit_status)

    def explain(self, doing: str) -> NoReturn:
        """Explain why stdout ended without a complete reply. `doing` is the start of the message.

        Raises:
            HostUnreachable: The connection broke.
            AgentUnusable: The command ended; the message has its exit code and the last line of its stderr.
        """
        code = self.exit_code()
        if code < 0:
            raise HostUnreachable(f"{doing}: the connection was cut off before the reply was complete", TRY_AGAIN)
        self._output.keep_errors()
        reason = last_line(self._output.errors)
        raise AgentUnusable(f"{doing}: the command on the box ended with exit code {code}: {reason}", SET_PYTHON)

    def close(self) -> None:
        """Close the channel, which ends the command on the box."""
        self.stdout.close()
        self._channel.close()


class _Output(LimitedReader):
    """The channel's stdout, which also keeps the end of stderr."""

    def __init__(self, channel: Any, silence_s: float) -> None:
        super().__init__(silence_s)
        self._channel, self.errors = channel, b""

    def receive(self, size: int, wait_s: float) -> bytes | None:
        self.keep_errors()
        try:
            return bytes(self._channel.recv(size))
        except TimeoutError:  # after TICK_S
            return None

    def keep_errors(self) -> None:
        if self._channel.recv_stderr_ready():  # once the window is full, unread stderr blocks the command
            self.errors = (self.errors + self._channel.recv_stderr(1 << 20))[-TAIL_BYTES:]
