"""Closing a transport, as Ctrl-C does, does not wait for any host, not even one that drops packets."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import HostError, HostUnreachable
from orchestrator.ssh import connection, user_keys
from orchestrator.ssh.ssh_transport import SshTransport
from tests.support import SshdBox, toy_request, wait_until

TIMEOUT_S = 30.0  # seconds after which a thread counts as hanging
SYN_SENT = "02"  # in /proc/net/tcp


class BlackHole:
    """A listener with a full queue: it answers no SYN, like a firewall that drops them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._filling = self._dialling()

    def is_dialled(self) -> bool:
        """Return whether a client is connecting, besides those that fill the queue."""
        return self._dialling() > self._filling

    def _dialling(self) -> int:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        return sum(line[2] == f"0100007F:{self.port:04X}" and line[3] == SYN_SENT for line in lines)


@pytest.fixture
def black_hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlackHole]:
    if sys.platform != "linux":
        pytest.skip("elsewhere a full queue refuses")
    monkeypatch.setattr(connection, "CONNECT_S", 4 * TIMEOUT_S)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        port = int(server.getsockname()[1])
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield BlackHole(port)


@pytest.fixture
def mute_agent(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the listening socket of a key agent that never answers."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent.sock"))
        server.listen(5)
        server.settimeout(TIMEOUT_S)
        yield server


class Asking:
    """A request to the host in its own thread, and the error that it ended with."""

    def __init__(self, transport: SshTransport) -> None:
        self.transport = transport
        self.errors: list[HostError] = []
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        try:
            self.transport.call(toy_request("hello"))
        except HostError as error:
            self.errors.append(error)


def close(transport: SshTransport) -> None:
    """Close it in a thread, so that the test fails if that hangs."""
    closing = threading.Thread(target=transport.close, daemon=True)
    closing.start()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive(), "close() waits"


@pytest.mark.parametrize("way", ["direct", "the jump", "behind a jump"])
def test_close_ends_a_connection_that_gets_no_answer(sshd_box: SshdBox, black_hole: BlackHole, way: str) -> None:
    sshd_box.add_host("hole", Port=black_hole.port)
    sshd_box.add_host("behind", ProxyJump="hole")
    sshd_box.add_host("hole2", Port=black_hole.port, ProxyJump="box")
    name = {"direct": "hole", "the jump": "behind", "behind a jump": "hole2"}[way]
    asking = Asking(sshd_box.transport(ssh=name))
    wait_until(black_hole.is_dialled, what="it to connect")

    close(asking.transport)

    asking.thread.join(TIMEOUT_S)
    assert [type(error) for error in asking.errors] == [HostUnreachable]


def test_close_does_not_wait_for_a_key_agent(
    sshd_box: SshdBox, mute_agent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other thread can interrupt a read from the key agent."""
    monkeypatch.setattr(user_keys, "HANDSHAKE_S", 4 * TIMEOUT_S)
    sshd_box.add_host("asks", IdentityAgent=mute_agent.getsockname())
    asking = Asking(sshd_box.transport(ssh="asks"))
    line, _ = mute_agent.accept()

    close(asking.transport)

    assert asking.thread.is_alive()
    line.close()
    asking.thread.join(TIMEOUT_S)
    assert len(asking.errors) == 1
