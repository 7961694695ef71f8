"""Who the host is, by the keys on file for it, and who we are, by the keys that we can show."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthStrategy, InMemoryPrivateKey, NoneAuth, PrivateKey

from orchestrator.ssh_config import HANDSHAKE_S, Endpoint, KnownKeys


def fingerprint(key: bytes) -> str:
    """Of a host key in the wire format, as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


# --- who the host is -------------------------------------------------------------------------------------


class KeyRefused(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    """The host showed a key that no known-hosts file has for it."""

    def __init__(self, endpoint: Endpoint, known: KnownKeys, key: Any) -> None:
        super().__init__(f"{endpoint} shows {fingerprint(key.asbytes())}")
        self.endpoint, self.known, self.kind, self.key = endpoint, known, key.get_name(), key.asbytes()


class KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
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


def asking_for(known: KnownKeys) -> Callable[..., Any]:
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


# --- who we are ------------------------------------------------------------------------------------------


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


class Login(AuthStrategy):  # type: ignore[misc]
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
