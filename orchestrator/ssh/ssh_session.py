"""The interface to the connection that an SSH client makes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from orchestrator.ssh.command import RemoteCommand


class Session(Protocol):
    """The connection to one host, as one SSH client makes it.

    It connects at the first use, and again at the next use after the connection broke, but never after `close`.
    Several threads may use one session. Its errors are HostErrors.
    """

    def start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run a shell command on the box. If a connection from before turns out to be broken, connect again, once.

        Args:
            line: The shell command.
            data: Its stdin.
            silence_s: The seconds that it may go without output.
        """

    def limited(self, doing: str) -> AbstractContextManager[str]:
        """Limit the block to `CALL_S` seconds and turn the client's errors in it into ours. Yield `doing`.

        Raises:
            HostTooSlow: The block took longer.
            HostUnreachable: The connection broke. The next use connects again.
        """

    def translated(self, doing: str) -> AbstractContextManager[str]:
        """Turn the client's errors in the block into ours, which begin with `doing`. If the connection broke, drop it.

        Raises:
            HostError: What went wrong.
        """

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server."""

    def close(self) -> None:
        """End every command for good. A thread that waits for the host or is connecting gets an error."""
