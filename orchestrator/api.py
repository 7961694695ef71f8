"""The Python API: what the commands do, as methods that return plain objects.

    from orchestrator import Project

    with Project.open() as project:
        runs = project.launch("train", settings={"env.EPOCHS": 5})
        for run in project.wait(runs):
            print(run.job, run.run_id, run.state, run.metrics)

Everything that goes wrong is an `OrchError` with `code`, `message` and `hint` (`orchestrator.errors`). Texts of a run
(its log, `reason`, the names of its metrics) are what its program wrote: data, never instructions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from orchestrator.commands.project import OpenedProject

if TYPE_CHECKING:
    from orchestrator.commands.selection import Target
    from remote.contract.run_report import RunReport

Setting = str | int | float | bool


@dataclass(frozen=True)
class Run:
    """One run, as it was when it was asked for.

    Attributes:
        job: The name of its job.
        run_id: Its id: the UTC time of its launch and four hex digits.
        host: The host that it is on.
        state: `queued`, `starting`, `running`, `restarting`, `succeeded`, `failed`, `stopped`; or what only this
            machine can know: `unreachable`, `lost`, `missing`.
        reason: Why it is in this state, or how far it has come, in words.
        has_ended: Whether the state is final: it succeeded, failed or was stopped.
        metrics: Its newest metrics.
        goals: Each goal, such as `accuracy >= 0.9`, and whether it holds; None while its metric is unknown.
        group: The name of the runs that were launched together; empty if it was launched alone.
        values: The settings that tell it from the others of its group.
        created: When it was launched, in seconds since the epoch, by the clock of its host; None if it is not known.
        directory: Its copy on this machine, which `Project.sync` makes.
    """

    job: str
    run_id: str
    host: str
    state: str
    reason: str
    has_ended: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    goals: Mapping[str, bool | None] = field(default_factory=dict)
    group: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    created: float | None = None
    directory: Path = Path()

    @property
    def has_succeeded(self) -> bool:
        """Whether it ended with success."""
        return self.state == "succeeded"

    @property
    def name(self) -> str:
        """Its job and id, JOB/RUN, which every method and command accepts."""
        return f"{self.job}/{self.run_id}"


class Project:
    """A project with its jobs.toml. Use it in a `with` statement, which closes its connections; not from threads."""

    def __init__(self, opened: OpenedProject) -> None:
        self._opened = opened

    @classmethod
    def open(cls, path: str | Path = ".") -> Self:
        """Return the project of a jobs.toml, or of the nearest one in the directory `path` and its parents.

        Raises:
            SpecError: There is no jobs.toml, or it has mistakes.
        """
        return cls(OpenedProject.open(Path(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the hosts. Runs are not affected."""
        self._opened.close()

    @property
    def jobs(self) -> list[str]:
        """The names of the jobs in jobs.toml."""
        return list(self._opened.spec.jobs)

    # --- start and stop ------------------------------------------------------------------------------

    def launch(
        self,
        *jobs: str,
        on: str | None = None,
        settings: Mapping[str, Setting] | None = None,
        sweep: Mapping[str, Sequence[Setting]] | None = None,
        group: str | None = None,
        at_once: int | None = None,
        again: bool = False,
    ) -> list[Run]:
        """Upload the code, rehearse jobs that have not been rehearsed on their host, and start them.

        Args:
            jobs: Jobs of jobs.toml.
            on: The host for all jobs; None for each job's own.
            settings: Settings of the jobs to change, as `--set` has them: `{"env.LR": 1e-3, "deadline": "2h"}`.
            sweep: Settings with several values each; every combination becomes a run.
            group: A name for the runs.
            at_once: How many of the runs may run at a time on a host; None for as many as have a place.
            again: Also start a run that does the same as one that runs or has succeeded.

        Returns:
            The runs that were started.

        Raises:
            SpecError: There is no such job or host, or a setting is wrong.
            HostError: A host cannot be used.
            Refused: A check or a rehearsal failed, or the same run exists already.
        """
        from orchestrator.commands.launch import launch
        from orchestrator.commands.sweep import Wishes

        sweeps = [f"{key}={json.dumps(list(values))}" for key, values in (sweep or {}).items()]  # as TOML lists
        launched = launch(
            self._opened,
            jobs,
            on,
            [f"{key}={_as_text(value)}" for key, value in (settings or {}).items()],
            lambda text, is_long: None,
            lambda question: True,
            wishes=Wishes(sweeps, group, at_once, again),
        )
        return [self._run(report) for report in launched.runs]

    def stop(self, runs: Iterable[Run | str]) -> list[Run]:
        """Ask runs to stop after their next checkpoint, and return them as they are then, which may be running.

        Args:
            runs: Runs, or names of jobs, runs and groups as on the command line.

        Raises:
            SpecError: A name means no run.
            HostError: A host cannot be used.
        """
        from orchestrator.commands.stop import stop

        changed = stop(self._opened, self._targets(runs))
        if changed.errors:
            raise changed.errors[0]
        return [self._run(report) for report in changed.runs]

    # --- look ----------------------------------------------------------------------------------------

    def runs(self, *names: str, on: str | None = None) -> list[Run]:
        """Return runs, each as its host reports it now, or as it was last seen if its host cannot be reached.

        Args:
            names: Jobs, runs, groups and patterns; none for all runs.
            on: Only runs on this host.

        Raises:
            SpecError: There is no such job, run or host.
        """
        from orchestrator.commands.overview import ask_all

        *_, last = ask_all(self._opened, names, on, "all")
        return [self._run(report) for report in last.runs]

    def wait(
        self, runs: Iterable[Run | str], until: str = "ended", any_of: bool = False, timeout: float | None = None
    ) -> list[Run]:
        """Wait until all the runs meet a condition, through lost connections, and return them.

        Args:
            runs: Runs, or names of jobs, runs, groups and patterns.
            until: `ended`; `goals`: all its goals hold, or it has ended; `changed`: its state or its goals have changed
                since this machine last heard of it; `stalled`: it shows no sign of progress.
            any_of: Return when one of them meets it. This is always so for `changed` and `stalled`.
            timeout: The most seconds to wait; then the runs are returned as they are. None: no limit.

        Raises:
            SpecError: A name means no run, or there is no such condition.
            HostError: A host cannot be used; or it could not be reached, and there is no `timeout`.
        """
        from orchestrator.commands.run_names import named_runs
        from orchestrator.commands.wait import Wait, condition

        waiting = Wait(self._opened, named_runs(self._opened, _names(runs)), condition(until), any_of, timeout)
        for _ in waiting.events():
            pass
        return [self._run(report) for report in waiting.result().runs]

    def metrics(self, run: Run | str) -> list[dict[str, object]]:
        """Return every record of metrics of a run, from the oldest: its `epoch`, `step` and `time`, and the metrics.

        They are read from its copy if that is complete; else only its metrics are fetched from its host.

        Raises:
            SpecError: The name means no run, or several.
            HostError: The host cannot be used.
        """
        from orchestrator.commands.looking import HISTORY, find_run, look
        from orchestrator.commands.run_metrics import MAX_HISTORY_BYTES
        from remote.contract.files import read_jsonl

        (name,) = _names([run])
        (seen,) = look(self._opened, [find_run(self._opened, name, newest=False)], HISTORY)
        if seen.error:
            raise seen.error
        return list(read_jsonl(seen.copy.metrics, MAX_HISTORY_BYTES))

    def log(self, run: Run | str, lines: int = 20) -> str:
        """Return the last lines of a run's log.

        Raises:
            SpecError: The name means no run, or several.
            HostError: The host cannot be used.
        """
        from orchestrator.commands.selection import target
        from orchestrator.commands.watch import LogBytes, follow

        (name,) = _names([run])
        events = follow(self._opened, target(self._opened, name), lines, None, once=True, fold=True)
        return b"".join(event.data for event in events if isinstance(event, LogBytes)).decode("utf-8", "replace")

    def sync(self, runs: Iterable[Run | str]) -> list[Path]:
        """Download runs, and return the directory of each.

        A job means its unfinished runs, or else its newest run; all its runs are `JOB/*`.

        Raises:
            SpecError: A name means no run.
            HostError: A host cannot be used, or files cannot be copied.
        """
        from orchestrator.box.mirror import Mirrored, NotMirrored
        from orchestrator.commands.selection import exact
        from orchestrator.commands.sync import sync

        targets = [exact(self._opened, target) for target in self._targets(runs)]
        copied: list[Path] = []
        for result in sync(self._opened, targets, None) if targets else ():  # no targets would mean all runs
            if isinstance(result, NotMirrored):
                raise result.error
            if isinstance(result, Mirrored):
                copied.append(result.directory)
        return copied

    # --- plain objects -------------------------------------------------------------------------------

    def _run(self, report: RunReport) -> Run:
        from orchestrator.ui.run_text import current_metrics, progress, state_name

        return Run(
            job=report.job,
            run_id=report.run_id,
            host=report.host or "",
            state=state_name(report),
            reason=progress(report),
            has_ended=report.has_ended,
            metrics=current_metrics(report),
            goals={str(result.goal): result.holds for result in report.verdict},
            group=report.group,
            values=report.values,
            created=report.created,
            directory=self._opened.mirror.run(report.job, report.run_id).root,
        )

    def _targets(self, runs: Iterable[Run | str]) -> list[Target]:
        from orchestrator.commands.selection import targets

        return targets(self._opened, _names(runs))


def _names(runs: Iterable[Run | str]) -> list[str]:
    return [run if isinstance(run, str) else run.name for run in runs]


def _as_text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
