"""One project as its user sees it: jobs.toml, the hosts behind it, the runs known at home."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.local_environment import named_sources
from orchestrator.mirror import Mirror
from orchestrator.patience import Patient
from orchestrator.poll import poll
from orchestrator.spec import LOCAL, Host, Spec
from orchestrator.spec_errors import suggestion
from orchestrator.spec_file import find, load
from orchestrator.transport import Transport
from orchestrator.vault import Vault
from remote.paths import RUN_ID, ProjectPaths


@dataclass(frozen=True)
class Target:
    """A run that the user named; `run_id` is None for the newest of the job."""

    host: str
    job: str
    run_id: str | None


class Project:
    """Opens a transport to a host when it is first needed; `close` ends them all."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.mirror = Mirror(spec.directory / "results")
        self.vault = Vault(spec)
        self.say_waiting: Callable[[str], None] = lambda text: None  # hears of every lost connection that is waited for
        self._transports: dict[str, Transport] = {}

    @classmethod
    def open(cls, start: Path) -> Project:
        """The project that `start` lies in. Raises SpecError."""
        return cls(load(find(start)))

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()

    def transport(self, name: str) -> Transport:
        if name not in self._transports:
            known = self.spec.project.known_hosts
            self._transports[name] = connect(
                self.spec.host(name), self.spec.directory / known if known else None, named_sources(self.spec)
            )
        return self._transports[name]

    def patient(self, name: str) -> Transport:
        """The same transport, which outlasts a lost connection and says so."""
        return Patient(self.transport(name), self.say_waiting)

    def address(self, name: str) -> dict[str, str]:
        """What every request says: where on the host, and of which project."""
        return {"root": self.spec.host(name).root, "project": self.spec.project.name}

    def hosts_in_use(self) -> list[str]:
        """Hosts that may have news: those with runs that are not home and whole, or unheard of, and this machine."""
        names = {report.host for report in self.mirror.reports() if not self.mirror.is_whole(report)}
        names |= self.mirror.unheard_of()
        local = self.spec.host(LOCAL)
        if ProjectPaths(Path(local.root), self.spec.project.name).runs.is_dir():
            names.add(LOCAL)
        return sorted(name for name in names if name in self.spec.hosts)

    def target(self, name: str, on: str | None = None) -> Target:
        """The run that `name`, a job or a run id, means. Raises SpecError with the nearest valid name."""
        known = [report for report in self.mirror.reports() if name in (report.job, report.run_id)]
        if RUN_ID.fullmatch(name):
            return self._run_target(name, known and known[-1].host or on)
        if on is None and known:
            on = max(known, key=lambda report: report.run_id).host
        if not known and name not in self.spec.jobs:
            raise SpecError(f"there is no job or run {name!r}", suggestion(name, self.spec.jobs, "jobs"))
        host = self.spec.host(on or self.spec.job(name).host)
        return Target(host.name, name, None)

    def targets(self, names: Iterable[str], on: str | None = None) -> list[Target]:
        return [self.target(name, on) for name in names]

    def _run_target(self, run_id: str, host: str | None) -> Target:
        for name in [host] if host else self.hosts_in_use():
            for report in poll(self.transport(name), self.address(name), "all"):
                if report.run_id == run_id:
                    return Target(name, report.job, run_id)
        raise SpecError(f"there is no run {run_id!r}", "`orch runs` lists the runs")


def connect(host: Host, known_hosts: Path | None = None, secret_variables: Collection[str] = ()) -> Transport:
    """A transport to `host`, not yet connected. SSH is imported only for a host that needs it.

    `known_hosts` stands in for the files that OpenSSH would look for host keys in; `secret_variables` of this shell
    are passed on to no job.
    """
    if host.ssh is None:
        from orchestrator.local import LocalTransport

        return LocalTransport(host.name, host.python, secret_variables)
    from orchestrator.ssh import SshTransport

    return SshTransport(host.name, host.ssh, host.identity, host.python, known_hosts=known_hosts)
