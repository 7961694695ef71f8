"""One project as its user sees it: jobs.toml, the hosts behind it, the runs that are known here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.client import Box
from orchestrator.box.known_runs import Address, KnownRun, KnownRuns
from orchestrator.box.mirror import Mirror
from orchestrator.box.retry import Patient
from orchestrator.box.transport import Transport
from orchestrator.errors import LaptopError, OrchError
from orchestrator.spec.load import find, load
from orchestrator.spec.local_environment import named_sources
from orchestrator.spec.models import LOCAL, Host, Spec
from orchestrator.spec.secrets import Vault
from remote.contract.paths import ProjectPaths

if TYPE_CHECKING:
    from orchestrator.ssh.fabric import SshTransport


class Project:
    """Opens a transport to a host when it is first needed; `close` ends them all."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        results = spec.directory / "results"
        self.mirror, self.known = Mirror(results), KnownRuns(results)
        self.vault = Vault(spec)
        self.say_waiting: Callable[[str], None] = lambda text: None  # hears of every lost connection that is waited for
        self._transports: dict[str, Transport] = {}

    @classmethod
    def open(cls, start: Path) -> Project:
        """Return the project that `start` lies in. Raise SpecError where there is none."""
        project = cls(load(find(start)))
        project.record(lambda: project.known.adopt_mirrors(project.spec.hosts, project.spec.project.name))
        return project

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()

    # --- hosts ---------------------------------------------------------------------------------------

    def transport(self, name: str) -> Transport:
        if name not in self._transports:
            host = self.spec.host(name)
            self._transports[name] = self.ssh_transport(name) if host.ssh else self._local_transport(host)
        return self._transports[name]

    def ssh_transport(self, name: str) -> SshTransport:
        """Return a transport of its own to a host that has `ssh`, not yet connected; whoever asks for it closes it.

        SSH is imported only for a host that needs it.
        """
        from orchestrator.ssh.fabric import SshTransport

        host, known = self.spec.host(name), self.spec.project.known_hosts
        assert host.ssh is not None
        known_hosts = self.spec.directory / known if known else None
        return SshTransport(host.name, host.ssh, host.identity, host.python, known_hosts=known_hosts)

    def _local_transport(self, host: Host) -> Transport:
        from orchestrator.box.local import LocalTransport

        return LocalTransport(host.name, host.python, named_sources(self.spec))

    def box(self, name: str) -> Box:
        """Return the agent on a host, for the runs where a launch puts them now."""
        return Box(self.transport(name), self.address(name).where)

    def patient_box(self, name: str) -> Box:
        """Return the same box, which outlasts a lost connection and says so."""
        return Box(Patient(self.transport(name), self.say_waiting), self.address(name).where)

    def address(self, name: str) -> Address:
        """Where a launch on the host puts its runs now."""
        return Address.of(self.spec.host(name), self.spec.project.name)

    def host_of(self, run: KnownRun) -> str | None:
        """Return the host's name in jobs.toml, also where it was renamed; None where no entry leads there."""
        if run.host in self.spec.hosts:
            return run.host
        same = [host.name for host in self.spec.hosts.values() if host.ssh and host.ssh == run.address.ssh]
        return same[0] if same else None

    def is_foreign(self, run: KnownRun) -> bool:
        """Whether the run was neither launched from here nor is on the host that jobs.toml names for its job."""
        job = self.spec.jobs.get(run.job)
        return not run.launched_here and (job is None or job.host != self.host_of(run))

    def newest_id(self) -> str | None:
        """Return the newest id of the runs that count in the order of runs."""
        return max((run.run_id for run in self.known.all() if not self.is_foreign(run)), default=None)

    def address_of_run(self, run: KnownRun) -> Address:
        """Return where the run is: where it was launched, also after its host's root or the project was renamed."""
        host = self.host_of(run) or run.host
        if host in self.spec.hosts and run.address.ssh is None and not Path(run.address.root).is_dir():
            return self.address(host)  # the project's own directory was moved, and the runs with it
        return run.address

    def hosts_of_jobs(self) -> list[str]:
        return sorted({job.host for job in self.spec.jobs.values()})

    def uses_local(self) -> bool:
        """Whether a job runs on this machine, or did."""
        return LOCAL in self.hosts_of_jobs() or self._local_runs().is_dir()

    def _local_runs(self) -> Path:
        return ProjectPaths(Path(self.spec.host(LOCAL).root), self.spec.project.name).runs

    def hosts_to_ask(self) -> list[str]:
        """Hosts that may have news: those of runs that are not complete here, those never asked, and this machine."""
        names = {self.host_of(run) for run in self.known.all() if not run.is_complete}
        names |= {host for host in self.hosts_of_jobs() if not self.known.was_asked(host, self.address(host))}
        if self._local_runs().is_dir():
            names.add(LOCAL)
        return sorted(name for name in names if name is not None)

    def record(self, write: Callable[[], None]) -> list[str]:
        """Write a record whose absence costs only convenience; return why it could not be written, if so."""
        try:
            write()
        except OrchError as error:
            return [error.message]
        except OSError as error:
            return [LaptopError.of(error).message]
        return []
