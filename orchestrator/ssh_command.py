"""One command on the box: its stdin, its stdout as a file, its exit code. Knows a channel and no library."""

from __future__ import annotations

import io
import time
from typing import Any, NoReturn

from orchestrator.errors import AgentUnusable, HostUnreachable
from orchestrator.rsync import TAIL_BYTES, last_line

EXIT_S = 5  # from the end of a command's output to its exit code
TICK_S = 0.25  # seconds between two looks at stderr while stdout is silent
SET_PYTHON = "set `python` of this host in jobs.toml to a Python 3.8 or newer on the box"
TRY_AGAIN = "look at the network, and that the box is up; then try again"


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


class _Output(io.RawIOBase):
    """The channel's stdout. TimeoutError after `silence_s` without a byte of it."""

    def __init__(self, channel: Any, silence_s: float) -> None:
        super().__init__()
        self._channel, self.silence_s, self.errors = channel, silence_s, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        until = time.monotonic() + self.silence_s
        while True:
            self.keep_errors()
            try:
                data = self._channel.recv(len(buffer))
            except TimeoutError:
                if time.monotonic() < until:
                    continue
                raise TimeoutError(f"no answer for {self.silence_s:g} seconds") from None
            buffer[: len(data)] = data
            return len(data)

    def keep_errors(self) -> None:
        if self._channel.recv_stderr_ready():  # unread, it would hold up the command once the window is full
            self.errors = (self.errors + self._channel.recv_stderr(1 << 20))[-TAIL_BYTES:]
