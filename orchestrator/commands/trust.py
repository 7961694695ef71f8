"""`orch trust`: a host's key, shown and pinned once its user says that it is the right one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestrator.commands.project import Project
from orchestrator.errors import SpecError


@dataclass(frozen=True)
class Shown:
    """The key that a host shows now, and the fingerprints of other keys on file, which it would replace."""

    kind: str
    fingerprint: str
    replaces: tuple[str, ...]


@dataclass(frozen=True)
class Trusted:
    """A host's key, and the known-hosts file that it is in now."""

    host: str
    fingerprint: str
    file: Path | None  # None: the user said no
    replaced: tuple[str, ...] = ()  # fingerprints


def trust(project: Project, name: str, is_right: Callable[[Shown], bool]) -> Trusted:
    """Pin the key that the host shows now if `is_right` says so; other keys on file for the host are replaced.

    Raise HostKeyRefused for a key that is revoked or too short, SpecError for this machine, or if the key cannot be
    pinned.
    """
    if project.spec.host(name).ssh is None:
        raise SpecError(f"trusting {name}: it is this machine, which needs no host key")
    from orchestrator.ssh.fabric import fingerprint

    with closing(project.ssh_transport(name)) as transport:
        key = transport.host_key()
        shown = Shown(key.kind, key.fingerprint, tuple(map(fingerprint, key.replaced)))
        if not is_right(shown):
            return Trusted(name, key.fingerprint, None)
        return Trusted(name, key.fingerprint, transport.pin(key), shown.replaces)
