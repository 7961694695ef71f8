"""One SSH connection, and commands on it; what the SSH library raises becomes an error of ours."""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import paramiko
from fabric import Config, Connection
from paramiko.auth_strategy import AuthFailure

from orchestrator.errors import HostError, HostKeyRefused, HostTooSlow, HostUnreachable, LoginRefused, OrchError
from orchestrator.ssh.command import TRY_AGAIN
from orchestrator.ssh.config import ALIVE_S, CONNECT_S, HANDSHAKE_S, Endpoint
from orchestrator.ssh.known_hosts import KnownKeys, fingerprint
from orchestrator.ssh.login import KeyRefused, KnownHostsOnly, Login, asking_for
from orchestrator.system.children import Child
from orchestrator.system.limits import TOO_SLOW, TooSlow, calling_after

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks reach the terminal


# --- foreign exceptions become ours -------------------------------------------------------------------


@contextmanager
def translated(doing: str) -> Iterator[str]:
    """Yields `doing`; whatever SSH raises inside leaves as a HostError that says it."""
    try:
        yield doing
    except OrchError:
        raise
    except KeyRefused as error:
        raise _key_refused(doing, error) from error
    except paramiko.IncompatiblePeer as error:
        raise HostError(
            f"{doing}: the host and this machine share no algorithm: {error}", "update the SSH server of the host"
        ) from error
    except AuthFailure as error:
        raise _login_refused(doing, error) from error
    except TooSlow as error:
        raise HostTooSlow(f"{doing}: {error}", TOO_SLOW) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise HostUnreachable(f"{doing}: {_reason(error)}", TRY_AGAIN) from error


def _key_refused(doing: str, error: KeyRefused) -> HostKeyRefused:
    shown, name = f"{error.kind} {fingerprint(error.key)}", error.known.names[0]
    files = [str(file) for file in error.endpoint.known_hosts] or ["no known-hosts file"]
    where = f"{files[0]} ({name})"
    if error.why == "revoked":
        return HostKeyRefused(
            f"{doing}: its host key {shown} is marked as revoked in {' or '.join([*files, *_revoked_file(error)])}",
            "someone else may have this key and pretend to be the host: do not connect to it",
        )
    if error.why == "short":
        bits = error.endpoint.algorithms.rsa_bits
        return HostKeyRefused(
            f"{doing}: its host key {shown} has {error.bits} bits, fewer than RequiredRSASize ({bits})",
            "give the host an ed25519 key, or change RequiredRSASize in the SSH configuration",
        )
    if error.why == "unknown":
        hint = "compare the fingerprint with another source, then pin the key: orch trust HOST"
        return HostKeyRefused(f"{doing}: its host key {shown} is unknown: {where} has none", hint)
    known = ", ".join(f"{kind} {fingerprint(key)}" for kind, key in error.known.trusted)
    if error.why == "address":
        return HostKeyRefused(
            f"{doing}: its host key {shown} does not match the key of its address (CheckHostIP): {where} has {known}",
            "this may be a man-in-the-middle attack. "
            f"If the address now belongs to another host: ssh-keygen -R '{name}' -f '{files[0]}'",
        )
    return HostKeyRefused(
        f"{doing}: ITS HOST KEY HAS CHANGED: it shows {shown}, {where} has {known}",
        "this may be a man-in-the-middle attack. If the box was set up again, replace the key: orch trust HOST",
    )


def _revoked_file(error: KeyRefused) -> list[str]:
    return [str(error.endpoint.revoked_file)] if error.endpoint.revoked_file else []


def _login_refused(doing: str, error: Any) -> HostError:
    """`error.result` holds every try; the first is the one without a key."""
    nothing, *keys = error.result
    if not any(isinstance(attempt.result, paramiko.AuthenticationException) for attempt in keys or [nothing]):
        return HostUnreachable(f"{doing}: while logging in: {_reason((keys or [nothing])[0].result)}", TRY_AGAIN)
    tried = "; ".join(f"{attempt.source.label}: {_reason(attempt.result)}" for attempt in keys)
    return LoginRefused(
        f"{doing}: the host does not accept this user or key ({tried or 'no key available'})",
        "set `identity` of this host in jobs.toml, or add the key to the key agent (`ssh-add`)",
    )


def _no_connection(doing: str, error: OSError) -> HostUnreachable:
    """Explain why the connection failed."""
    if isinstance(error, ConnectionRefusedError):
        hint = "the machine is up, but nothing listens on that port: check that sshd runs there, and on which port"
        return HostUnreachable(f"{doing}: the port refused the connection", hint)
    if isinstance(error, TimeoutError):
        hint = (
            "on EC2, check that the instance is running, "
            "that its security group allows TCP to that port from your address, and that its address has not changed"
        )
        why = "filtered by a firewall, or the host is down or has another address"
        return HostUnreachable(f"{doing}: no answer within {CONNECT_S:g} s: {why}", hint)
    if isinstance(error, socket.gaierror):
        hint = "correct the name, or check the network; the name of an EC2 instance changes when it is started"
        return HostUnreachable(f"{doing}: cannot resolve its name: {error.strerror}", hint)
    return HostUnreachable(f"{doing}: {_reason(error)}", TRY_AGAIN)


def _reason(error: Any) -> str:
    if isinstance(error, EOFError):
        return "the connection was closed by the other side"
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    if isinstance(error, paramiko.ChannelException):
        return f"the SSH server refused: {error.text}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- the connection -----------------------------------------------------------------------------------


class HostConnection(Connection):  # type: ignore[misc]
    """One hop, opened by `open`. Its host key has to be one of `known`."""

    # fabric takes what is no attribute of the class for one of its settings
    label: str = ""
    endpoint: Endpoint = cast(Endpoint, None)
    _known: KnownKeys = cast(KnownKeys, None)
    _proxy: Any = None
    _sock: Any = None  # what leads to the host, also while it is still connecting
    _is_aborted: bool = False

    def __init__(self, label: str, endpoint: Endpoint, known: KnownKeys, gateway: HostConnection | None) -> None:
        settings = Config(ssh_config=paramiko.SSHConfig(), lazy=True)  # and no fabric.yaml of the user
        super().__init__(
            endpoint.hostname,
            user=endpoint.user,
            port=endpoint.port,
            config=settings,
            gateway=gateway or False,
            forward_agent=False,
        )
        self.label, self.endpoint, self._known = label, endpoint, known
        self.client.set_missing_host_key_policy(KnownHostsOnly(endpoint, known))  # fabric's accepts any

    def open(self) -> None:
        if self.is_connected:
            return
        with translated(f"connecting to {self.label} ({self.endpoint})"):
            sock = self._keep(self._socket())
            try:
                self.client.connect(
                    self.host,
                    self.port,
                    sock=sock,
                    timeout=CONNECT_S,
                    banner_timeout=HANDSHAKE_S,
                    auth_timeout=HANDSHAKE_S,
                    channel_timeout=HANDSHAKE_S,
                    transport_factory=asking_for(self.endpoint, self._known),
                    auth_strategy=Login(self.endpoint),
                )
            except BaseException:
                self._end_transport()
                sock.close()
                raise
            self.transport = self.client.get_transport()
            self.transport.set_keepalive(ALIVE_S)

    def start(self, line: str) -> Any:
        """A channel on which the box runs `line`."""
        with translated(f"starting a command on {self.label}"), self._watched():
            channel = self.transport.open_session(timeout=HANDSHAKE_S)
            channel.exec_command(line)
            return channel

    def round_trip(self) -> float:
        """Seconds from a question to the SSH server itself to its answer: the line alone."""
        with translated(f"measuring the round trip to {self.label}"), self._watched():
            asked = time.monotonic()
            self.transport.global_request("keepalive@openssh.com", wait=True)
            return time.monotonic() - asked

    def abort(self) -> None:
        """Break the connection for good, on every hop, from another thread: whoever waits for it gets an error.

        Waits for nothing itself: neither for an answer nor for a lock.
        """
        self._is_aborted = True  # before the look at the socket: one that comes later is given up by `_keep`
        if isinstance(self._sock, socket.socket):
            with suppress(OSError):  # it is not connected; a Mac says so while it is connecting, too
                self._sock.shutdown(socket.SHUT_RDWR)
        self._end_transport()
        if self.gateway:
            self.gateway.abort()

    def close(self) -> None:
        self._end_transport()
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.end()
        if self.gateway:
            self.gateway.close()

    def _end_transport(self) -> None:
        transport = self.client.get_transport()  # the client's own `close` fails where two threads call it at once
        if transport is not None:
            transport.close()

    def _socket(self) -> Any:
        if self.gateway:
            return self._through(self.gateway)
        if self.endpoint.proxy_command:
            return self._proxied(self.endpoint.proxy_command)
        try:
            sock = self._tcp()
        except OSError as error:
            raise _no_connection(f"connecting to {self.label} ({self.endpoint})", error) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each command waits 40 ms for an ACK
        return sock

    def _tcp(self) -> socket.socket:
        """Connect as `socket.create_connection` does, by each address in turn, such that `abort` can end it."""
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock: socket.socket | None = None
            try:
                sock = self._keep(socket.socket(family, kind, protocol))
                sock.settimeout(CONNECT_S)
                sock.connect(address)
                return sock
            except OSError as error:
                failure = error
                if sock is not None:
                    sock.close()
        raise failure

    def _keep(self, sock: Any) -> Any:
        """Make `sock` the one that `abort` ends, and return it. Raise OSError if that was called before."""
        self._sock = sock
        if self._is_aborted:
            sock.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "given up on this machine")
        return sock

    def _through(self, gateway: HostConnection) -> Any:
        gateway.open()
        try:
            return gateway.transport.open_channel("direct-tcpip", (self.host, self.port), ("", 0), timeout=CONNECT_S)
        except paramiko.ChannelException as error:
            raise HostUnreachable(
                f"connecting to {self.label} ({self.endpoint}): {gateway.endpoint.name} cannot reach it: {error.text}",
                f"see whether `nc -vz {self.host} {self.port}` gets through on {gateway.endpoint.name}",
            ) from error

    def _proxied(self, command: str) -> socket.socket:
        """A socket to ProxyCommand's process. (paramiko's own never notices that the process has ended.)"""
        ours, theirs = socket.socketpair()
        with theirs:
            line = ["/bin/sh", "-c", f"exec {command}"]
            options = {"stdin": theirs.fileno(), "stdout": theirs.fileno(), "stderr": subprocess.DEVNULL}
            self._proxy = Child(line, **options)
        return ours

    def _watched(self) -> AbstractContextManager[None]:
        """Ends the connection where starting takes too long: paramiko itself would wait for ever."""
        return calling_after(HANDSHAKE_S, self._end_transport)
