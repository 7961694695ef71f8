"""The main sentence in code: spec -> snapshot -> launch -> poll -> mirror. Called by the commands; shows nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from orchestrator import launch as launching
from orchestrator import snapshot as snapshots
from orchestrator.errors import HostError, HostUnreachable, OrchError, SpecError
from orchestrator.mirror import Mirrored
from orchestrator.poll import poll
from orchestrator.project import Project, Target
from orchestrator.reports import HostStatus, RunReport, read_report, read_reports
from orchestrator.spec import Host, Job
from remote.protocol import Queued, Request

HEARTBEAT_PATIENCE = 8.0  # seconds that a launch waits for the first sign of life; importing torch takes most of them
POLL_EVERY = 1.0  # seconds
LONGEST_BACKOFF = 30.0  # seconds between two tries to reach a host again


# --- launch ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launched:
    """What one `orch launch` did: the snapshot that it took, and its runs as the box reported them."""

    snapshot: snapshots.CodeSnapshot
    sent: bool
    runs: tuple[RunReport, ...]


def launch(project: Project, names: Sequence[str], on: str | None, overrides: Sequence[str]) -> Launched:
    """Start the named jobs, each on its host or all `on` one. Raises OrchError; on one host, all start or none."""
    names = list(dict.fromkeys(names))
    spec = project.spec.with_overrides(names, overrides)
    hosts = {name: spec.host(on or spec.job(name).host).name for name in names}
    snapshot = take(project)
    runs: list[RunReport] = []
    sent = False
    for host in dict.fromkeys(hosts.values()):
        jobs = [spec.job(name) for name in names if hosts[name] == host]
        try:
            reports, shipped = _launch_on(project, spec.host(host), jobs, snapshot)
        except OrchError as error:
            if runs:
                started = ", ".join(f"{run.job} on {run.host}" for run in runs)
                error.hint = f"{error.hint} (started before this: {started})".strip()
            raise
        runs += reports
        sent = sent or shipped
    return Launched(snapshot, sent, tuple(runs))


def _launch_on(
    project: Project, host: Host, jobs: Sequence[Job], snapshot: snapshots.CodeSnapshot
) -> tuple[tuple[RunReport, ...], bool]:
    """The runs, and whether the code had to be shipped for them."""
    transport = project.transport(host.name)
    ids = launching.new_run_ids(len(jobs))
    request = launching.request(project.address(host.name), host, jobs, _code_record(snapshot), ids)
    shipped = False
    reports = launching.start(transport, request)
    if reports is None:
        shipped = ship(project, host.name, snapshot)
        reports = launching.start(transport, request)
    for report, entry in zip(reports or (), request["runs"], strict=True):
        project.mirror.remember(report.job, report.run_id, {**request, **entry})
    return reports or (), shipped


def _code_record(snapshot: snapshots.CodeSnapshot) -> dict[str, Any]:
    return {"tree": snapshot.tree, **(asdict(snapshot.git) if snapshot.git else {})}


@dataclass(frozen=True)
class Shipped:
    host: str
    snapshot: snapshots.CodeSnapshot
    sent: bool


def ship_code(project: Project, on: str | None) -> list[Shipped]:
    """Bring the code to one host, or to every host that a job names."""
    spec = project.spec
    hosts = [spec.host(on).name] if on else sorted({job.host for job in spec.jobs.values()})
    snapshot = take(project)
    return [Shipped(host, snapshot, ship(project, host, snapshot)) for host in hosts]


def take(project: Project) -> snapshots.CodeSnapshot:
    return snapshots.take(project.spec.directory, project.spec.project.include, project.spec.project.exclude)


def ship(project: Project, host: str, snapshot: snapshots.CodeSnapshot) -> bool:
    """Bring the snapshot to the host; False where it is there already."""
    address = project.address(host)
    return snapshots.ship(snapshot, project.transport(host), address["project"], address["root"]).sent


def confirm(project: Project, launched: Launched) -> Launched:
    """As it stands once each run has shown a sign of life, waits its turn or has ended; or after HEARTBEAT_PATIENCE."""
    until = time.monotonic() + HEARTBEAT_PATIENCE
    while time.monotonic() < until and not all(_is_settled(run) for run in launched.runs):
        time.sleep(0.2)
        launched = replace(launched, runs=tuple(refresh(project, launched.runs)))
    return launched


def _is_settled(run: RunReport) -> bool:
    return run.has_ended or run.is_lost or isinstance(run.state, Queued) or run.heartbeat is not None


def refresh(project: Project, runs: Sequence[RunReport]) -> Iterator[RunReport]:
    """The same runs as they stand now: one exchange a host."""
    now = {}
    for host in dict.fromkeys(str(run.host) for run in runs):
        mine = [(run.job, run.run_id) for run in runs if run.host == host]
        reports = poll(project.transport(host), project.address(host), "none", mine)
        now.update({(run.job, run.run_id): run for run in reports})
    yield from (now.get((run.job, run.run_id), run.model_copy(update={"supervised": False})) for run in runs)


# --- trust --------------------------------------------------------------------------------------------


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


# --- following ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogBytes:
    offset: int  # of the first byte of `data` in the log
    data: bytes


@dataclass(frozen=True)
class Standing:
    report: RunReport


@dataclass(frozen=True)
class Waiting:
    """The connection is gone; the next try comes in `delay` seconds."""

    error: HostUnreachable
    delay: float


Event = LogBytes | Standing | Waiting


def follow(project: Project, target: Target, lines: int, offset: int | None, once: bool = False) -> Iterator[Event]:
    """The log from byte `offset`, or its last `lines` lines, to the run's end, each byte exactly once.

    A lost connection is taken up again where it broke, for as long as it takes; one that was never made is an error.
    """
    wanted: dict[str, Any] = {**project.address(target.host), "job": target.job, "run_id": target.run_id, "once": once}
    backoff = Backoff()
    connected = False
    while True:
        try:
            request = Request("follow", {**wanted, "offset": offset, "lines": lines})
            for frame in project.transport(target.host).stream(request):
                connected = True
                backoff.reset()
                if "report" in frame.head:
                    report = read_report(target.host, frame.head["report"])
                    wanted["run_id"] = report.run_id  # a later launch of the job must not change what is followed
                    yield Standing(report)
                if frame.data:
                    yield LogBytes(frame.head["offset"], frame.data)
                offset = frame.head["offset"] + len(frame.data)
            return
        except HostUnreachable as error:
            if not connected:
                raise
            yield Waiting(error, backoff.next())
            backoff.sleep()


def wait(project: Project, runs: Sequence[RunReport]) -> Iterator[Standing | Waiting]:
    """Every change of the runs, until each has ended or is lost."""
    backoff = Backoff()
    latest = {(run.job, run.run_id): run for run in runs}
    while not all(run.has_ended or run.is_lost for run in latest.values()):
        time.sleep(POLL_EVERY)
        try:
            for run in refresh(project, list(latest.values())):
                latest[run.job, run.run_id] = run
                yield Standing(run)
            backoff.reset()
        except HostUnreachable as error:
            yield Waiting(error, backoff.next())
            backoff.sleep()


@dataclass
class Backoff:
    """1, 2, 4 ... 30 seconds, each shortened by up to a quarter so that many clients do not come back at once."""

    delay: float = field(default=0.0)

    def next(self) -> float:
        self.delay = min(LONGEST_BACKOFF, self.delay * 2 or 1.0)
        return self.delay

    def sleep(self) -> None:
        time.sleep(self.delay * random.uniform(0.75, 1.0))

    def reset(self) -> None:
        self.delay = 0.0


# --- status, stop, sync -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """Runs as far as they are known, and each host that was asked."""

    runs: tuple[RunReport, ...]
    hosts: tuple[HostStatus, ...]


def overview(project: Project, names: Sequence[str], on: str | None, which: str = "current") -> Overview:
    """Where the runs stand: one exchange with each host that may have news; the mirror speaks for the others."""
    hosts = [project.spec.host(on).name] if on else project.hosts_in_use()
    for host in hosts:
        project.transport(host)  # made here, since the threads below share them
    known = {(run.job, run.run_id): run for run in project.mirror.reports() if on is None or run.host == on}
    open_ends = [run for run in known.values() if not run.has_ended]  # as far as it is known at home
    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
        answers = tuple(pool.map(lambda host: ask(project, host, which, open_ends), hosts))
    answered = {answer.host for answer in answers if not answer.error}
    for key, run in known.items():
        if run.host in answered and not run.has_ended:
            known[key] = run.model_copy(update={"supervised": False})  # unless the box lists it, below
    known.update({(run.job, run.run_id): run for answer in answers for run in answer.runs})
    runs = sorted(known.values(), key=lambda run: (run.job, run.run_id))
    if names:
        runs = [run for run in runs if run.job in names or run.run_id in names]
        for name in set(names) - {run.job for run in runs} - {run.run_id for run in runs}:
            project.target(name, on)  # raises for a name that means nothing
    if which == "current":
        newest = {run.job: run.run_id for run in runs}
        runs = [run for run in runs if not run.has_ended or newest[run.job] == run.run_id or run.run_id in names]
    return Overview(tuple(runs), answers)


def ask(project: Project, host: str, which: str, also: Sequence[RunReport]) -> HostStatus:
    wanted = [(run.job, run.run_id) for run in also if run.host == host]
    try:
        return HostStatus(host, poll(project.transport(host), project.address(host), which, wanted))
    except HostError as error:
        return HostStatus(host, error=error)


def stop(project: Project, targets: Sequence[Target], by: str) -> tuple[RunReport, ...]:
    """Ask the runs to stop; they do so after a checkpoint, which `wait` sees."""
    reports: list[RunReport] = []
    for host in dict.fromkeys(target.host for target in targets):
        runs = [[target.job, target.run_id] for target in targets if target.host == host]
        result = project.transport(host).call(Request("stop", {**project.address(host), "runs": runs, "by": by}))
        reports += read_reports(host, result)
    return tuple(reports)


def sync(project: Project, targets: Sequence[Target], on: str | None) -> Iterator[Mirrored]:
    """Bring runs home: the named ones, or every run that is not home and whole yet."""
    named = {target.host: [t for t in targets if t.host == target.host] for target in targets}
    hosts = list(named) or ([project.spec.host(on).name] if on else project.hosts_in_use())
    for host in hosts:
        address = project.address(host)
        for report in poll(project.transport(host), address, "all"):
            wanted = not targets or any(_means(target, report) for target in named[host])
            if wanted and not project.mirror.is_whole(report):
                yield project.mirror.bring_home(project.transport(host), address, report)


def _means(target: Target, report: RunReport) -> bool:
    return target.job == report.job and target.run_id in (None, report.run_id)
