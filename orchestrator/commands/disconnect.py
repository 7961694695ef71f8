"""`orch disconnect`: close the connections that stay open between commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from orchestrator.commands.project import Project
from orchestrator.errors import OrchError, SpecError


@dataclass(frozen=True)
class Disconnected:
    """A host, and whether a connection to it was open."""

    host: str
    was_open: bool


def disconnect(project: Project, name: str | None) -> Iterator[Disconnected]:
    """Close the connection to the host `name`, or to every host of the project. Yield each host.

    What other commands do through it ends with it. Runs are not affected.

    Raises:
        SpecError: jobs.toml has no such host, or it is this machine.
        OrchError: The configuration of a host is wrong. Raised after the others; only the first error is raised.
    """
    if name and project.spec.host(name).ssh is None:
        raise SpecError(f"disconnecting {name}: this host is this machine, which needs no connection")
    hosts = [name] if name else [host.name for host in project.spec.hosts.values() if host.ssh]
    errors: list[OrchError] = []
    for host in hosts:
        try:
            with closing(project.ssh_transport(host)) as transport:
                yield Disconnected(host, transport.disconnect())
        except OrchError as error:
            errors.append(error)
    if errors:
        raise errors[0]
