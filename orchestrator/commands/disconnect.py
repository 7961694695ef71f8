"""`orch disconnect`: close the connections that stay open between commands."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from orchestrator.commands.project import Project
from orchestrator.errors import SpecError


@dataclass(frozen=True)
class Disconnected:
    """A host, and whether a connection to it was open."""

    host: str
    was_open: bool


def disconnect(project: Project, name: str | None) -> list[Disconnected]:
    """Close the connection to the host `name`, or to every host of the project.

    What other commands do through it ends with it. Runs are not affected.

    Raises:
        SpecError: jobs.toml has no such host, or it is this machine.
    """
    if name and project.spec.host(name).ssh is None:
        raise SpecError(f"disconnecting {name}: this host is this machine, which needs no connection")
    hosts = [name] if name else [host.name for host in project.spec.hosts.values() if host.ssh]
    found = []
    for host in hosts:
        with closing(project.ssh_transport(host)) as transport:
            found.append(Disconnected(host, transport.disconnect()))
    return found
