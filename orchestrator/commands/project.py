"""A project: its jobs.toml, its hosts, and this machine's records and copies of its runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.client import Box
from orchestrator.box.known_runs import Address, KnownRun, KnownRuns
from orchestrator.box.mirror import Mirror
from orchestrator.errors import LaptopError, OrchError
from orchestrator.spec.load import find, load
from orchestrator.spec.local_environment import named_sources
from orchestrator.spec.models import LOCAL, RESULTS, Host, Spec
from orchestrator.spec.secrets import SecretValues
from remote.contract.paths import ProjectPaths

if TYPE_CHECKING:
    from orchestrator.box.transport import Transport
    from orchestrator.ssh.prompts import Asking
    from orchestrator.ssh.ssh_transport import SshTransport


class Project:
    """What a command needs of the project that it works on.

    A transport to a host is opened when it is first needed. `close` closes all of them.

    Attributes:
        spec: The jobs.toml.
        mirror: The copies of runs in results/.
        known: This machine's records of runs.
        secrets: The values of the secrets that the jobs name.
        report_retry: Called with a message each time something that failed is about to be tried again.
        asking: Surrounds questions of `ssh` to the user; None if nobody can be asked.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        results = spec.directory / RESULTS
        self.mirror, self.known = Mirror(results), KnownRuns(results)
        self.secrets = SecretValues(spec)
        self.report_retry: Callable[[str], None] = lambda text: None
        self.asking: Asking | None = None
        self._transports: dict[str, Transport] = {}

    @classmethod
    def open(cls, start: Path) -> Project:
        """Return the project of a jobs.toml, or of the nearest one in a directory and its parents.

        Raises:
            SpecError: There is no jobs.toml, or it has mistakes.
        """
        project = cls(load(find(start)))
        project.record(lambda: project.known.adopt_mirrors(project.spec.hosts, project.spec.project.name))
        return project

    def close(self) -> None:
        """Close every transport that was opened."""
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()

    # --- hosts ---------------------------------------------------------------------------------------

    def transport(self, name: str) -> Transport:
        """Return the transport to a host, which is shared by all callers. Not safe to call from several threads."""
        if name not in self._transports:
            host = self.spec.host(name)
            self._transports[name] = self.ssh_transport(name) if host.ssh else self._local_transport(host)
        return self._transports[name]

    def ssh_transport(self, name: str) -> SshTransport:
        """Return a new transport, not yet connected, to a host that has `ssh`. The caller closes it."""
        host, known = self.spec.host(name), self.spec.project.known_hosts
        assert host.ssh is not None
        arguments = (host.name, host.ssh, host.identity, host.python)
        known_hosts = self.spec.directory / known if known else None
        if uses_openssh(host):
            from orchestrator.ssh.openssh import OpenSshTransport

            return OpenSshTransport(*arguments, known_hosts=known_hosts, root=host.root, asking=self.asking)
        from orchestrator.ssh.fabric import FabricTransport  # imports fabric, which takes long

        return FabricTransport(*arguments, known_hosts=known_hosts, root=host.root)

    def _local_transport(self, host: Host) -> Transport:
        from orchestrator.box.local import LocalTransport

        return LocalTransport(host.name, host.python, named_sources(self.spec))

    def box(self, name: str) -> Box:
        """Return the agent on a host, addressing the runs of a launch made now."""
        return Box(self.transport(name), self.address(name).where)

    def retrying_box(self, name: str) -> Box:
        """Return the same as `box`, but every request is sent again after a lost connection."""
        from orchestrator.box.retry import RetryingTransport

        return Box(RetryingTransport(self.transport(name), self.report_retry), self.address(name).where)

    def address(self, name: str) -> Address:
        """Return where a launch made now puts its runs on the host."""
        return Address.of(self.spec.host(name), self.spec.project.name)

    def host_of(self, run: KnownRun) -> str | None:
        """Return the name of the run's host in jobs.toml, even if the host was renamed; None if it was removed."""
        if run.host in self.spec.hosts:
            return run.host
        same = [host.name for host in self.spec.hosts.values() if host.ssh and host.ssh == run.address.ssh]
        return same[0] if same else None

    def is_foreign(self, run: KnownRun) -> bool:
        """Return True if the run was not launched from here and is not on its job's host in jobs.toml."""
        job = self.spec.jobs.get(run.job)
        return not run.launched_here and (job is None or job.host != self.host_of(run))

    def newest_id(self) -> str | None:
        """Return the newest id of the known runs that are not foreign; None if there are none."""
        return max((run.run_id for run in self.known.all() if not self.is_foreign(run)), default=None)

    def address_of_run(self, run: KnownRun) -> Address:
        """Return where the run was launched, which differs from `address` after a change of `root` or of the name."""
        host = self.host_of(run) or run.host
        if host in self.spec.hosts and run.address.ssh is None and not os.path.isdir(run.address.root):
            return self.address(host)  # the project's directory was moved, and its local runs with it
        return run.address

    def hosts_of_jobs(self) -> list[str]:
        """Return the hosts that jobs.toml names for a job."""
        return sorted({job.host for job in self.spec.jobs.values()})

    def uses_local(self) -> bool:
        """Return True if a job runs on this machine, or has run here."""
        return LOCAL in self.hosts_of_jobs() or self._local_runs().is_dir()

    def _local_runs(self) -> Path:
        return ProjectPaths(Path(self.spec.host(LOCAL).root), self.spec.project.name).runs

    def hosts_to_ask(self) -> list[str]:
        """Return the hosts that may have something new.

        These are the hosts of runs without a complete copy, the hosts of jobs that were never asked, and this machine.
        """
        names = {self.host_of(run) for run in self.known.all() if not run.is_complete}
        names |= {host for host in self.hosts_of_jobs() if not self.known.was_asked(host, self.address(host))}
        if self._local_runs().is_dir():
            names.add(LOCAL)
        return sorted(name for name in names if name is not None)

    def record(self, write: Callable[[], None]) -> list[str]:
        """Call `write`, which writes a record that a command can do without; return the error message, if any."""
        try:
            write()
        except OrchError as error:
            return [error.message]
        except OSError as error:
            return [LaptopError.of(error).message]
        return []


def uses_openssh(host: Host) -> bool:
    """Return whether the host is reached by OpenSSH, which needs `ssh` here and rsync on both sides.

    It is the client of a host that names none, if this machine has `ssh` and `rsync`.
    """
    if host.ssh is None:
        return False
    if host.client is not None:
        return host.client == "openssh"
    return shutil.which("ssh") is not None and shutil.which("rsync") is not None
