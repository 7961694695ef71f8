"""`orch trust`: a host's key, shown and pinned once its user says that it is the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from orchestrator.errors import SpecError
from orchestrator.project import Project


@dataclass(frozen=True)
class Trusted:
    """A host's key, and the known-hosts file that it is in now."""

    host: str
    fingerprint: str
    file: Path | None  # None: it is this machine, or the user said no


def trust(project: Project, name: str, is_right: Callable[[str, str], bool]) -> Trusted:
    """Pin the key that the host shows now, once `is_right(kind, fingerprint)` says so."""
    if project.spec.host(name).ssh is None:
        raise SpecError(f"trusting {name}: it is this machine and has no host key")
    from orchestrator.ssh import SshTransport

    transport = cast(SshTransport, project.transport(name))
    key = transport.host_key()
    accepted = is_right(key.kind, key.fingerprint)
    return Trusted(name, key.fingerprint, transport.pin(key) if accepted else None)
