"""Who the host is, by the keys on file for it, and who we are, by the keys that we can show."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paramiko
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthStrategy, InMemoryPrivateKey, NoneAuth, PrivateKey

from orchestrator.errors import HostError
from orchestrator.ssh.config import HANDSHAKE_S, Endpoint
from orchestrator.ssh.known_hosts import KnownKeys, fingerprint, is_in_revoked_file, keys_of_address

CERTIFICATE = "-cert-v01@openssh.com"  # how the names of algorithms with certificates end


# --- who the host is -------------------------------------------------------------------------------------


class KeyRefused(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    """The host showed a key that may not be used for it.

    `why` is "revoked", "short", "changed", "unknown", or "address" where CheckHostIP finds another key for the address.
    """

    def __init__(self, endpoint: Endpoint, known: KnownKeys, key: Any, why: str) -> None:
        super().__init__(f"{endpoint} shows {fingerprint(key.asbytes())}")
        self.endpoint, self.known, self.kind, self.key = endpoint, known, key.get_name(), key.asbytes()
        self.why, self.bits = why, key.get_bits()


class KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts a key that is on file for the host, is not revoked and not too short, and no other.

    The client is given no keys of its own, so it asks this for every key: it would compare with the first key of a
    type alone, read no patterns and pass over `@revoked`.
    """

    def __init__(self, endpoint: Endpoint, known: KnownKeys) -> None:
        self._endpoint, self._known = endpoint, known

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        blob, known = key.asbytes(), self._known
        address = keys_of_address(self._endpoint, found) if (found := _peer(client)) else known
        if blob in known.revoked | address.revoked or is_in_revoked_file(self._endpoint, key.get_name(), blob):
            raise KeyRefused(self._endpoint, known, key, "revoked")
        if key.get_name() == "ssh-rsa" and key.get_bits() < self._endpoint.algorithms.rsa_bits:
            raise KeyRefused(self._endpoint, known, key, "short")
        if blob not in [trusted for _, trusted in known.trusted]:
            raise KeyRefused(self._endpoint, known, key, "changed" if known.trusted else "unknown")
        if address.trusted and blob not in [trusted for _, trusted in address.trusted]:
            raise KeyRefused(self._endpoint, address, key, "address")


def _peer(client: Any) -> str:
    """The IP address at the other end; empty behind a jump or a proxy, where only that one knows it."""
    try:
        name = client.get_transport().sock.getpeername()
    except (AttributeError, OSError):
        return ""
    is_address = isinstance(name, tuple) and len(name) >= 2 and isinstance(name[0], str)
    return str(name[0]).partition("%")[0] if is_address else ""


def allowed(what: str, endpoint: Endpoint, stated: Sequence[str], ours: Sequence[str]) -> tuple[str, ...]:
    """Return those of `ours` that the configuration states, in its order. Raise HostError if there is none."""
    common = tuple(name for name in stated if name in ours) if stated else tuple(ours)
    if not common:
        raise HostError(
            f"connecting to {endpoint}: {what} of the SSH configuration allows no algorithm that this client supports:"
            f" {','.join(stated):.200}",
            f"supported: {', '.join(ours)}",
        )
    return common


def asking_for(endpoint: Endpoint, known: KnownKeys) -> Callable[..., Any]:
    """Return what builds transports that offer what the configuration allows and nothing else.

    Of the types of host key those that are on file come first, as with OpenSSH.
    """
    algorithms = endpoint.algorithms
    wanted = {kind for kind, _ in known.trusted}
    if "ssh-rsa" in wanted:  # the key's type; these are the names of its signatures
        wanted |= {"rsa-sha2-512", "rsa-sha2-256"}

    def build(sock: Any, **options: Any) -> Any:
        transport = paramiko.Transport(sock, **options)
        security = transport.get_security_options()
        key_types = allowed("HostKeyAlgorithms", endpoint, algorithms.host_keys, security.key_types)
        security.key_types = sorted(key_types, key=lambda kind: kind not in wanted)
        security.kex = allowed("KexAlgorithms", endpoint, algorithms.kex, security.kex)
        security.ciphers = allowed("Ciphers", endpoint, algorithms.ciphers, security.ciphers)
        security.digests = allowed("MACs", endpoint, algorithms.macs, security.digests)
        accepted = [name.removesuffix(CERTIFICATE) for name in algorithms.user_keys]
        ours = transport.preferred_pubkeys
        transport.disabled_algorithms["pubkeys"] = [name for name in ours if accepted and name not in accepted]
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


class _AgentKey(InMemoryPrivateKey):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, key: Any) -> None:
        super().__init__(endpoint.user, key)
        self._endpoint, self.label = endpoint, f"{key.get_name()} {fingerprint(key.blob)} of the key agent"

    def authenticate(self, transport: Any) -> Any:
        _require_allowed(self._endpoint, self.pkey.get_name(), _rsa_bits(self.pkey.blob))
        return super().authenticate(transport)


def _rsa_bits(blob: bytes) -> int:
    """The length of an RSA key in the wire format; 0 for another key. (paramiko knows none for an agent's key.)"""
    message = paramiko.Message(blob)
    if message.get_text() != "ssh-rsa":
        return 0
    message.get_mpint()
    return int(message.get_mpint().bit_length())


class _KeyFile(PrivateKey):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, path: Path) -> None:
        super().__init__(endpoint.user)
        self._endpoint, self.path, self.label = endpoint, path, str(path)

    def authenticate(self, transport: Any) -> Any:
        try:
            self.pkey = paramiko.PKey.from_path(self.path)
        except TypeError as error:  # of the library below
            raise paramiko.PasswordRequiredException("it has a passphrase and is not in the key agent") from error
        except ValueError as error:
            raise paramiko.AuthenticationException("not a private key") from error
        kind = self.pkey.public_blob.key_type if self.pkey.public_blob else self.pkey.get_name()
        _require_allowed(self._endpoint, kind, self.pkey.get_bits())
        return super().authenticate(transport)


def _require_allowed(endpoint: Endpoint, kind: str, bits: int) -> None:
    """Raise AuthenticationException for a user key that the configuration does not allow."""
    algorithms, is_rsa = endpoint.algorithms, kind.startswith("ssh-rsa")
    suffix = CERTIFICATE if kind.endswith(CERTIFICATE) else ""
    names = [f"rsa-sha2-512{suffix}", f"rsa-sha2-256{suffix}"] if is_rsa else [kind]
    if algorithms.user_keys and not set(names) & set(algorithms.user_keys):
        raise paramiko.AuthenticationException(f"PubkeyAcceptedAlgorithms does not allow {kind}")
    if is_rsa and 0 < bits < algorithms.rsa_bits:
        raise paramiko.AuthenticationException(f"{bits} bits, fewer than RequiredRSASize ({algorithms.rsa_bits})")


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
                offered.add(key.blob)
                yield _AgentKey(self._endpoint, key)
        for path, blob in files.items():
            if blob not in offered:
                yield _KeyFile(self._endpoint, path)


def _public_blob(path: Path) -> bytes | None:
    try:
        return base64.b64decode(Path(f"{path}.pub").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
