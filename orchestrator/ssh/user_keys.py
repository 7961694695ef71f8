"""Log in with the user's keys: those of the key agent, key files, and their certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthSource, AuthStrategy, InMemoryPrivateKey, NoneAuth, PrivateKey
from paramiko.pkey import PublicBlob

from orchestrator.ssh.endpoint import HANDSHAKE_S, Endpoint
from orchestrator.ssh.key_files import (
    CERTIFICATE,
    NEEDS_AGENT,
    Certificate,
    is_public,
    notes_on,
    problem_of,
    public_blob,
)
from orchestrator.ssh.known_hosts import fingerprint

AGENT_FAILURE = 5  # the answer of a key agent that refuses a request


class _KeyAgent(AgentSSH):  # type: ignore[misc]  # paramiko ships no types
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

    def _send_message(self, msg: Any) -> Any:
        kind, answer = super()._send_message(msg)
        if kind == AGENT_FAILURE:
            raise paramiko.AuthenticationException("the key agent does not sign with it (declined, or no device)")
        return kind, answer


class _AgentKey(InMemoryPrivateKey):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, key: Any, certificate: Certificate | None = None) -> None:
        super().__init__(endpoint.user, key)
        self._endpoint, self._certificate = endpoint, certificate
        name = f"{key.get_name()} {fingerprint(key.blob)} of the key agent"
        self.label = f"{name}, with {certificate.path}" if certificate else name

    def authenticate(self, transport: Any) -> Any:
        kind = self._certificate.kind if self._certificate else self.pkey.get_name()
        _require_allowed(self._endpoint, kind, _rsa_bits(self.pkey.blob))
        if self._certificate:
            self.pkey.public_blob = PublicBlob(kind, self._certificate.blob)
        elif kind.endswith(CERTIFICATE):  # otherwise paramiko would offer an RSA key without its certificate
            self.pkey.public_blob = PublicBlob(kind, self.pkey.blob)
        return super().authenticate(transport)


class _KeyFile(PrivateKey):  # type: ignore[misc]
    def __init__(self, endpoint: Endpoint, path: Path, certificate: Certificate | None = None) -> None:
        super().__init__(endpoint.user)
        self._endpoint, self.path, self._certificate = endpoint, path, certificate
        self.label = f"{path}, with {certificate.path}" if certificate else str(path)

    def authenticate(self, transport: Any) -> Any:
        if problem := problem_of(self.path):
            raise paramiko.AuthenticationException(problem)
        try:
            self.pkey = paramiko.PKey.from_path(self.path)
        except TypeError as error:  # raised by the library `cryptography`
            raise paramiko.PasswordRequiredException("it has a passphrase and is not in the key agent") from error
        except UnsupportedAlgorithm as error:
            why = 'the client "fabric" does not support keys of this type, such as FIDO keys'
            raise paramiko.AuthenticationException(why) from error
        except ValueError as error:
            raise paramiko.AuthenticationException("not a private key") from error
        kind, self.pkey.public_blob = self.pkey.get_name(), None
        if self._certificate:
            kind = self._certificate.kind
            self.pkey.public_blob = PublicBlob(kind, self._certificate.blob)
        _require_allowed(self._endpoint, kind, self.pkey.get_bits())
        return super().authenticate(transport)


class _Unusable(AuthSource):  # type: ignore[misc]
    """A file of the configuration that has no private key."""

    def __init__(self, endpoint: Endpoint, path: Path, why: str) -> None:
        super().__init__(endpoint.user)
        self.label, self._why = str(path), why

    def authenticate(self, transport: Any) -> Any:
        raise paramiko.AuthenticationException(self._why)


def _rsa_bits(blob: bytes) -> int:
    """Return the length in bits of an RSA key in the wire format, 0 for others. paramiko lacks it for agent keys."""
    message = paramiko.Message(blob)
    if message.get_text() != "ssh-rsa":
        return 0
    message.get_mpint()
    return int(message.get_mpint().bit_length())


def _require_allowed(endpoint: Endpoint, kind: str, bits: int) -> None:
    """Raise AuthenticationException for a user key that the configuration does not allow."""
    algorithms, is_rsa = endpoint.algorithms, kind.startswith("ssh-rsa")
    suffix = CERTIFICATE if kind.endswith(CERTIFICATE) else ""
    names = [f"rsa-sha2-512{suffix}", f"rsa-sha2-256{suffix}"] if is_rsa else [kind]
    if algorithms.user_keys and not set(names) & set(algorithms.user_keys):
        raise paramiko.AuthenticationException(f"PubkeyAcceptedAlgorithms does not allow {kind}")
    if is_rsa and 0 < bits < algorithms.rsa_bits:
        raise paramiko.AuthenticationException(f"{bits} bits, fewer than RequiredRSASize ({algorithms.rsa_bits})")


class NotEnough(paramiko.AuthenticationException):  # type: ignore[misc]
    """The host accepted a key and asks for more. `label` names the key."""

    def __init__(self, label: str, methods: list[str]) -> None:
        super().__init__(f"the host also asks for {' or '.join(methods)}")
        self.label, self.methods = label, methods


class Login(AuthStrategy):  # type: ignore[misc]
    """Log in as OpenSSH does: without a key, with certificates, with keys of the agent, then with key files.

    Keys of the agent that the configuration also names come first; with IdentitiesOnly no others are offered.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(ssh_config=None)
        self._endpoint = endpoint
        self._agent = _KeyAgent(endpoint.agent)

    def authenticate(self, transport: Any) -> Any:
        """Log in, then disconnect from the key agent.

        Raises:
            AuthFailure: No attempt succeeds.
            NotEnough: The host accepts a key and asks for a further proof.
        """
        try:
            result = super().authenticate(transport)
        finally:
            self._agent.close()
        if not transport.is_authenticated():
            last = result[-1]
            raise NotEnough(getattr(last.source, "label", "no key"), list(last.result))
        return result

    def get_sources(self) -> Iterator[Any]:
        """Yield what to try, in order."""
        yield NoneAuth(self._endpoint.user)
        files = {path: public_blob(path) for path in self._endpoint.identities}
        beside = (Path(f"{path}-cert.pub") for path in files)
        certificates = [found for path in (*self._endpoint.certificates, *beside) if (found := Certificate.read(path))]
        named = {*files.values(), *(certificate.blob for certificate in certificates)}
        keys = sorted(self._agent.get_keys(), key=lambda key: key.blob not in named)
        keys = [key for key in keys if key.blob in named or not self._endpoint.identities_only]
        offered = {key.blob for key in keys}
        for certificate in certificates:
            if certificate.blob not in offered:  # otherwise the agent signs for it
                yield from (_AgentKey(self._endpoint, key, certificate) for key in keys if key.blob == certificate.key)
                for path, blob in files.items():
                    if blob == certificate.key and blob not in offered and path.is_file():
                        yield _KeyFile(self._endpoint, path, certificate)
        yield from (_AgentKey(self._endpoint, key) for key in keys)
        for path, blob in files.items():
            if blob in offered:
                continue
            if path.exists() and not is_public(path):
                yield _KeyFile(self._endpoint, path)
            elif blob is not None or notes_on([path]):
                yield _Unusable(self._endpoint, path, "no such file" if blob is None else NEEDS_AGENT)
