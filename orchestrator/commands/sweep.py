"""The runs of one launch: those of a sweep, the group that they form, and the hosts that they start on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.run_ids import STAMP
from orchestrator.commands.run_names import is_end_of_run_id
from orchestrator.errors import SpecError
from orchestrator.spec.models import Job, Spec
from orchestrator.spec.sweeps import PlannedRun
from orchestrator.spec.wording import show
from remote.contract.launches import RunEntry
from remote.contract.paths import NAME
from remote.contract.run_record import RunRef

MAX_STEM = 40  # characters of a job's name in the name of a group


@dataclass(frozen=True)
class LaunchGroup:
    """Runs that are launched together. At most `at_once` of them run at a time on a host; None: all."""

    name: str
    at_once: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What the user may ask of a launch besides its jobs and their settings.

    Attributes:
        sweeps: The values of settings, as KEY=VALUE,VALUE: one run for each combination.
        group: The name of the group that the runs form; None for a new one if they need one.
        at_once: How many of them may run at a time on a host; None for all.
        again: Start runs even if others with the same code and settings are running or have succeeded.
    """

    sweeps: Sequence[str] = ()
    group: str | None = None
    at_once: int | None = None
    again: bool = False

    def group_of(self, spec: Spec, runs: Sequence[PlannedRun]) -> LaunchGroup | None:
        """Return the group of the runs; None if they are neither a sweep nor to form one.

        Raises:
            SpecError: Its name is malformed, or means something else: a job, a host or the end of a run id.
        """
        if self.group is not None:
            if not NAME.fullmatch(self.group):
                hint = "use at most 64 letters, digits, '-' and '_'; start with a letter or digit"
                raise SpecError(f"--name: {show(self.group)} is not a valid name of a group", hint)
            for is_taken, what in (
                (self.group in spec.jobs, "is a job"),
                (self.group in spec.hosts, "is a host"),
                (is_end_of_run_id(self.group), "could be the end of a run id"),
            ):
                if is_taken:
                    raise SpecError(f"--name: {self.group} {what}", f"choose another name, such as {self.group}-lr")
            return LaunchGroup(self.group, self.at_once)
        if self.at_once is None and not any(run.values for run in runs):
            return None
        jobs = {run.job.name for run in runs}
        stem = next(iter(jobs))[:MAX_STEM] if len(jobs) == 1 else "group"
        date = time.strftime(STAMP, time.gmtime()).partition("T")[0]
        return LaunchGroup(f"{stem}-{date}-{secrets.token_hex(2)}", self.at_once)


NO_WISHES = Wishes()


def by_host(spec: Spec, runs: Sequence[PlannedRun], on: str | None) -> dict[str, list[Job]]:
    """Return the jobs by their hosts, or all by the host `on`. Of a sweep, it is the job of its first combination.

    Raises:
        SpecError: There is no such host.
    """
    first: dict[str, Job] = {}
    for run in runs:
        first.setdefault(run.job.name, run.job)
    found: dict[str, list[Job]] = {}
    for job in first.values():
        found.setdefault(spec.host(on or job.host).name, []).append(job)
    return found


def of_jobs(runs: Sequence[PlannedRun], jobs: Sequence[Job]) -> list[PlannedRun]:
    """Return the runs of these jobs, with the data of the jobs, which may have been sent to their host meanwhile."""
    named = {job.name: job for job in jobs}
    return [
        replace(run, job=replace(run.job, data=job.data, links={**job.links, **run.job.links}))
        for run in runs
        if (job := named.get(run.job.name))
    ]


def entries_of(
    spec: Spec,
    runs: Sequence[PlannedRun],
    ids: Sequence[str],
    group: LaunchGroup | None,
    source: RunRef | None,
    secrets: Mapping[str, dict[str, str]],
) -> list[RunEntry]:
    """Return the runs as a launch request has them.

    Args:
        spec: The jobs.toml.
        runs: The runs.
        ids: Their run ids.
        group: The group that they form.
        source: The run from whose checkpoint they start.
        secrets: The values of the secrets, by job.
    """
    name, at_once = (group.name, group.at_once) if group else ("", None)
    return [
        RunEntry(
            run_id,
            spec.notify.added_to(run.job.record()),
            secrets.get(run.job.name, {}),
            source,
            name,
            run.values,
            at_once,
        )
        for run_id, run in zip(ids, runs, strict=True)
    ]


def beside_others(facts: BoxFacts, jobs: Sequence[Job]) -> list[str]:
    """Return a note for each job that has a live run on the box, beside which the new one starts."""
    live = {job.name: facts.jobs[job.name].live_run for job in jobs if job.name in facts.jobs}
    return [f"{job} {run_id} is still running; the new run starts beside it" for job, run_id in live.items() if run_id]
