"""One SSH connection, and one command on it. The only file that imports fabric or paramiko."""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import paramiko
from fabric import Config, Connection
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthFailure, AuthStrategy, InMemoryPrivateKey, NoneAuth, PrivateKey

from orchestrator.errors import HostError, HostKeyRefused, HostUnreachable, LoginRefused, OrchError
from orchestrator.ssh_command import TRY_AGAIN
from orchestrator.ssh_config import ALIVE_S, CONNECT_S, Endpoint, KnownKeys

HANDSHAKE_S = 15  # for the banner, for each try to log in, for starting a command

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks reach the terminal


def fingerprint(key: bytes) -> str:
    """Of a host key in the wire format, as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


# --- foreign exceptions become ours -------------------------------------------------------------------


class KeyRefused(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    """The host showed a key that no known-hosts file has for it."""

    def __init__(self, endpoint: Endpoint, known: KnownKeys, key: Any) -> None:
        super().__init__(f"{endpoint} shows {fingerprint(key.asbytes())}")
        self.endpoint, self.known, self.kind, self.key = endpoint, known, key.get_name(), key.asbytes()


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
            f"{doing}: it shares no algorithm with this machine: {error}", "update its SSH server"
        ) from error
    except AuthFailure as error:
        raise _login_refused(doing, error) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise HostUnreachable(f"{doing}: {_reason(error)}", TRY_AGAIN) from error


def _key_refused(doing: str, error: KeyRefused) -> HostKeyRefused:
    shown = f"{error.kind} {fingerprint(error.key)}"
    where = f"known_hosts ({error.known.names[0]})"
    if error.key in error.known.revoked:
        return HostKeyRefused(f"{doing}: its host key {shown} is marked as revoked in {where}", "do not connect to it")
    if not error.known.trusted:
        hint = "compare the fingerprint with one you got another way, then pin the key: `orch trust HOST`"
        return HostKeyRefused(f"{doing}: its host key {shown} is unknown: {where} has none", hint)
    known = ", ".join(f"{kind} {fingerprint(key)}" for kind, key in error.known.trusted)
    return HostKeyRefused(
        f"{doing}: ITS HOST KEY HAS CHANGED: it shows {shown}, {where} has {known}",
        "someone may be in between. If the box was set up anew: "
        f"`ssh-keygen -R '{error.known.names[0]}'`, then `orch trust HOST`",
    )


def _login_refused(doing: str, error: Any) -> HostError:
    """`error.result` holds every try; the first is the one without a key."""
    nothing, *keys = error.result
    if not any(isinstance(attempt.result, paramiko.AuthenticationException) for attempt in keys or [nothing]):
        return HostUnreachable(f"{doing}: while logging in: {_reason((keys or [nothing])[0].result)}", TRY_AGAIN)
    tried = "; ".join(f"{attempt.source.label}: {_reason(attempt.result)}" for attempt in keys)
    return LoginRefused(
        f"{doing}: it does not accept this user or key ({tried or 'there is no key to show it'})",
        "set `identity` of this host in jobs.toml, or add the key to the key agent (`ssh-add`)",
    )


def _reason(error: Any) -> str:
    if isinstance(error, EOFError):
        return "the connection was closed by the other side"
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    if isinstance(error, paramiko.ChannelException):
        return f"the SSH server refused: {error.text}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- who the host is, who we are ----------------------------------------------------------------------


class _KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts a key that is on file for the host, and no other.

    The client is given no keys of its own, so it asks this for every key: it would compare with the first key of a
    type alone, read no patterns and pass over `@revoked`.
    """

    def __init__(self, endpoint: Endpoint, known: KnownKeys) -> None:
        self._endpoint, self._known = endpoint, known

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        blob = key.asbytes()
        if blob in self._known.revoked or blob not in [trusted for _, trusted in self._known.trusted]:
            raise KeyRefused(self._endpoint, self._known, key)


def _asking_for(known: KnownKeys) -> Callable[..., Any]:
    """Builds transports that ask the server first for the types of key that are on file, as OpenSSH does."""
    wanted = {kind for kind, _ in known.trusted}
    if "ssh-rsa" in wanted:  # the key's type; these are the names of its signatures
        wanted |= {"rsa-sha2-512", "rsa-sha2-256"}

    def build(sock: Any, **options: Any) -> Any:
        transport = paramiko.Transport(sock, **options)
        security = transport.get_security_options()
        security.key_types = sorted(security.key_types, key=lambda kind: kind not in wanted)
        return transport

    return build


class _KeyAgent(AgentSSH):  # type: ignore[misc]
    """The key agent at a socket of our choice; paramiko's own reads the environment alone."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path is None:
            return
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.connect(path)
            self._connect(sock)
            sock.settimeout(None)  # an agent may ask its user before it signs
        except (OSError, paramiko.SSHException):  # no agent, no keys
            sock.close()

    def close(self) -> None:
        self._close()


class _KeyFile(PrivateKey):  # type: ignore[misc]
    def __init__(self, username: str, path: Path) -> None:
        super().__init__(username)
        self.path, self.label = path, str(path)

    def authenticate(self, transport: Any) -> Any:
        try:
            self.pkey = paramiko.PKey.from_path(self.path)
        except TypeError as error:  # of the library below
            raise paramiko.PasswordRequiredException("it has a passphrase and is not in the key agent") from error
        except ValueError as error:
            raise paramiko.AuthenticationException("it is no private key") from error
        return super().authenticate(transport)


class _Login(AuthStrategy):  # type: ignore[misc]
    """OpenSSH's order: nothing at all, keys of the agent that the configuration names, its others, key files."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(ssh_config=None)
        self._endpoint = endpoint
        self._agent = _KeyAgent(endpoint.agent)

    def authenticate(self, transport: Any) -> Any:
        try:
            return super().authenticate(transport)
        finally:
            self._agent.close()

    def get_sources(self) -> Iterator[Any]:
        yield NoneAuth(self._endpoint.user)
        files = {path: _public_blob(path) for path in self._endpoint.identities if path.is_file()}
        named = set(files.values()) - {None}
        offered = set()
        for key in sorted(self._agent.get_keys(), key=lambda key: key.blob not in named):
            if key.blob in named or not self._endpoint.identities_only:
                source = InMemoryPrivateKey(self._endpoint.user, key)
                source.label = f"{key.get_name()} {fingerprint(key.blob)} of the key agent"
                offered.add(key.blob)
                yield source
        for path, blob in files.items():
            if blob not in offered:
                yield _KeyFile(self._endpoint.user, path)


def _public_blob(path: Path) -> bytes | None:
    try:
        return base64.b64decode(Path(f"{path}.pub").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None


# --- the connection -----------------------------------------------------------------------------------


class HostConnection(Connection):  # type: ignore[misc]
    """One hop, opened by `open`. Its host key has to be one of `known`."""

    # fabric takes what is no attribute of the class for one of its settings
    label: str = ""
    endpoint: Endpoint = cast(Endpoint, None)
    _known: KnownKeys = cast(KnownKeys, None)
    _proxy: Any = None

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
        self.client.set_missing_host_key_policy(_KnownHostsOnly(endpoint, known))  # fabric's accepts any

    def open(self) -> None:
        if self.is_connected:
            return
        with translated(f"connecting to {self.label} ({self.endpoint})"):
            sock = self._socket()
            try:
                self.client.connect(
                    self.host,
                    self.port,
                    sock=sock,
                    timeout=CONNECT_S,
                    banner_timeout=HANDSHAKE_S,
                    auth_timeout=HANDSHAKE_S,
                    channel_timeout=HANDSHAKE_S,
                    transport_factory=_asking_for(self._known),
                    auth_strategy=_Login(self.endpoint),
                )
            except BaseException:
                self.client.close()
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

    def close(self) -> None:
        self.client.close()
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
            self._proxy = None
        if self.gateway:
            self.gateway.close()

    def _socket(self) -> Any:
        if self.gateway:
            self.gateway.open()
            return self.gateway.transport.open_channel(
                "direct-tcpip", (self.host, self.port), ("", 0), timeout=CONNECT_S
            )
        if self.endpoint.proxy_command:
            return self._proxied(self.endpoint.proxy_command)
        sock = socket.create_connection((self.host, self.port), timeout=CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each command waits 40 ms for an ACK
        return sock

    def _proxied(self, command: str) -> socket.socket:
        """A socket to ProxyCommand's process. (paramiko's own never notices that the process has ended.)"""
        ours, theirs = socket.socketpair()
        with theirs:
            line = ["/bin/sh", "-c", f"exec {command}"]
            self._proxy = subprocess.Popen(
                line, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL
            )
        return ours

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Ends the connection where starting takes too long: paramiko itself would wait for ever."""
        timer = threading.Timer(HANDSHAKE_S, self.client.close)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
