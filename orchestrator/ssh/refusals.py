"""Why a host was refused or could not be reached, in the same words for both SSH clients."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostKeyRefused, HostUnreachable
from orchestrator.ssh.endpoint import Endpoint
from orchestrator.ssh.known_hosts import NO_PIN_HINT, KnownKeys, fingerprint

LOGIN_HINT = "set `identity` of this host in jobs.toml, or add the key to the key agent (`ssh-add`)"
OPENSSH_HINT = 'write client = "openssh" for this host in jobs.toml'
ALGORITHM_HINT = "update the SSH server of the host"


@dataclass(frozen=True)
class KeyRefusal:
    """A key that a host showed and that is not trusted for it.

    `why` is "revoked", "short", "changed", "unknown", or "address" if CheckHostIP finds another key for the address.
    `certificate` is why a certificate of the host did not help, if the known_hosts files name an authority.
    """

    endpoint: Endpoint
    known: KnownKeys
    kind: str
    key: bytes  # in the wire format
    why: str
    bits: int = 0
    certificate: str = ""

    def error(self, doing: str) -> HostKeyRefused:
        """Return the error to show. `doing` is the start of its message."""
        shown = f"{self.kind} {fingerprint(self.key)}"
        name = self.known.names[0]
        files = [str(file) for file in self.endpoint.known_hosts] or ["no known-hosts file"]
        where = f"{files[0]} ({name})"
        if self.why == "revoked":
            revoked = [str(self.endpoint.revoked_file)] if self.endpoint.revoked_file else []
            return HostKeyRefused(
                f"{doing}: its host key {shown} is marked as revoked in {' or '.join([*files, *revoked])}",
                "someone else may have this key and pretend to be the host: do not connect to it",
            )
        if self.why == "short":
            least = self.endpoint.algorithms.rsa_bits
            return HostKeyRefused(
                f"{doing}: its host key {shown} has {self.bits} bits, fewer than RequiredRSASize ({least})",
                "give the host an ed25519 key, or change RequiredRSASize in the SSH configuration",
            )
        if self.why == "unknown" and self.known.authorities:
            pin = "compare the fingerprint with another source and pin the key: orch trust HOST"
            why = f"{where} has only a certificate authority (@cert-authority)"
            if not self.certificate:
                why += ", which this client does not support"
                return HostKeyRefused(f"{doing}: its host key {shown} is unknown: {why}", f"{OPENSSH_HINT}, or {pin}")
            why += f", and OpenSSH accepts no certificate of the host: {self.certificate}"
            hint = f"ask whoever runs the authority for a new certificate of the host, or {pin}"
            return HostKeyRefused(f"{doing}: its host key {shown} is unknown: {why}", hint)
        if self.why == "unknown":
            hint = "compare the fingerprint with another source, then pin the key: orch trust HOST"
            if self.endpoint.pin_file is None:
                hint = f"the configuration keeps no keys of hosts: {NO_PIN_HINT}, then run: orch trust HOST"
            return HostKeyRefused(f"{doing}: its host key {shown} is unknown: {where} has none", hint)
        known = ", ".join(f"{kind} {fingerprint(key)}" for kind, key in self.known.trusted)
        if self.why == "address":
            return HostKeyRefused(
                f"{doing}: its host key {shown} does not match the key of its address (CheckHostIP): {where} has"
                f" {known}",
                "this may be a man-in-the-middle attack. "
                f"If the address now belongs to another host: ssh-keygen -R '{name}' -f '{files[0]}'",
            )
        return HostKeyRefused(
            f"{doing}: ITS HOST KEY HAS CHANGED: it shows {shown}, {where} has {known}",
            "this may be a man-in-the-middle attack. If the box was set up again, replace the key: orch trust HOST",
        )


def no_connection(doing: str, kind: str, reason: str) -> HostUnreachable:
    """Return the error for a TCP connection that failed, with its likely cause.

    Args:
        doing: The start of the message.
        kind: "refused", "no answer", "no banner", "name", or anything else.
        reason: What the system said, with the punctuation before it.
    """
    if kind == "refused":
        hint = "the machine is up, but nothing listens on that port: check that sshd runs there, and on which port"
        return HostUnreachable(f"{doing}: the port refused the connection{reason}", hint)
    if kind == "no answer":
        hint = (
            "on EC2, check that the instance is running, "
            "that its security group allows TCP to that port from your address, and that its address has not changed"
        )
        why = "filtered by a firewall, or the host is down or has another address"
        return HostUnreachable(f"{doing}: no answer{reason}: {why}", hint)
    if kind == "no banner":
        hint = "the machine is up, but its sshd hangs, or another program has that port: reboot it, or check the port"
        return HostUnreachable(f"{doing}: the port accepts connections, but no SSH server answers{reason}", hint)
    if kind == "name":
        hint = "correct the name, or check the network; the name of an EC2 instance changes when it is started"
        return HostUnreachable(f"{doing}: cannot resolve its name{reason}", hint)
    return HostUnreachable(f"{doing}{reason}", TRY_AGAIN)


def not_reached_from(doing: str, gateway: str, endpoint: Endpoint, reason: str) -> HostUnreachable:
    """Return the error for a host that its jump host cannot reach."""
    return HostUnreachable(
        f"{doing}: {gateway} cannot reach it: {reason}",
        f"check the connection on {gateway}: nc -vz {endpoint.hostname} {endpoint.port}",
    )
