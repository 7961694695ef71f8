"""Run one command over an SSH channel of paramiko: send stdin, read stdout, get the exit code."""

from __future__ import annotations

from typing import Any, NoReturn

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostUnreachable
from orchestrator.ssh.command import TAIL_BYTES, RemoteCommand, command_failed
from orchestrator.ssh.connection import HostConnection
from orchestrator.system.limits import LimitedReader

EXIT_S = 5  # seconds to wait for the exit code after the end of the output
TICK_S = 0.25  # seconds between two reads of stderr while stdout is silent


class ChannelCommand(RemoteCommand):
    """A command over a channel of paramiko. Call `send`, then read `stdout`."""

    def __init__(self, channel: Any, silence_s: float, own: HostConnection | None = None) -> None:
        """Send nothing yet.

        Args:
            channel: The channel.
            silence_s: The seconds that the command may go without output.
            own: The connection of the channel, if it is to be closed with the command.
        """
        self._channel, self._own = channel, own
        self._received = _Output(channel, silence_s)
        super().__init__(self._received)

    def send(self, data: bytes) -> None:
        """Send `data` as the whole stdin, then close stdin.

        If the command or the connection has already ended, just return: reading `stdout` shows which of them it was.

        Raises:
            TimeoutError: The command does not read its stdin.
        """
        self._channel.settimeout(self._received.silence_s)
        try:
            self._channel.sendall(data)
            self._channel.shutdown_write()
        except TimeoutError:
            raise
        except OSError:
            pass
        self._channel.settimeout(TICK_S)

    def exit_code(self) -> int:
        """Wait for the exit code and return it; -1 if a signal ended the command or the connection broke."""
        self._channel.status_event.wait(EXIT_S)
        return int(self._channel.exit_status)

    def explain(self, doing: str) -> NoReturn:
        """See `RemoteCommand.explain`."""
        code = self.exit_code()
        if code < 0:
            raise HostUnreachable(f"{doing}: the connection was cut off before the reply was complete", TRY_AGAIN)
        self._received.keep_errors()
        raise command_failed(doing, code, self._received.errors)

    def close(self) -> None:
        """Close the channel, which ends the command on the box."""
        self.stdout.close()
        self._channel.close()
        if self._own is not None:
            self._own.close()


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
