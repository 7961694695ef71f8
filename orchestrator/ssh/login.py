"""Check the host key, and offer only allowed algorithms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import paramiko
from paramiko.auth_handler import AuthOnlyHandler

from orchestrator.errors import HostError
from orchestrator.ssh.endpoint import Endpoint
from orchestrator.ssh.key_files import CERTIFICATE
from orchestrator.ssh.known_hosts import KnownKeys, fingerprint, is_in_revoked_file, keys_of_address
from orchestrator.ssh.refusals import OPENSSH_HINT, KeyRefusal

# What OpenSSH offers by default, for an `ssh -G` that does not list it. paramiko would also offer CBC and MD5.
DEFAULT_CIPHERS = ("aes128-ctr", "aes192-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
DEFAULT_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "hmac-sha1",
)

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


# --- the login ------------------------------------------------------------------------------------------


class LoginHandler(AuthOnlyHandler):  # type: ignore[misc]
    """Misses no reply, however soon it comes: paramiko makes the event for it only after it has sent the request."""

    _awaited: threading.Event | None = None

    def send_auth_request(self, *arguments: Any, **options: Any) -> Any:
        """Send a request and wait for its reply."""
        self._awaited = threading.Event()
        return super().send_auth_request(*arguments, **options)

    @property
    def auth_event(self) -> threading.Event | None:
        """The event that a reply sets."""
        return self._awaited

    @auth_event.setter
    def auth_event(self, event: threading.Event | None) -> None:
        """Keep the one that was made before the request was sent."""


# --- algorithms ------------------------------------------------------------------------------------------


class RememberingTransport(paramiko.ServiceRequestingTransport):  # type: ignore[misc]
    """Remembers in `kex` which key exchange was used. paramiko removes it when it is done.

    It signs in the thread that logs in, so that a key agent that refuses ends one attempt, not the connection.
    """

    kex = ""

    def get_auth_handler(self) -> LoginHandler:
        """Return what logs in."""
        return LoginHandler(self)

    @property
    def kex_engine(self) -> Any:
        """The key exchange in progress; None if there is none."""
        return self._engine

    @kex_engine.setter
    def kex_engine(self, engine: Any) -> None:
        self._engine = engine
        if engine is not None:
            self.kex = next((name for name, kind in self._kex_info.items() if type(engine) is kind), "")


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
            f"{OPENSSH_HINT}; this client supports: {', '.join(ours)}",
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
        transport = RememberingTransport(sock, **options)
        security = transport.get_security_options()
        key_types = allowed("HostKeyAlgorithms", endpoint, algorithms.host_keys, security.key_types)
        security.key_types = sorted(key_types, key=lambda kind: kind not in wanted)
        security.kex = allowed("KexAlgorithms", endpoint, algorithms.kex, security.kex)
        security.ciphers = allowed("Ciphers", endpoint, algorithms.ciphers or DEFAULT_CIPHERS, security.ciphers)
        security.digests = allowed("MACs", endpoint, algorithms.macs or DEFAULT_MACS, security.digests)
        accepted = [name.removesuffix(CERTIFICATE) for name in algorithms.user_keys]
        ours = transport.preferred_pubkeys
        transport.disabled_algorithms["pubkeys"] = [name for name in ours if accepted and name not in accepted]
        return transport

    return build
