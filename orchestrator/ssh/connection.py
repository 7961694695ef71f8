"""One SSH connection and the commands on it. Errors of the SSH library become errors of orch."""

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

from orchestrator.box.transport import TRY_AGAIN, Handshake
from orchestrator.errors import AgentUnusable, HostError, HostTooSlow, HostUnreachable, LoginRefused, OrchError
from orchestrator.ssh.endpoint import ALIVE_S, CONNECT_S, HANDSHAKE_S, Endpoint
from orchestrator.ssh.known_hosts import KnownKeys
from orchestrator.ssh.login import KeyRefused, KnownHostsOnly, transport_factory
from orchestrator.ssh.refusals import ALGORITHM_HINT, LOGIN_HINT, OPENSSH_HINT, no_connection, not_reached_from
from orchestrator.ssh.user_keys import Login, NotEnough
from orchestrator.system.children import Child
from orchestrator.system.limits import TOO_SLOW, TooSlow, calling_after

QUESTIONS = ("password", "keyboard-interactive")  # ways to log in that ask the user
NO_SFTP = 'add `Subsystem sftp internal-sftp` to the box\'s sshd_config, or use client = "openssh" for this host'
# paramiko's words; the third is for a server that has not answered after CONNECT_S
NO_BANNER, TIMED_OUT = "Error reading SSH protocol banner", "Authentication timeout."
NO_SESSION = "No existing session"
PROXY_END_S = 0.5  # seconds for a ProxyCommand to exit after it has closed its output

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # otherwise paramiko prints tracebacks to the terminal


SESSION_HINT = "raise MaxSessions in the sshd_config of the host"


class SessionRefused(HostUnreachable):
    """The server allows no further session on this connection (its MaxSessions)."""


# --- translating exceptions ----------------------------------------------------------------------------


@contextmanager
def translated(doing: str) -> Iterator[str]:
    """Yield `doing`. Turn what the SSH library or a socket raises in the block into a HostError that begins with it."""
    try:
        yield doing
    except OrchError:
        raise
    except KeyRefused as error:
        raise error.refusal.error(doing) from error
    except paramiko.IncompatiblePeer as error:
        raise HostError(f"{doing}: the host and this machine share no algorithm: {error}", ALGORITHM_HINT) from error
    except NotEnough as error:
        what = "which this client does not support"
        raise LoginRefused(f"{doing}: the host accepts {error.label}, but {error}, {what}", OPENSSH_HINT) from error
    except AuthFailure as error:
        raise _login_refused(doing, error) from error
    except TooSlow as error:
        raise HostTooSlow(f"{doing}: {error}", TOO_SLOW) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        is_timeout = isinstance(error.__cause__ or error.__context__, TimeoutError)
        if str(error) == NO_SESSION or (str(error).startswith(NO_BANNER) and is_timeout):
            raise no_connection(doing, "no banner", f" within {HANDSHAKE_S} s") from error
        raise HostUnreachable(f"{doing}: {_reason(error)}", TRY_AGAIN) from error


def _login_refused(doing: str, error: Any) -> HostError:
    """Return the error for a login that failed. `error.result` has every attempt; the first one is without a key."""
    if any(str(attempt.result) == TIMED_OUT for attempt in error.result):
        return HostTooSlow(f"{doing}: while logging in: no answer within {HANDSHAKE_S} s", TOO_SLOW)
    without_key, *keys = error.result
    attempts = keys or [without_key]
    if not any(isinstance(attempt.result, paramiko.AuthenticationException) for attempt in attempts):
        return HostUnreachable(f"{doing}: while logging in: {_reason(attempts[0].result)}", TRY_AGAIN)
    told = [list(attempt.result.allowed_types) for attempt in error.result if hasattr(attempt.result, "allowed_types")]
    methods = told[-1] if told else ["publickey"]
    others = [method for method in methods if method in QUESTIONS]
    if "publickey" not in methods:
        why = f"the host accepts only {' or '.join(methods)}, which this client does not support"
        return LoginRefused(f"{doing}: {why}", OPENSSH_HINT)
    tried = "; ".join(f"{attempt.source.label}: {_reason(attempt.result)}" for attempt in keys)
    hint = f"{LOGIN_HINT}; if the host asks for a password or a code, {OPENSSH_HINT}" if others else LOGIN_HINT
    return LoginRefused(f"{doing}: the host does not accept this user or key ({tried or 'no key available'})", hint)


def _no_connection(doing: str, error: OSError) -> HostUnreachable:
    if isinstance(error, ConnectionRefusedError):
        return no_connection(doing, "refused", "")
    if isinstance(error, TimeoutError):
        return no_connection(doing, "no answer", f" within {CONNECT_S:g} s")
    if isinstance(error, socket.gaierror):
        return no_connection(doing, "name", f": {error.strerror}")
    return no_connection(doing, "", f": {_reason(error)}")


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
    """A connection to one hop. Call `open` to connect. The host key must be one of `known`."""

    # fabric treats an attribute that the class lacks as one of its own settings
    label: str = ""
    endpoint: Endpoint = cast(Endpoint, None)
    _known: KnownKeys = cast(KnownKeys, None)
    _proxy: Any = None
    _sock: Any = None  # the socket to the host, set before it is connected
    _is_aborted: bool = False

    def __init__(self, label: str, endpoint: Endpoint, known: KnownKeys, gateway: HostConnection | None) -> None:
        settings = Config(ssh_config=paramiko.SSHConfig(), lazy=True)  # reads no fabric.yaml of the user
        super().__init__(
            endpoint.hostname,
            user=endpoint.user,
            port=endpoint.port,
            config=settings,
            gateway=gateway or False,
            forward_agent=False,
        )
        self.label, self.endpoint, self._known = label, endpoint, known
        self.client.set_missing_host_key_policy(KnownHostsOnly(endpoint, known))  # fabric's own policy accepts any key

    def open(self) -> None:
        """Connect and log in, through the gateway if there is one. Do nothing if connected.

        Raises:
            HostUnreachable: The host cannot be reached or the connection breaks.
            HostKeyRefused: The host key is not trusted.
            LoginRefused: The host accepts none of the keys.
            HostError: No common algorithm, or the configuration allows none that this client supports.
        """
        if self.is_connected:
            return
        with translated(f"connecting to {self.label} ({self.endpoint})"):
            sock = self._register(self._socket())
            try:
                self.client.connect(
                    self.host,
                    self.port,
                    sock=sock,
                    timeout=CONNECT_S,
                    banner_timeout=HANDSHAKE_S,
                    auth_timeout=HANDSHAKE_S,
                    channel_timeout=HANDSHAKE_S,
                    transport_factory=transport_factory(self.endpoint, self._known),
                    auth_strategy=Login(self.endpoint),
                )
            except BaseException as error:
                self._end_transport()
                sock.close()
                is_refused = isinstance(error, AuthFailure | KeyRefused)
                is_broken = isinstance(error, EOFError | paramiko.SSHException) and not is_refused
                if is_broken and (said := self._proxy_error()):
                    raise OSError(said) from error
                raise
            self.transport = self.client.get_transport()
            self.transport.set_keepalive(ALIVE_S)

    def start(self, line: str) -> Any:
        """Run the shell command `line` on the box and return its channel.

        Raises:
            SessionRefused: The connection has as many sessions as the server allows.
            HostUnreachable: The command cannot be started.
        """
        doing = f"starting a command on {self.label}"
        with translated(doing), self._start_limit():
            try:
                channel = self.transport.open_session(timeout=HANDSHAKE_S)
            except paramiko.ChannelException as error:
                raise SessionRefused(f"{doing}: {_reason(error)}", SESSION_HINT) from error
            try:
                channel.exec_command(line)
            except BaseException:
                channel.close()
                raise
            return channel

    def start_sftp(self, window_bytes: int) -> Any:
        """Start the subsystem sftp and return its channel, which may hold `window_bytes` that were not read yet.

        Raises:
            SessionRefused: The connection has as many sessions as the server allows.
            HostUnreachable: The connection broke.
            AgentUnusable: The SSH server has no such subsystem.
        """
        doing = f"starting SFTP on {self.label}"
        with translated(doing), self._start_limit():
            try:
                channel = self.transport.open_session(window_size=window_bytes, timeout=HANDSHAKE_S)
            except paramiko.ChannelException as error:
                raise SessionRefused(f"{doing}: {_reason(error)}", SESSION_HINT) from error
            try:
                channel.invoke_subsystem("sftp")
            except paramiko.SSHException as error:
                channel.close()
                if not self.transport.is_active():
                    raise
                raise AgentUnusable(f"{doing}: the SSH server refused: {_reason(error)}", NO_SFTP) from error
            return channel

    def round_trip(self) -> float:
        """Return the seconds of one request to the SSH server itself, which shows the delay of the network alone."""
        with translated(f"measuring the round trip to {self.label}"), self._start_limit():
            asked = time.monotonic()
            self.transport.global_request("keepalive@openssh.com", wait=True)
            return time.monotonic() - asked

    def handshake(self) -> Handshake:
        """Return what the server and this client told each other when they connected."""
        return Handshake(self.transport.remote_version.partition("-")[2].partition("-")[2], self.transport.kex)

    def abort(self) -> None:
        """Break the connection on every hop for good. A thread that uses it or is connecting gets an error.

        Safe to call from any thread. Does not wait for a reply or a lock.
        """
        self._is_aborted = True  # first: `_register` then closes a socket that is made after the next line
        if isinstance(self._sock, socket.socket):
            with suppress(OSError):  # not connected; macOS also raises this while connecting
                self._sock.shutdown(socket.SHUT_RDWR)
        self._end_transport()
        if self.gateway:
            self.gateway.abort()

    def close(self) -> None:
        """Close the connection, its proxy and its gateway. `open` connects again."""
        self._end_transport()
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.end()
        if self.gateway:
            self.gateway.close()

    def _end_transport(self) -> None:
        transport = self.client.get_transport()  # the client's `close` fails if two threads call it at once
        if transport is not None:
            transport.close()

    def _socket(self) -> Any:
        if self.gateway:
            return self._socket_via_gateway(self.gateway)
        if self.endpoint.proxy_command:
            return self._socket_via_proxy(self.endpoint.proxy_command)
        try:
            sock = self._tcp_socket()
        except OSError as error:
            raise _no_connection(f"connecting to {self.label} ({self.endpoint})", error) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise each command waits 40 ms for an ACK
        return sock

    def _tcp_socket(self) -> socket.socket:
        """Connect to each address in turn, as `socket.create_connection` does, but so that `abort` can interrupt it."""
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock: socket.socket | None = None
            try:
                sock = self._register(socket.socket(family, kind, protocol))
                sock.settimeout(CONNECT_S)
                sock.connect(address)
                return sock
            except OSError as error:
                failure = error
                if sock is not None:
                    sock.close()
        raise failure

    def _register(self, sock: Any) -> Any:
        """Make `sock` the socket that `abort` shuts down, and return it. Raise OSError if `abort` was called before."""
        self._sock = sock
        if self._is_aborted:
            sock.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "aborted on this machine")
        return sock

    def _socket_via_gateway(self, gateway: HostConnection) -> Any:
        gateway.open()
        try:
            return gateway.transport.open_channel("direct-tcpip", (self.host, self.port), ("", 0), timeout=CONNECT_S)
        except paramiko.ChannelException as error:
            doing = f"connecting to {self.label} ({self.endpoint})"
            raise not_reached_from(doing, gateway.endpoint.name, self.endpoint, error.text) from error

    def _socket_via_proxy(self, command: str) -> socket.socket:
        """Start the ProxyCommand and return a socket to it. paramiko's own class does not notice when it ends."""
        ours, theirs = socket.socketpair()
        with theirs:
            line = ["/bin/sh", "-c", f"exec {command}"]
            options = {"stdin": theirs.fileno(), "stdout": theirs.fileno(), "stderr": subprocess.DEVNULL}
            self._proxy = Child(line, **options)
        return ours

    def _proxy_error(self) -> str:
        """Return how a ProxyCommand has failed; "" if there is none, or it has not."""
        if self._proxy is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self._proxy.process.wait(PROXY_END_S)
        code = self._proxy.process.poll()
        return f"the ProxyCommand ended with exit code {code}: run it by hand to see why" if code else ""

    def _start_limit(self) -> AbstractContextManager[None]:
        """End the connection if the block takes longer than `HANDSHAKE_S`: paramiko itself would wait forever."""
        return calling_after(HANDSHAKE_S, self._end_transport)
