"""`orch launch` and `orch check`: take a snapshot of the code, run preflight checks, rehearse the jobs, start them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.known_runs import KnownRun
from orchestrator.box.launch_request import launch_request, run_record
from orchestrator.box.run_ids import is_ahead, new_run_ids, skew_note
from orchestrator.checks import gpu_memory, preflight, rehearsal
from orchestrator.checks.check import Checked
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands import doctor, rehearse
from orchestrator.commands.project import Project
from orchestrator.commands.shipping import Approve, first_paths, ship, take
from orchestrator.errors import OrchError, Refused, SpecError
from orchestrator.spec.local_environment import left_out, named_sources
from orchestrator.spec.models import Host, Job
from orchestrator.spec.overrides import with_overrides
from orchestrator.text import duration
from remote.contract.requests import RunEntry
from remote.contract.run_record import RunRecord
from remote.contract.run_report import RunReport

ShowProgress = Callable[[str], None]  # shows a waiting user what is being done


@dataclass(frozen=True)
class Launched:
    """The result of one launch, or of one check.

    Attributes:
        snapshot: The code that was used.
        sent: Whether the code was sent to a host that did not have it.
        checks: The preflight checks of every host and job.
        outcomes: The rehearsals that took place.
        runs: The runs as the hosts reported them when they started; empty for a check.
        notes: Warnings for the user.
    """

    snapshot: CodeSnapshot
    sent: bool = False
    checks: tuple[Checked, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    runs: tuple[RunReport, ...] = ()
    notes: tuple[str, ...] = ()


def launch(
    project: Project,
    names: Sequence[str],
    on: str | None,
    overrides: Sequence[str],
    show_progress: ShowProgress,
    approve: Approve,
    rehearse_only: bool = False,
) -> Launched:
    """Start jobs. Jobs that have not been rehearsed on their host are rehearsed first.

    On one host, either all jobs start or none. If a later host fails, the runs on earlier hosts keep running, and the
    hint of the error names them.

    Args:
        project: The project that defines the jobs.
        names: The jobs to start.
        on: The host for all jobs; None for each job's own host.
        overrides: Settings of the jobs to change, as KEY=VALUE.
        show_progress: Called with each step that takes long.
        approve: Asked before unusually large code is sent.
        rehearse_only: Rehearse every job, and start none.

    Raises:
        SpecError: jobs.toml has no such job or host, an override is wrong, or a secret is missing.
        HostError: A host cannot be used.
        Refused: A check or a rehearsal failed, the box refused the launch, or `approve` returned False.
    """
    names = list(dict.fromkeys(names))
    spec = with_overrides(project.spec, names, overrides)
    jobs_by_host = spec.jobs_by_host(names, on)
    snapshot = take(project)
    # This may prompt for a passphrase, so do it before the progress line is shown.
    secrets = {job.name: project.secrets.for_job(job) for jobs in jobs_by_host.values() for job in jobs}
    launched = Launched(snapshot)
    for host, jobs in jobs_by_host.items():
        step = _HostLaunch(project, spec.hosts[host], jobs, secrets, snapshot, show_progress, approve)
        try:
            step.check() if rehearse_only else step.start()
        except OrchError as error:
            _add_hints(error, snapshot, launched.runs)
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


def _add_hints(error: OrchError, snapshot: CodeSnapshot, started: Sequence[RunReport]) -> None:
    """Add to the hint of an error: the files that it mentions but were not sent, and the runs already started."""
    mentioned = [item for item in snapshot.withheld if PurePosixPath(item.path).name in error.message]
    if mentioned and isinstance(error, Refused):
        error.hint = f"not sent: {first_paths(mentioned)}; to send it anyway, list it in [project] include"
    if started:
        runs = ", ".join(f"{run.job} on {run.host}" for run in started)
        error.hint = f"{error.hint} (already started: {runs})".strip()


class _HostLaunch:
    """The part of a launch that concerns one host."""

    def __init__(
        self,
        project: Project,
        host: Host,
        jobs: Sequence[Job],
        secrets: Mapping[str, dict[str, str]],
        snapshot: CodeSnapshot,
        show_progress: ShowProgress,
        approve: Approve,
    ) -> None:
        self.project, self.host, self.jobs, self.snapshot = project, host, jobs, snapshot
        self.show_progress, self.approve = show_progress, approve
        self._secrets = secrets  # by job
        self.sent = False
        self.checks: tuple[Checked, ...] = ()
        self.outcomes: tuple[Outcome, ...] = ()
        self.runs: tuple[RunReport, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._facts = BoxFacts()
        self._box = project.retrying_box(host.name)
        self._rehearsal_keys = rehearsal.keys(jobs, host, snapshot.tree)

    def start(self) -> None:
        """Start the jobs. Takes two requests if the box has the code and remembers the rehearsals."""
        self._preflight()
        self._check_gpu_memory()
        request = launch_request(self.host, self.snapshot.record(), self._entries())
        with self._recorded(request.runs):
            answer = self._box.launch(replace(request, rehearsed=self._rehearsal_keys))
            if answer.unrehearsed:
                passed = self._rehearse([job for job in self.jobs if job.name in answer.unrehearsed])
                self._check_gpu_memory()
                answer = self._box.launch(replace(request, passed=passed))
        for report, entry in zip(answer.runs, request.runs, strict=True):
            self._remember(report, run_record(self.project.spec.project.name, request, entry))
        self.runs = answer.runs

    def _entries(self) -> list[RunEntry]:
        """Return one entry for each job, with run ids that sort after every run known here or on the box."""
        now = time.time()
        known = [run_id for run_id in (self.project.newest_id(), self._facts.newest_run) if run_id]
        newest = max((run_id for run_id in known if not is_ahead(run_id, now)), default=None)
        for run_id in known:
            if note := skew_note(now, run_id):
                self.notes = tuple(dict.fromkeys((*self.notes, note)))
        ids = new_run_ids(len(self.jobs), now, newest)
        return [
            RunEntry(run_id, job.record(), self._secrets[job.name]) for run_id, job in zip(ids, self.jobs, strict=True)
        ]

    @contextmanager
    def _recorded(self, entries: Sequence[RunEntry]) -> Iterator[None]:
        """Record the runs before the request is sent, because an interrupted launch may still have started them.

        Remove the records if the launch is refused.
        """
        address = self.project.address(self.host.name)
        runs = [
            KnownRun(entry.job.name, entry.run_id, self.host.name, address, True, confirmed=False) for entry in entries
        ]
        for run in runs:
            self.project.known.save(run)
        try:
            yield
        except (Refused, SpecError):
            for run in runs:
                self.project.record(partial(self.project.known.forget, run))
            raise

    def _remember(self, report: RunReport, record: RunRecord) -> None:
        """Record a run that was started. If it cannot be written here, only add a note, since the launch succeeded."""
        project, address = self.project, self.project.address(self.host.name)
        run = KnownRun(report.job, report.run_id, self.host.name, address, launched_here=True, state=report.state)
        problems = project.record(lambda: project.known.save(run))
        problems += project.record(lambda: project.known.note_asked(self.host.name, address))
        problems += project.record(lambda: project.mirror.remember(record))
        note = project.mirror.point_latest(report.job, report.run_id)
        self.notes = (*self.notes, *problems, *([note] if note else []))

    def check(self) -> None:
        """Rehearse every job, and let the box remember the rehearsals that passed."""
        self._preflight()
        passed = self._rehearse([job for job in self.jobs if job.name in self._rehearsal_keys])
        self._check_gpu_memory()
        self._box.launch(replace(launch_request(self.host, self.snapshot.record(), ()), passed=passed))

    def _preflight(self) -> None:
        """Send the code if the box does not have it, then run the preflight checks. Raise Refused if one fails."""
        facts = self._ask_facts()
        if not all(job.has_code for job in facts.jobs.values()):
            self.show_progress(f"sending {len(self.snapshot.files)} files to {self.host.name}")
            self.sent = ship(self.project, self.host.name, self.snapshot, self.approve)
            facts = self._ask_facts()
        self._facts = facts
        here = doctor.local_rsync() if self.host.ssh else None
        found = [
            Checked(self.host.name, check)
            for check in preflight.check_host(facts, self.host, max(job.gpus for job in self.jobs), rsync_here=here)
        ]
        if self.host.ssh is None:
            not_inherited = left_out(os.environ, named_sources(self.project.spec))
            found += [Checked(self.host.name, check) for check in preflight.check_environment(not_inherited)]
        for job in self.jobs:
            found += [Checked(job.name, check) for check in preflight.check_job(facts, job, os.environ)]
        self.checks = tuple(found)
        self._refuse(found)

    def _check_gpu_memory(self) -> None:
        """Check whether the jobs fit on their GPUs together, as measured by rehearsals. Raise Refused if not."""
        known = {name: job.forecast for name, job in self._facts.jobs.items()}
        known.update({outcome.job: outcome.forecast for outcome in self.outcomes})
        peaks = {name: forecast.peak_gpu_bytes for name, forecast in known.items() if forecast}
        needs = [gpu_memory.Need(job.name, job.gpus, peaks.get(job.name)) for job in self.jobs]
        found = [Checked(self.host.name, check) for check in gpu_memory.check_forecast(self._facts, self.host, needs)]
        others = [checked for checked in self.checks if checked.check.name != gpu_memory.NAME]
        self.checks = (*others, *found)  # replaces the checks that were made before the rehearsal
        self._refuse(found)

    def _refuse(self, found: Sequence[Checked]) -> None:
        """Raise Refused if a check failed."""
        failed = [checked for checked in found if checked.check.status == "fail"]
        if failed:
            lines = "\n".join(f"{checked.about}: {checked.check.name}: {checked.check.detail}" for checked in failed)
            raise Refused(f"launching on {self.host.name}: {lines}", failed[0].check.hint)

    def _ask_facts(self) -> BoxFacts:
        return self._box.facts(self.host, self.jobs, self.snapshot.tree, rehearsed=self._rehearsal_keys)

    def _rehearse(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        """Rehearse the jobs and return the keys of those that passed. Raise Refused if one failed."""
        limit = duration(rehearsal.LIMIT_S)
        self.show_progress(f"rehearsing {', '.join(job.name for job in jobs)} on {self.host.name}, for at most {limit}")
        entries = [
            RunEntry(run_id, rehearsal.record(job, self._rehearsal_keys[job.name]), self._secrets[job.name])
            for run_id, job in zip(new_run_ids(len(jobs), time.time()), jobs, strict=True)
        ]
        request = launch_request(self.host, self.snapshot.record(), entries)
        price = self.host.ec2.price_per_hour if self.host.ec2 else None
        self.outcomes = rehearse.rehearse(self._box.for_rehearsals(), request, jobs, price)
        memory = self._facts.memory.available if self._facts.memory else None
        rehearse.refuse_failed(self.host, jobs, self.outcomes, memory)
        return tuple(self._rehearsal_keys[outcome.job] for outcome in self.outcomes if outcome.verdict == "passed")
