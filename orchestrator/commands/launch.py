"""`orch launch` and `orch check`: take a snapshot of the code, run preflight checks, rehearse the jobs, start them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from orchestrator.box.client import Box
from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.known_runs import KnownRun
from orchestrator.box.launch_request import launch_request, run_record
from orchestrator.box.run_ids import is_ahead, new_run_ids, skew_note
from orchestrator.checks import gpu_memory, preflight, rehearsal, versions
from orchestrator.checks.check import Checked
from orchestrator.checks.gpu import check_job_torch, check_use
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code import not_sent
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands import doctor, rehearse
from orchestrator.commands.project import Project
from orchestrator.commands.push import place_data
from orchestrator.commands.rehearse import ShowProgress
from orchestrator.commands.selection import exact, target
from orchestrator.commands.shipping import Approve, ShowWarnings, code_warnings, first_paths, ship, take
from orchestrator.errors import CodeMissing, OrchError, Refused, SpecError
from orchestrator.spec.local_environment import left_out, named_sources
from orchestrator.spec.models import Host, Job, Spec
from orchestrator.spec.overrides import with_overrides
from remote.contract.launches import RunEntry
from remote.contract.run_record import RunRecord, RunRef
from remote.contract.run_report import RunReport


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

    def and_then(self, later: Launched) -> Launched:
        """Return the result for the hosts of both."""
        return Launched(
            self.snapshot,
            self.sent or later.sent,
            (*self.checks, *later.checks),
            (*self.outcomes, *later.outcomes),
            (*self.runs, *later.runs),
            (*self.notes, *later.notes),
        )


def launch(
    project: Project,
    names: Sequence[str],
    on: str | None,
    overrides: Sequence[str],
    show_progress: ShowProgress,
    approve: Approve,
    warn: ShowWarnings = lambda checks: None,
    rehearse_only: bool = False,
    resume_from: str | None = None,
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
        warn: Called once, before anything is sent, with the warnings about the code. They are also in the result.
        rehearse_only: Rehearse every job, and start none.
        resume_from: A job or a run id: the new runs start from the newest checkpoint of that run.

    Raises:
        SpecError: jobs.toml has no such job or host, an override is wrong, or a secret is missing.
        HostError: A host cannot be used.
        Refused: A check or a rehearsal failed, the box refused the launch, or `approve` returned False.
    """
    names = list(dict.fromkeys(names))
    spec = with_overrides(project.spec, names, overrides)
    jobs_by_host = spec.jobs_by_host(names, on)
    source = _resumed_run(project, resume_from, jobs_by_host) if resume_from else None
    snapshot = take(project)
    # This may prompt for a passphrase, so do it before the progress line is shown.
    secrets = {job.name: project.secrets.for_job(job) for jobs in jobs_by_host.values() for job in jobs}
    warnings = code_warnings(project, snapshot)
    warn(warnings)
    launched = Launched(snapshot, checks=warnings)
    doing = "checking jobs" if rehearse_only else "launching"
    for host, jobs in jobs_by_host.items():
        jobs, notes = place_data(project, host, jobs, snapshot.files, show_progress)
        launched = replace(launched, notes=(*launched.notes, *notes))
        keys = rehearsal.keys(jobs, spec.hosts[host], snapshot.tree)
        box = project.retrying_box(host)
        step = _HostLaunch(
            project, spec.hosts[host], box, jobs, secrets, keys, snapshot, doing, show_progress, approve, source
        )
        try:
            launched = launched.and_then(step.check() if rehearse_only else step.start())
        except OrchError as error:
            _add_hints(error, spec, snapshot, launched.runs)
            raise
    return launched


def _resumed_run(project: Project, name: str, jobs_by_host: Mapping[str, Sequence[Job]]) -> RunRef:
    """Return the run that `--resume-from` names. Raise SpecError if the jobs cannot start from its checkpoints."""
    for job in (job for jobs in jobs_by_host.values() for job in jobs):
        if not (job.resume and job.checkpoints):
            missing = "checkpoints" if job.resume else "resume"
            hint = 'write for example resume = "--resume $ORCH_RESUME" and checkpoints = "out/checkpoint-*"'
            raise SpecError(f"{job.name} cannot resume from {name}: the job has no {missing!r} in jobs.toml", hint)
    found = exact(project, target(project, name))
    for host in jobs_by_host:
        if found.host != host or found.address.where != project.address(host).where:
            raise SpecError(
                f"{found.job} {found.run_id} is on {found.host}, so it cannot be resumed from on {host}",
                f"launch on the host of that run: --on {found.host}",
            )
    return RunRef(found.job, str(found.run_id))


def _add_hints(error: OrchError, spec: Spec, snapshot: CodeSnapshot, started: Sequence[RunReport]) -> None:
    """Add to the hint of an error: the files that it mentions but were not sent, and the runs already started."""
    mentioned = [item for item in snapshot.withheld if PurePosixPath(item.path).name in error.message]
    if mentioned and isinstance(error, Refused):
        error.hint = f"not sent: {first_paths(mentioned)}; to send it anyway, list it in [project] include"
    elif isinstance(error, Refused) and (missing := not_sent.explain(spec, error.message)):
        error.hint = f"{missing}\n{error.hint}".rstrip()
    if started:
        runs = ", ".join(f"{run.job} on {run.host}" for run in started)
        error.hint = f"{error.hint} (already started: {runs})".strip()


@dataclass(frozen=True)
class _Ready:
    """A host that passed its preflight checks."""

    facts: BoxFacts
    sent: bool  # whether the code was sent to it
    checks: tuple[Checked, ...]


@dataclass(frozen=True)
class _HostLaunch:
    """The part of a launch that concerns one host. Every step returns what it found or did."""

    project: Project
    host: Host
    box: Box
    jobs: Sequence[Job]
    secrets: Mapping[str, dict[str, str]]  # by job
    rehearsal_keys: Mapping[str, str]  # by job; a job without a rehearsal has none
    snapshot: CodeSnapshot
    doing: str  # for error messages
    show_progress: ShowProgress
    approve: Approve
    source: RunRef | None = None  # the run from whose checkpoint the jobs start

    def start(self) -> Launched:
        """Start the jobs. Takes two requests if the box has the code and remembers the rehearsals."""
        ready = self._preflight()
        memory = self._check_gpu_memory(ready.facts)
        ids, notes = self._run_ids(ready.facts)
        entries = [
            RunEntry(run_id, job.record(), self.secrets[job.name], self.source)
            for run_id, job in zip(ids, self.jobs, strict=True)
        ]
        request = launch_request(self.host, self.snapshot.record(), entries)
        outcomes: tuple[Outcome, ...] = ()
        with self._recorded(entries):
            answer = self.box.launch(replace(request, rehearsed=dict(self.rehearsal_keys)))
            if answer.unrehearsed:
                outcomes = self._rehearse([job for job in self.jobs if job.name in answer.unrehearsed], ready.facts)
                memory = self._check_gpu_memory(ready.facts, outcomes)  # in place of the checks without measurements
                memory += self._check_new_torch(ready.facts)
                request = replace(request, passed=self._passed(outcomes))
                try:
                    answer = self.box.launch(request)
                except CodeMissing:  # a rehearsal with cwd = "code" changed it
                    ship(self.project, self.host.name, self.snapshot, self.approve)
                    answer = self.box.launch(request)
        for report, entry in zip(answer.runs, entries, strict=True):
            notes += self._remember(report, run_record(self.project.spec.project.name, request, entry))
        return Launched(self.snapshot, ready.sent, (*ready.checks, *memory), outcomes, answer.runs, tuple(notes))

    def check(self) -> Launched:
        """Rehearse every job, and let the box remember the rehearsals that passed."""
        ready = self._preflight()
        outcomes = self._rehearse([job for job in self.jobs if job.name in self.rehearsal_keys], ready.facts)
        found = self._check_gpu_memory(ready.facts, outcomes) + self._check_new_torch(ready.facts, self.jobs)
        self.box.launch(replace(launch_request(self.host, self.snapshot.record(), ()), passed=self._passed(outcomes)))
        return Launched(self.snapshot, ready.sent, (*ready.checks, *found), outcomes)

    def _run_ids(self, facts: BoxFacts) -> tuple[list[str], list[str]]:
        """Return an id for each job, after those of all runs known here or on the box, and warnings about clocks."""
        now = time.time()
        known = [run_id for run_id in (self.project.newest_id(), facts.newest_run) if run_id]
        newest = max((run_id for run_id in known if not is_ahead(run_id, now)), default=None)
        notes = [note for run_id in dict.fromkeys(known) if (note := skew_note(now, run_id))]
        return new_run_ids(len(self.jobs), now, newest), notes

    @contextmanager
    def _recorded(self, entries: Sequence[RunEntry]) -> Iterator[None]:
        """Record the runs before the request is sent, because an interrupted launch may still have started them.

        Remove the records if the launch is refused.
        """
        host, address = self.host.name, self.project.address(self.host.name)
        runs = [
            KnownRun(entry.job.name, entry.run_id, host, address, launched_here=True, confirmed=False)
            for entry in entries
        ]
        for run in runs:
            self.project.known.save(run)
        try:
            yield
        except (Refused, SpecError):
            for run in runs:
                self.project.record(partial(self.project.known.forget, run))
            raise

    def _remember(self, report: RunReport, record: RunRecord) -> list[str]:
        """Record a run that was started. Return what cannot be written here, as notes: the launch has succeeded."""
        project, address = self.project, self.project.address(self.host.name)
        run = KnownRun(report.job, report.run_id, self.host.name, address, launched_here=True, state=report.state)
        problems = project.record(lambda: project.known.save(run))
        problems += project.record(lambda: project.known.note_asked(self.host.name, address))
        problems += project.record(lambda: project.mirror.remember(replace(record, created=report.created)))
        problems.append(project.mirror.point_latest(report.job, report.run_id))
        return [problem for problem in problems if problem]

    def _preflight(self) -> _Ready:
        """Send the code if the box does not have it, then run the preflight checks. Raise Refused if one fails."""
        facts, sent = self._ask_facts(), False
        if not all(job.has_code for job in facts.jobs.values()):
            self.show_progress(f"sending {len(self.snapshot.files)} files to {self.host.name}", False)
            sent = ship(self.project, self.host.name, self.snapshot, self.approve)
            facts = self._ask_facts()
        found = [
            Checked(self.host.name, check)
            for check in doctor.check_facts(facts, self.host, max(job.gpus or 0.0 for job in self.jobs))
        ]
        if self.host.ssh is None:
            not_inherited = left_out(os.environ, named_sources(self.project.spec))
            found += [Checked(self.host.name, check) for check in preflight.check_environment(not_inherited)]
        for job in self.jobs:
            found += [Checked(job.name, check) for check in check_use(facts, self.host, job)]
            found += [Checked(job.name, check) for check in preflight.check_job(facts, job, os.environ)]
            found += [Checked(job.name, check) for check in check_job_torch(facts, self.host, job)]
        self._refuse(found)
        return _Ready(facts, sent, tuple(found))

    def _check_new_torch(self, before: BoxFacts, loading: Sequence[Job] = ()) -> list[Checked]:
        """Check the torch in environments that the rehearsals have built. Asks the box only if there are any.

        Args:
            before: The facts from before the rehearsals.
            loading: The jobs of which the version of their torch is checked, new or not, if they load checkpoints.
        """
        environments = {name: job.environment for name, job in before.jobs.items()}
        new = [job for job in self.jobs if job.gpus and (there := environments.get(job.name)) and not there.built]
        facts = self._ask_facts() if new else before
        found = [Checked(job.name, check) for job in new for check in check_job_torch(facts, self.host, job)]
        for job in loading:
            if (known := facts.jobs.get(job.name)) and known.torch:
                checks = versions.check_torch(known.torch.python, known.torch.version, [job])
                found += [Checked(job.name, check) for check in checks]
        return found

    def _check_gpu_memory(self, facts: BoxFacts, outcomes: Sequence[Outcome] = ()) -> list[Checked]:
        """Check whether the jobs fit on their GPUs together, as measured by rehearsals. Raise Refused if not.

        Args:
            facts: The facts of the box, with what the rehearsals that it remembers measured.
            outcomes: The rehearsals of this launch.
        """
        known = {name: job.forecast for name, job in facts.jobs.items()}
        known.update({outcome.job: outcome.forecast for outcome in outcomes})
        peaks = {name: forecast.peak_gpu_bytes for name, forecast in known.items() if forecast}
        needs = [gpu_memory.Need(job.name, job.gpus or 0.0, peaks.get(job.name)) for job in self.jobs]
        found = [Checked(self.host.name, check) for check in gpu_memory.check_forecast(facts, self.host, needs)]
        self._refuse(found)
        return found

    def _refuse(self, found: Sequence[Checked]) -> None:
        """Raise Refused if a check failed."""
        failed = [checked for checked in found if checked.check.status == "fail"]
        if failed:
            lines = [f"{checked.about}: {checked.check.name}: {checked.check.detail}" for checked in failed]
            hints = [checked.check.hint for checked in failed]
            if len(failed) > 1:  # each hint next to its problem
                lines = ["; ".join(filter(None, pair)) for pair in zip(lines, hints, strict=True)]
                hints = [""]
            raise Refused(f"{self.doing} on {self.host.name}: " + "\n".join(lines), hints[0])

    def _ask_facts(self) -> BoxFacts:
        return self.box.facts(self.host, self.jobs, self.snapshot.tree, rehearsed=self.rehearsal_keys)

    def _rehearse(self, jobs: Sequence[Job], facts: BoxFacts) -> tuple[Outcome, ...]:
        """Rehearse the jobs. Raise Refused if a rehearsal failed, or the jobs do not fit into the box's memory."""
        self.show_progress(f"rehearsing {', '.join(job.name for job in jobs)} on {self.host.name}", False)
        entries = [
            RunEntry(run_id, rehearsal.record(job, self.rehearsal_keys[job.name]), self.secrets[job.name])
            for run_id, job in zip(new_run_ids(len(jobs), time.time()), jobs, strict=True)
        ]
        request = launch_request(self.host, self.snapshot.record(), entries)
        price = self.host.ec2.price_per_hour if self.host.ec2 else None
        outcomes = rehearse.rehearse(self.box.for_rehearsals(), request, jobs, price, self.show_progress)
        rehearse.refuse_failed(self.host, jobs, outcomes, facts.memory.available if facts.memory else None)
        return outcomes

    def _passed(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Return the keys of the rehearsals that passed."""
        return tuple(self.rehearsal_keys[outcome.job] for outcome in outcomes if outcome.verdict == "passed")
