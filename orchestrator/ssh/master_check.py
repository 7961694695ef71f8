"""Notice that the master of a transfer has stopped answering: rsync itself would wait for minutes.

The master is asked, not the server: on a slow line, the server's answer would wait behind the files. The messages are
those of OpenSSH's PROTOCOL.mux.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from types import TracebackType

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostUnreachable
from orchestrator.ssh.master import CONTROL_S, PROBE_S, Master
from orchestrator.ssh.process_command import QUIET_S

HELLO, VERSION = 0x1, 4
ALIVE_CHECK = 0x10000004


class MasterCheck:
    """Asks a master every few seconds whether it still runs, over one connection to its socket."""

    def __init__(self, master: Master, doing: str) -> None:
        """Connect to the socket of the master. `doing` begins the error message."""
        self._master, self._doing = master, doing
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX)
        self._is_waiting, self._until = False, time.monotonic()  # until the next question, or the latest answer
        try:
            self._socket.settimeout(CONTROL_S)
            self._socket.connect(str(master.path()))
            self._socket.setblocking(False)
            self._socket.send(_message(HELLO, VERSION))
        except OSError:
            self.close()  # without a master, rsync's `ssh` connects by itself

    def __enter__(self) -> MasterCheck:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def check(self) -> None:
        """Ask the master if it is time. Abandon it and raise HostUnreachable if it has not answered."""
        if self._socket is None:
            return
        now = time.monotonic()
        try:
            if self._has_answered():
                self._is_waiting, self._until = False, now + QUIET_S
            if now < self._until:
                return
            if not self._is_waiting:
                self._socket.send(_message(ALIVE_CHECK, 0))
                self._is_waiting, self._until = True, now + PROBE_S
                return
        except OSError:  # the master has ended, and with it what rsync waits for
            self.close()
            return
        self.close()
        self._master.abandon()
        raise HostUnreachable(
            f"{self._doing}: the connection does not answer: no word from its ssh for {QUIET_S + PROBE_S:g} s",
            TRY_AGAIN,
        )

    def close(self) -> None:
        """Disconnect from the master."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _has_answered(self) -> bool:
        """Return whether something has come. Raise OSError at the end of the connection."""
        assert self._socket is not None
        with suppress(BlockingIOError):
            if not self._socket.recv(1 << 16):
                raise ConnectionResetError
            return True
        return False


def _message(*numbers: int) -> bytes:
    return struct.pack(f">{1 + len(numbers)}I", 4 * len(numbers), *numbers)
