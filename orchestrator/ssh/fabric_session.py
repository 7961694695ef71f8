"""The SSH connection to one host: opened at the first use, reused, limited in time, closed for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import HostError, HostKeyRefused, HostUnreachable
from orchestrator.ssh import connection as fabric_connection
from orchestrator.ssh.channel_command import ChannelCommand
from orchestrator.ssh.config import SshConfig
from orchestrator.ssh.connection import HostConnection, SessionRefused
from orchestrator.ssh.endpoint import Endpoint
from orchestrator.ssh.known_hosts import KnownKeys, known_keys
from orchestrator.ssh.login import KeyRefused
from orchestrator.ssh.ssh_session import Session


class FabricSession(Session):
    """The connection to one host, through all its jump hosts.

    It connects at the first use, and again at the next use after the connection broke, but never after `close`.
    Several threads may use one session.
    """

    def __init__(self, host: str, config: SshConfig) -> None:
        self._host, self._config = host, config
        self._connection: HostConnection | None = None
        self._newest: HostConnection | None = None  # may still be connecting
        self._lock = threading.Lock()  # held while connecting
        self._is_closed = False

    def new_connection(self, trusts_host: bool = True) -> HostConnection:
        """Return an unopened connection through every jump host of the configuration.

        If `trusts_host` is False, no key of the host itself counts as known, so opening it shows the host's key.
        """
        *jumps, (_, host) = self._config.route()
        gateway: HostConnection | None = None
        for _, endpoint in jumps:
            label = f"{endpoint.name}, on the way to {self._host}"
            gateway = HostConnection(label, endpoint, known_keys(endpoint), gateway)
        return HostConnection(self._host, host, known_keys(host) if trusts_host else _trust_none(host), gateway)

    def open(self, connection: HostConnection) -> None:
        """Open a connection that `close` can abort. Raise HostError if the session is closed."""
        self._newest = connection
        if self._is_closed:
            raise HostError(f"connecting to {self._host}: the connection was closed on this machine")
        connection.open()

    def connected(self) -> tuple[HostConnection, bool]:
        """Return the open connection, and whether this call opened it."""
        with self._lock:
            if self._connection is not None and self._connection.is_connected:
                return self._connection, False
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            connection = self.new_connection()
            try:
                self.open(connection)
            except BaseException as error:
                connection.close()
                if isinstance(error, HostKeyRefused) and _refused_at(error) == connection.endpoint:
                    error.hint = error.hint.replace("orch trust HOST", f"orch trust {self._host}")
                raise
            self._connection = connection
            return connection, True

    def start(self, line: str, data: bytes, silence_s: float) -> ChannelCommand:
        """Run a command on the box. See `Session.start`."""
        connection, is_new = self.connected()
        try:
            channel = connection.start(line)
        except SessionRefused:
            if is_new:
                raise
            return self._start_alone(line, data, silence_s)
        except HostUnreachable:  # nothing of `data` has reached the box, so trying again is safe
            if is_new:
                raise
            self._drop(connection)
            channel = self.connected()[0].start(line)
        command = ChannelCommand(channel, silence_s)
        try:
            command.send(data)
        except BaseException:
            command.close()
            raise
        return command

    def _start_alone(self, line: str, data: bytes, silence_s: float) -> ChannelCommand:
        """Run a command over a connection of its own, which is closed with it."""
        own = self.new_connection()
        try:
            self.open(own)
            command = ChannelCommand(own.start(line), silence_s, own)
            command.send(data)
        except BaseException:
            own.close()
            raise
        return command

    def sftp(self, window_bytes: int) -> tuple[Any, HostConnection | None]:
        """Return a new channel on which the subsystem sftp runs, and its connection if that must be closed with it.

        See `HostConnection.start_sftp`.
        """
        connection, is_new = self.connected()
        try:
            return connection.start_sftp(window_bytes), None
        except SessionRefused:
            if is_new:
                raise
            own = self.new_connection()
            try:
                self.open(own)
                return own.start_sftp(window_bytes), own
            except BaseException:
                own.close()
                raise
        except HostUnreachable:  # nothing was sent on the new channel, so trying again is safe
            if is_new:
                raise
            self._drop(connection)
            return self.connected()[0].start_sftp(window_bytes), None

    @contextmanager
    def translated(self, doing: str) -> Iterator[str]:
        """Turn paramiko's errors in the block into ours. See `Session.translated`."""
        try:
            with fabric_connection.translated(doing):
                yield doing
        except HostUnreachable:
            self._drop()
            raise

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server."""
        return self.connected()[0].round_trip()

    def close(self) -> None:
        """End the connection for good. See `Session.close`.

        Does not wait for other threads: Ctrl-C ends a command at once, whatever its hosts do.
        """
        self._is_closed = True  # first: `open` then refuses a connection that is made after the next line
        self._abort()
        connection = self._connection
        if connection is not None:
            connection.close()

    def _abort(self) -> None:
        for connection in (self._newest, self._connection):
            if connection is not None:
                connection.abort()

    def _drop(self, only: HostConnection | None = None) -> None:
        """Close the connection; if `only` is given, only if that is still the connection."""
        with self._lock:
            if self._connection is not None and only in (None, self._connection):
                self._connection.close()
                self._connection = None
                self._config.forget()


def _refused_at(error: HostKeyRefused) -> Endpoint | None:
    """Return the hop whose key was refused: the host itself or a jump host."""
    return error.__cause__.refusal.endpoint if isinstance(error.__cause__, KeyRefused) else None


def _trust_none(endpoint: Endpoint) -> KnownKeys:
    known = known_keys(endpoint)
    return KnownKeys(known.names, (), known.revoked)
