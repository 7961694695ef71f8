"""`orch df`: what the project uses on each host, and on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.box.copies_here import size_of
from orchestrator.commands.rm import each_host
from orchestrator.errors import OrchError
from orchestrator.spec.models import LOCAL
from remote.contract.files import disk_space

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from orchestrator.commands.rm import Place
    from remote.contract.removals import StoredReply


@dataclass(frozen=True)
class HostDisk:
    """What the project has stored on a host, or why the host could not be asked."""

    host: str
    stored: StoredReply | None
    error: OrchError | None = None


@dataclass(frozen=True)
class Disks:
    """What the project uses: on each host, and in results/ of this machine."""

    hosts: tuple[HostDisk, ...]
    copies: int  # runs with a copy here
    here: int  # bytes of results/
    free: int  # bytes of the disk of this machine

    @property
    def errors(self) -> list[OrchError]:
        """The errors of the hosts."""
        return [host.error for host in self.hosts if host.error]


def disks(project: OpenedProject, on: str | None) -> Disks:
    """Ask each host what it stores, with one request, and count the copies here.

    Args:
        project: The project.
        on: Only this host.

    Raises:
        SpecError: jobs.toml has no such host.
    """
    hosts = sorted(ask_all(project, on), key=lambda each: each.host)
    results = project.mirror.directory
    existing = results if results.is_dir() else project.spec.directory
    copies = sum(project.mirror.has_copy(*name) for name in project.known.names())
    return Disks(tuple(hosts), copies, size_of(results), disk_space(existing).free)


def ask_all(project: OpenedProject, on: str | None) -> Iterator[HostDisk]:
    """Yield what each host stores, as it answers: those of jobs.toml, this machine if it had jobs, or only `on`."""
    hosts = [project.spec.host(on).name] if on else sorted(project.spec.hosts)
    hosts = [host for host in hosts if on or host != LOCAL or project.uses_local()]

    def ask_host(place: Place) -> HostDisk:
        host, address = place
        try:
            return HostDisk(host, project.box(host).at(address.where).stored())
        except OrchError as error:
            return HostDisk(host, None, error)

    yield from each_host(project, [(host, project.address(host)) for host in hosts], ask_host)
