"""`orch best`: the runs with the best value of a metric; and the runs that are remembered as the best.

results/.mirror/.best.json    for each metric and job that was asked for, the run that was the best
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.commands.looking import HISTORY, Key, SeenRun, look
from orchestrator.commands.run_metrics import history, is_less_better, is_less_better_by_goal, newest
from orchestrator.commands.run_names import meant, no_such_run, short_ids
from orchestrator.errors import SpecError
from orchestrator.spec.models import MIRROR_RECORDS
from orchestrator.spec.wording import suggestion
from remote.contract.paths import NAME, RUN_ID
from remote.contract.records import read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject
    from remote.contract.run_report import RunReport

REMEMBERED = ".best.json"
MAX_REMEMBERED = 1000


@dataclass(frozen=True)
class Candidate:
    """A run and its best value. `epoch` and `step` say when it was reached, if that is known.

    `from_history` is False if its history is not here, and `value` is only its newest one.
    """

    name: str  # its short name, such as `train/2ab4`
    seen: SeenRun
    value: float
    newest: float | None
    epoch: int | None
    step: int | None
    from_history: bool


@dataclass(frozen=True)
class Best:
    """The runs with a metric, the best first. `why` says how the direction was chosen."""

    metric: str
    is_less_better: bool
    why: Literal["goal", "option", "name"]
    candidates: tuple[Candidate, ...]
    without: int  # runs that have no such metric


def best(
    project: OpenedProject, metric: str, job: str | None, is_less_better: bool | None, names: Sequence[str] = ()
) -> Best:
    """Return the runs with a metric, the best first, and remember the first one. Hosts are asked, if they answer.

    Args:
        project: The project that has the runs.
        metric: The name of the metric.
        job: Consider only runs of this job.
        is_less_better: Whether less is better; None to go by the goals, or else by the name of the metric.
        names: Consider only these jobs, with all their runs, run ids, groups and patterns; empty for all.

    Raises:
        SpecError: No run has the metric, a name means no run, or goals contradict each other.
    """
    runs = _considered(project, [run for run in project.known.all() if job in (None, run.job)], names)
    if not runs:
        if job:
            raise no_such_run(project, job, ())
        raise SpecError("this project has no runs here", "to look for runs on the hosts: orch status")
    seen = look(project, runs, HISTORY)
    less, why = direction(metric, [one.report for one in seen], is_less_better)
    short = short_ids(run.key for run in project.known.all())
    found = list(_candidates(seen, metric, less, short))
    if not found:
        names = sorted({name for one in seen for name in newest(one.report)})
        raise SpecError(f"no run has a metric {metric!r}", suggestion(metric, names, "metrics"))
    found.sort(key=lambda one: (one.value if less else -one.value, one.seen.known.run_id))
    project.record(lambda: _remember(project, metric, job or " ".join(names), found[0].seen.known))
    return Best(metric, less, why, tuple(found), len(runs) - len(found))


def _considered(project: OpenedProject, known: Sequence[KnownRun], names: Sequence[str]) -> list[KnownRun]:
    """Return the runs that the names mean. A job means all its runs, and not only its newest."""
    found = {} if names else {run.key: run for run in known}
    for name in names:
        runs = [run for run in known if run.job == name] or meant(project, known, name)
        if not runs:
            raise no_such_run(project, name, known)
        found |= {run.key: run for run in runs}
    return list(found.values())


def direction(
    metric: str, reports: Iterable[RunReport], asked: bool | None
) -> tuple[bool, Literal["goal", "option", "name"]]:
    """Return whether less of a metric is better, and how that was decided.

    Raises:
        SpecError: Goals of the runs contradict each other.
    """
    if asked is not None:
        return asked, "option"
    goals = {is_less_better_by_goal(metric, report.goals) for report in reports} - {None}
    if len(goals) > 1:
        raise SpecError(
            f"for some runs, the goal is a large {metric}, for others a small one", "choose by --max or --min"
        )
    for found in goals:
        return bool(found), "goal"
    return is_less_better(metric), "name"


def _candidates(seen: Iterable[SeenRun], metric: str, less: bool, short: dict[Key, str]) -> Iterator[Candidate]:
    for one in seen:
        now = newest(one.report).get(metric)
        name = f"{one.known.job}/{short.get(one.known.key, one.known.run_id)}"
        found = [line for line in history(one.copy) if metric in line.values]
        if found:
            first = (min if less else max)(found, key=lambda line: line.values[metric])
            now = found[-1].values[metric] if now is None else now
            yield Candidate(name, one, first.values[metric], now, first.epoch, first.step, True)
        elif now is not None:
            yield Candidate(name, one, now, now, None, None, False)


# --- what is remembered ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RememberedRun:
    metric: str
    asked_job: str  # or the names of what was asked for; "" for all
    job: str = field(metadata={"pattern": NAME})
    run_id: str = field(metadata={"pattern": RUN_ID})


@dataclass(frozen=True)
class _Remembered:
    json_head: ClassVar[dict[str, int]] = {"schema": 1}
    runs: tuple[_RememberedRun, ...] = ()


def best_runs(project: OpenedProject) -> set[Key]:
    """Return the runs to keep because they are the best.

    These are the last ones that `orch best` named, and, for each goal of a job, the run of that job with the best
    newest value. No host is asked.
    """
    kept = {(one.job, one.run_id) for one in _remembered(project).runs}
    best_by_goal: dict[tuple[str, str], tuple[float, Key]] = {}
    for run in project.known.all():
        report = project.mirror.report(run)
        values = newest(report)
        for metric in report.goals:
            less = is_less_better_by_goal(metric, report.goals)
            if metric in values and less is not None:
                rank = -values[metric] if less else values[metric]
                best_by_goal[run.job, metric] = max(
                    best_by_goal.get((run.job, metric), (rank, run.key)), (rank, run.key)
                )
    return kept | {key for _, key in best_by_goal.values()}


def _file(project: OpenedProject) -> Path:
    return project.mirror.directory / MIRROR_RECORDS / REMEMBERED


def _remembered(project: OpenedProject) -> _Remembered:
    return read_record(_Remembered, _file(project)) or _Remembered()


def _remember(project: OpenedProject, metric: str, job: str, run: KnownRun) -> None:
    others = [one for one in _remembered(project).runs if (one.metric, one.asked_job) != (metric, job)]
    runs = [*others, _RememberedRun(metric, job, run.job, run.run_id)]
    write_record(_file(project), _Remembered(tuple(runs[-MAX_REMEMBERED:])))
