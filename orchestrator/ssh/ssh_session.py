"""The interface to the connection that an SSH client makes."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from orchestrator.errors import HostError, HostTooSlow
from orchestrator.ssh.command import RemoteCommand
from orchestrator.system.limits import CALL_S, TOO_SLOW, calling_after


class Session(ABC):
    """The connection to one host, as one SSH client makes it.

    It connects at the first use, and again at the next use after the connection broke, but never after `close`.
    Several threads may use one session. Its errors are HostErrors.
    """

    @abstractmethod
    def start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run a shell command on the box. If a connection from before turns out to be broken, connect again, once.

        Args:
            line: The shell command.
            data: Its stdin.
            silence_s: The seconds that it may go without output.
        """

    @contextmanager
    def limited(self, doing: str) -> Iterator[str]:
        """Limit the block to `CALL_S` seconds and turn the client's errors in it into ours. Yield `doing`.

        Reads have their own limit for a silent host. This one is for a host that sends a byte now and then.

        Raises:
            HostTooSlow: The block took longer.
            HostUnreachable: The connection broke. The next use connects again.
        """
        has_expired = threading.Event()

        def expire() -> None:
            has_expired.set()
            self._abort()

        try:
            with calling_after(CALL_S, expire), self.translated(doing):
                yield doing
        except HostError as error:
            if has_expired.is_set():
                raise HostTooSlow(f"{doing}: not finished within {CALL_S:g} s", TOO_SLOW) from error
            raise

    @abstractmethod
    def translated(self, doing: str) -> AbstractContextManager[str]:
        """Turn the client's errors in the block into ours, which begin with `doing`. If the connection broke, drop it.

        Raises:
            HostError: What went wrong.
        """

    @abstractmethod
    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server."""

    @abstractmethod
    def close(self) -> None:
        """End every command for good. A thread that waits for the host or is connecting gets an error."""

    @abstractmethod
    def _abort(self) -> None:
        """End what is in progress, without waiting for other threads."""
