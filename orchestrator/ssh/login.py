"""Check the host key, offer only allowed algorithms, and log in with the user's keys."""

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
from orchestrator.ssh.endpoint import HANDSHAKE_S, Endpoint
from orchestrator.ssh.known_hosts import KnownKeys, fingerprint, is_in_revoked_file, keys_of_address
from orchestrator.ssh.refusals import KeyRefusal

CERTIFICATE = "-cert-v01@openssh.com"  # suffix of algorithm names for certificates


# --- the host key ----------------------------------------------------------------------------------------


class KeyRefused(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    """The host showed a key that is not trusted for it."""

    def __init__(self, endpoint: Endpoint, known: KnownKeys, key: Any, why: str) -> None:
        super().__init__(f"{endpoint} shows {fingerprint(key.asbytes())}")
        self.refusal = KeyRefusal(endpoint, known, key.get_name(), key.asbytes(), why, key.get_bits())


class KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accept a host key only if the known_hosts files have it, it is not revoked and not too short.

    paramiko's client gets no known keys, so it asks this policy about every key. Its own check would compare only with
    the first key of a type, and ignore patterns and `@revoked`.
    """

    def __init__(self, endpoint: Endpoint, known: KnownKeys) -> None:
        self._endpoint, self._known = endpoint, known

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Return if `key` is trusted. Raise KeyRefused if it is not."""
        blob, known = key.asbytes(), self._known
        address = keys_of_address(self._endpoint, peer) if (peer := _peer_address(client)) else known
        if blob in known.revoked | address.revoked or is_in_revoked_file(self._endpoint, key.get_name(), blob):
            raise KeyRefused(self._endpoint, known, key, "revoked")
        if key.get_name() == "ssh-rsa" and key.get_bits() < self._endpoint.algorithms.rsa_bits:
            raise KeyRefused(self._endpoint, known, key, "short")
        if blob not in [trusted for _, trusted in known.trusted]:
            raise KeyRefused(self._endpoint, known, key, "changed" if known.trusted else "unknown")
        if address.trusted and blob not in [trusted for _, trusted in address.trusted]:
            raise KeyRefused(self._endpoint, address, key, "address")


def _peer_address(client: Any) -> str:
    """Return the IP address of the host; empty behind a jump host or a proxy, since only that machine knows it."""
    try:
        name = client.get_transport().sock.getpeername()
    except (AttributeError, OSError):
        return ""
    is_address = isinstance(name, tuple) and len(name) >= 2 and isinstance(name[0], str)
    return str(name[0]).partition("%")[0] if is_address else ""


def allowed(what: str, endpoint: Endpoint, stated: Sequence[str], ours: Sequence[str]) -> tuple[str, ...]:
    """Return the algorithms to offer: those of `stated` that are in `ours`, or all of `ours` if `stated` is empty.

    Args:
        what: The option of the SSH configuration, for messages.
        endpoint: The hop, for messages.
        stated: The algorithms that the configuration allows, in order of preference.
        ours: The algorithms that this client supports.

    Raises:
        HostError: None is left.
    """
    common = tuple(name for name in stated if name in ours) if stated else tuple(ours)
    if not common:
        raise HostError(
            f"connecting to {endpoint}: {what} of the SSH configuration allows no algorithm that this client supports:"
            f" {','.join(stated):.200}",
            f"supported: {', '.join(ours)}",
        )
    return common


def transport_factory(endpoint: Endpoint, known: KnownKeys) -> Callable[..., Any]:
    """Return a function that builds paramiko transports which offer only what the configuration allows.

    Types of host key that `known` has come first, as with OpenSSH, so that the host shows a key that can be checked.
    """
    algorithms = endpoint.algorithms
    wanted = {kind for kind, _ in known.trusted}
    if "ssh-rsa" in wanted:  # a key of this type signs with one of these algorithms
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


# --- logging in ------------------------------------------------------------------------------------------


class _KeyAgent(AgentSSH):  # type: ignore[misc]
    """The key agent at a given socket. paramiko's own class always uses SSH_AUTH_SOCK."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path is None:
            return
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.connect(path)
            self._connect(sock)
            sock.settimeout(None)  # the agent may wait for its user's consent to sign
        except (OSError, paramiko.SSHException):  # without an agent there are no keys of an agent
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
    """Return the length in bits of an RSA key in the wire format, 0 for others. paramiko lacks it for agent keys."""
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
        except TypeError as error:  # raised by the library `cryptography`
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
    """Log in as OpenSSH does: without a key, with keys of the agent, then with key files.

    Keys of the agent that the configuration also names come first; with IdentitiesOnly no others are offered.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(ssh_config=None)
        self._endpoint = endpoint
        self._agent = _KeyAgent(endpoint.agent)

    def authenticate(self, transport: Any) -> Any:
        """Log in, then disconnect from the key agent. Raise paramiko's AuthFailure if no attempt succeeds."""
        try:
            return super().authenticate(transport)
        finally:
            self._agent.close()

    def get_sources(self) -> Iterator[Any]:
        """Yield what to try, in order."""
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
