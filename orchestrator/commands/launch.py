"""Launch jobs: spec -> snapshot -> preflight -> rehearsal -> launch. Called by the commands; shows nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.known_runs import KnownRun
from orchestrator.box.launch_request import launch_request, run_record
from orchestrator.box.run_ids import is_ahead, new_run_ids, skew_note
from orchestrator.checks import gpu_memory, preflight, rehearsal
from orchestrator.checks.check import Check
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands import doctor, rehearse
from orchestrator.commands.project import Project
from orchestrator.commands.shipping import Approve, named, ship, take
from orchestrator.errors import OrchError, Refused, SpecError
from orchestrator.spec.local_environment import left_out, named_sources
from orchestrator.spec.models import Host, Job
from orchestrator.text import duration
from remote.contract.requests import RunEntry
from remote.contract.run_record import RunRecord
from remote.contract.run_report import RunReport

Say = Callable[[str], None]  # hears what is being done, for a person who waits


# --- launch ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """One check of a host or a job, by its name."""

    about: str
    check: Check


@dataclass(frozen=True)
class Launched:
    """What one `orch launch` did: the snapshot that it took, the rehearsals, and its runs as the box reported them."""

    snapshot: CodeSnapshot
    sent: bool = False
    checks: tuple[Checked, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    runs: tuple[RunReport, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know beside them


def launch(
    project: Project,
    names: Sequence[str],
    on: str | None,
    overrides: Sequence[str],
    say: Say,
    approve: Approve,
    rehearse_only: bool = False,
) -> Launched:
    """Start the named jobs, each on its host or all `on` one. Raises OrchError; on one host, all start or none.

    What has not been rehearsed on the host is rehearsed first; Refused where that fails. With `rehearse_only` it is
    in any case, and nothing is started. `approve` is asked before code is sent that is unusually large.
    """
    names = list(dict.fromkeys(names))
    spec = project.spec.with_overrides(names, overrides)
    hosts = {name: spec.host(on or spec.job(name).host).name for name in names}
    snapshot = take(project)
    for name in names:
        project.vault.values(spec.job(name))  # asked for before anything is started, and before a line is in the way
    launched = Launched(snapshot)
    for host in dict.fromkeys(hosts.values()):
        jobs = [spec.job(name) for name in names if hosts[name] == host]
        step = _Launch(project, spec.host(host), jobs, snapshot, say, approve)
        try:
            step.check() if rehearse_only else step.start()
        except OrchError as error:
            missed = [item for item in snapshot.withheld if PurePosixPath(item.path).name in error.message]
            if missed and isinstance(error, Refused):
                error.hint = f"not sent: {named(missed)}; to send it anyway, list it in [project] include"
            if launched.runs:
                started = ", ".join(f"{run.job} on {run.host}" for run in launched.runs)
                error.hint = f"{error.hint} (already started: {started})".strip()
            raise
        launched = Launched(
            snapshot,
            launched.sent or step.sent,
            (*launched.checks, *step.checks),
            (*launched.outcomes, *step.outcomes),
            (*launched.runs, *step.runs),
            (*launched.notes, *step.notes),
        )
    return launched


class _Launch:
    """One launch on one host."""

    def __init__(
        self,
        project: Project,
        host: Host,
        jobs: Sequence[Job],
        snapshot: CodeSnapshot,
        say: Say,
        approve: Approve,
    ) -> None:
        self.project, self.host, self.jobs, self.snapshot, self.say = project, host, jobs, snapshot, say
        self.approve = approve
        self.sent = False
        self.checks: tuple[Checked, ...] = ()
        self.outcomes: tuple[Outcome, ...] = ()
        self.runs: tuple[RunReport, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._facts_there = BoxFacts()
        self._patient = project.patient_box(host.name)
        self._keys = rehearsal.wanted_keys(jobs, host, snapshot.tree)

    def start(self) -> None:
        """Two exchanges where code and rehearsal are known to the box: its facts, and the launch."""
        self._preflight()
        self._check_gpu_memory()
        request = launch_request(self.host, self.snapshot.record(), self._entries())
        with self._intended(request.runs):
            answer = self._patient.launch(replace(request, rehearsed=self._keys))
            if answer.unrehearsed:
                passed = self._rehearse([job for job in self.jobs if job.name in answer.unrehearsed])
                self._check_gpu_memory()
                answer = self._patient.launch(replace(request, passed=passed))
        for report, entry in zip(answer.runs, request.runs, strict=True):
            self._remember(report, run_record(self.project.spec.project.name, request, entry))
        self.runs = answer.runs

    def _entries(self) -> list[RunEntry]:
        """One entry for each job, under ids that sort after every run that is known here or on the box."""
        now = time.time()
        known = [run_id for run_id in (self.project.newest_id(), self._facts_there.newest_run) if run_id]
        newest = max((run_id for run_id in known if not is_ahead(run_id, now)), default=None)
        for run_id in known:
            if note := skew_note(now, run_id):
                self.notes = tuple(dict.fromkeys((*self.notes, note)))
        ids = new_run_ids(len(self.jobs), now, newest)
        return [
            RunEntry(run_id, job.record(), self.project.vault.values(job))
            for run_id, job in zip(ids, self.jobs, strict=True)
        ]

    @contextmanager
    def _intended(self, entries: Sequence[RunEntry]) -> Iterator[None]:
        """Record the runs before the box hears of them: a launch that is cut off may have started them.

        The record goes where somebody has said no: the box, or a rehearsal.
        """
        address = self.project.address(self.host.name)
        runs = [KnownRun(entry.job.name, entry.run_id, self.host.name, address, confirmed=False) for entry in entries]
        for run in runs:
            self.project.known.save(run)
        try:
            yield
        except (Refused, SpecError):
            for run in runs:
                self.project.record(partial(self.project.known.forget, run))
            raise

    def _remember(self, report: RunReport, record: RunRecord) -> None:
        """The run has been started: whatever cannot be written here now is said, and is no failure of the launch."""
        project, address = self.project, self.project.address(self.host.name)
        run = KnownRun(report.job, report.run_id, self.host.name, address, state=report.state)
        problems = project.record(lambda: project.known.save(run))
        problems += project.record(lambda: project.known.note_asked(self.host.name, address))
        problems += project.record(lambda: project.mirror.remember(record))
        note = project.mirror.point_latest(report.job, report.run_id)
        self.notes = (*self.notes, *problems, *([note] if note else []))

    def check(self) -> None:
        self._preflight()
        passed = self._rehearse([job for job in self.jobs if job.name in self._keys])
        self._check_gpu_memory()
        self._patient.launch(replace(launch_request(self.host, self.snapshot.record(), ()), passed=passed))

    def _preflight(self) -> None:
        """What the box says against these jobs, once it has their code. Raises Refused."""
        facts = self._facts()
        if not all(job.has_code for job in facts.jobs.values()):
            self._ship()
            facts = self._facts()
        self._facts_there = facts
        here = doctor.local_rsync() if self.host.ssh else None
        found = [
            Checked(self.host.name, check)
            for check in preflight.check_host(facts, self.host, max(job.gpus for job in self.jobs), rsync_here=here)
        ]
        if self.host.ssh is None:
            withheld = left_out(os.environ, named_sources(self.project.spec))
            found += [Checked(self.host.name, check) for check in preflight.check_environment(withheld)]
        for job in self.jobs:
            found += [Checked(job.name, check) for check in preflight.check_job(facts, job, os.environ)]
        self.checks = tuple(found)
        self._refuse(found)

    def _check_gpu_memory(self) -> None:
        """Whether the jobs fit on their cards together, as far as rehearsals have measured it. Raises Refused."""
        known = {name: job.forecast for name, job in self._facts_there.jobs.items()}
        known.update({outcome.job: outcome.forecast for outcome in self.outcomes})
        peaks = {name: forecast.peak_gpu_bytes for name, forecast in known.items() if forecast}
        needs = [gpu_memory.Need(job.name, job.gpus, peaks.get(job.name)) for job in self.jobs]
        found = [
            Checked(self.host.name, check) for check in gpu_memory.check_forecast(self._facts_there, self.host, needs)
        ]
        others = [checked for checked in self.checks if checked.check.name != gpu_memory.NAME]
        self.checks = (*others, *found)  # what was found before the rehearsal is said no more
        self._refuse(found)

    def _refuse(self, found: Sequence[Checked]) -> None:
        failed = [checked for checked in found if checked.check.status == "fail"]
        if failed:
            said = "\n".join(f"{checked.about}: {checked.check.name}: {checked.check.detail}" for checked in failed)
            raise Refused(f"launching on {self.host.name}: {said}", failed[0].check.hint)

    def _facts(self) -> BoxFacts:
        return self._patient.facts(self.host, self.jobs, self.snapshot.tree, rehearsed=self._keys)

    def _ship(self) -> None:
        self.say(f"sending {len(self.snapshot.files)} files to {self.host.name}")
        self.sent = ship(self.project, self.host.name, self.snapshot, self.approve)

    def _rehearse(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        """The keys of what passed. Raises Refused where something failed."""
        limit = duration(rehearsal.LIMIT_S)
        self.say(f"rehearsing {', '.join(job.name for job in jobs)} on {self.host.name}, for at most {limit}")
        entries = [
            RunEntry(run_id, rehearsal.record(job, self._keys[job.name]), self.project.vault.values(job))
            for run_id, job in zip(new_run_ids(len(jobs), time.time()), jobs, strict=True)
        ]
        request = launch_request(self.host, self.snapshot.record(), entries)
        price = self.host.ec2.price_per_hour if self.host.ec2 else None
        self.outcomes = rehearse.rehearse(self._patient.for_rehearsals(), request, jobs, price)
        memory = self._facts_there.memory.available if self._facts_there.memory else None
        rehearse.refuse_failed(self.host, jobs, self.outcomes, memory)
        return tuple(self._keys[outcome.job] for outcome in self.outcomes if outcome.verdict == "passed")


def examine(project: Project, name: str | None) -> list[Checked]:
    """This machine, and one host or every host of jobs.toml that a job runs on."""
    hosts = [project.spec.host(name).name] if name else sorted({job.host for job in project.spec.jobs.values()})
    found = [Checked("this machine", check) for check in doctor.laptop_checks()]
    for host in hosts:
        checks = doctor.host_checks(project.box(host), project.spec.host(host))
        found += [Checked(host, check) for check in checks]
    return found
