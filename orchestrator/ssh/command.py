"""One command on the box: its stdin, its stdout as a file, its exit code. Knows a channel and no library."""

from __future__ import annotations

import io
from typing import Any, NoReturn

from orchestrator.errors import AgentUnusable, HostUnreachable
from orchestrator.ssh.rsync import TAIL_BYTES, last_line
from orchestrator.system.limits import LimitedReader

EXIT_S = 5  # from the end of a command's output to its exit code
TICK_S = 0.25  # seconds between two looks at stderr while stdout is silent
SET_PYTHON = "set `python` of this host in jobs.toml to a Python 3.8 or newer on the box"
TRY_AGAIN = "check the network, and that the box is up; then try again"


class RemoteCommand:
    """A command on the box: `send` its whole stdin, read `stdout`; of its stderr the end is kept."""

    def __init__(self, channel: Any, silence_s: float) -> None:
        self._channel = channel
        self._output = _Output(channel, silence_s)
        self.stdout = io.BufferedReader(self._output, 1 << 16)

    def send(self, data: bytes) -> None:
        self._channel.settimeout(self._output.silence_s)
        try:
            self._channel.sendall(data)
            self._channel.shutdown_write()
        except TimeoutError:
            raise
        except OSError:  # the command, or the connection, has ended: what is read next tells which
            pass
        self._channel.settimeout(TICK_S)

    def allow(self, seconds: float) -> None:
        """What is read from now on has to come within `seconds` in all."""
        self._output.allow(seconds)

    def exit_code(self) -> int:
        """-1 where a signal or the end of the connection came first."""
        self._channel.status_event.wait(EXIT_S)
        return int(self._channel.exit_status)

    def explain(self, doing: str) -> NoReturn:
        """Say why the command, whose stdout is at its end, has not answered."""
        code = self.exit_code()
        if code < 0:
            raise HostUnreachable(f"{doing}: the connection was cut off before the answer was whole", TRY_AGAIN)
        self._output.keep_errors()
        said = last_line(self._output.errors)
        raise AgentUnusable(f"{doing}: the command on the box ended with exit code {code}: {said}", SET_PYTHON)

    def close(self) -> None:
        self.stdout.close()
        self._channel.close()


class _Output(LimitedReader):
    """The channel's stdout; the end of its stderr is kept."""

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
        if self._channel.recv_stderr_ready():  # unread, it would hold up the command once the window is full
            self.errors = (self.errors + self._channel.recv_stderr(1 << 20))[-TAIL_BYTES:]
