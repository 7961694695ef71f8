"""`orch trust`: show a host's key and, after confirmation, pin it in known_hosts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestrator.commands.project import Project
from orchestrator.errors import SpecError


@dataclass(frozen=True)
class OfferedKey:
    """The key that a host offers now, and the fingerprints of the keys in known_hosts that it would replace.

    `is_pinned`: known_hosts has this key and no other one, so there is nothing to confirm.
    """

    kind: str
    fingerprint: str
    replaces: tuple[str, ...]
    is_pinned: bool


@dataclass(frozen=True)
class TrustResult:
    """The key that a host offered, and the known_hosts file that it was written to."""

    host: str
    fingerprint: str
    file: Path | None  # None: not confirmed, so nothing was written
    replaced: tuple[str, ...] = ()  # fingerprints


def trust(project: Project, name: str, confirm: Callable[[OfferedKey], bool]) -> TrustResult:
    """Pin the key that a host offers now, and replace its other keys in known_hosts.

    Args:
        project: The project that defines the host.
        name: The host in jobs.toml.
        confirm: Decides whether to pin the key.

    Raises:
        SpecError: The host is this machine, or the key cannot be pinned.
        HostKeyRefused: The key is revoked or too short.
    """
    if project.spec.host(name).ssh is None:
        raise SpecError(f"trusting {name}: this host is this machine, which needs no host key")
    from orchestrator.ssh.known_hosts import fingerprint

    with closing(project.ssh_transport(name)) as transport:
        key = transport.host_key()
        is_pinned = key.is_trusted and not key.replaced
        offered = OfferedKey(key.kind, key.fingerprint, tuple(map(fingerprint, key.replaced)), is_pinned)
        if not confirm(offered):
            return TrustResult(name, key.fingerprint, None)
        return TrustResult(name, key.fingerprint, transport.pin(key), offered.replaces)
