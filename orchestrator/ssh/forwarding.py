"""Forward a port of this machine through channels of paramiko (`fabric`). OpenSSH does it itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from paramiko import SSHException

from orchestrator.errors import OrchError
from orchestrator.ssh.endpoint import LOCALHOST

BROKEN = (OSError, EOFError, SSHException)  # what paramiko raises if its connection has ended
CHUNK = 1 << 15  # bytes


@contextmanager
def forwarded(port: int, open_channel: Callable[[], Any]) -> Iterator[None]:
    """Accept connections to a port of this machine in the block, and connect each with a new channel.

    A connection whose channel cannot be opened is closed; the next one tries again.

    Args:
        port: The port, on 127.0.0.1.
        open_channel: Returns a channel to the program on the box.
    """
    listener = socket.create_server((LOCALHOST, port))
    accepting = threading.Thread(target=_accept, args=(listener, open_channel), daemon=True)
    accepting.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        listener.close()


def _accept(listener: socket.socket, open_channel: Callable[[], Any]) -> None:
    with suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_connect, args=(client, open_channel), daemon=True).start()


def _connect(client: socket.socket, open_channel: Callable[[], Any]) -> None:
    with client, suppress(OrchError, *BROKEN), closing(open_channel()) as channel:
        sending = threading.Thread(target=_pump, args=(client.recv, channel.sendall, channel.shutdown_write))
        sending.daemon = True
        sending.start()
        _pump(channel.recv, client.sendall, lambda: client.shutdown(socket.SHUT_WR))
        sending.join()


def _pump(receive: Callable[[int], bytes], send: Callable[[bytes], object], end: Callable[[], object]) -> None:
    """Pass bytes on until one side ends, and tell the other side that nothing follows."""
    with suppress(*BROKEN):
        while data := receive(CHUNK):
            send(data)
    with suppress(*BROKEN):
        end()
