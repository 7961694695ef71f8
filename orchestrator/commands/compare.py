"""`orch compare`: what differs between runs, and statistics over runs that differ only in such settings as a seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.commands.looking import SeenRun, known_runs, look
from orchestrator.commands.run_metrics import newest
from orchestrator.commands.run_names import short_ids
from orchestrator.commands.run_settings import all_settings
from orchestrator.commands.show import read_run_record
from orchestrator.errors import SpecError
from orchestrator.text import counted

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject

# The last word of the name of a setting that only tells repetitions apart: `env.SEED`, `env.FOLD`.
REPEATS = re.compile(r"(?:.*[._-])?(?:seed|fold|repeat|repetition|trial)s?", re.IGNORECASE)
MAX_RUNS = 1000
Fact = str | float | bool | Sequence[object] | None  # a value as in run.json
Facts = dict[str, Fact]


@dataclass(frozen=True)
class Difference:
    """What one setting or metric is in each run, in the order of the runs. None where a run does not have it."""

    name: str
    values: tuple[Fact, ...]


@dataclass(frozen=True)
class Statistics:
    """A metric over several runs: their number, mean, and standard deviation, which needs at least two runs."""

    metric: str
    count: int
    mean: float
    deviation: float | None
    least: float
    greatest: float


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but such settings as a seed. `name` says what they have that the others do not."""

    name: str
    runs: tuple[str, ...]  # short names
    statistics: tuple[Statistics, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: only what differs.

    Attributes:
        seen: The runs.
        names: Their short names, such as `train/2ab4`.
        settings: The settings that differ.
        code: The facts about the code that differ.
        metrics: The newest metrics that differ.
        same: How many settings, facts and metrics are the same in all runs.
        groups: Statistics over runs that are repetitions of each other; empty if there are no repetitions.
    """

    seen: tuple[SeenRun, ...]
    names: tuple[str, ...]
    settings: tuple[Difference, ...]
    code: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    same: int
    groups: tuple[RunGroup, ...]


def compare(project: OpenedProject, names: Sequence[str]) -> Comparison:
    """Compare the runs that names mean. Hosts are asked for what is not here, if they answer.

    Raises:
        SpecError: The names mean fewer than two runs, or too many.
        HostError: A name means no run that is known here, and a host that may have it cannot be asked.
    """
    runs = known_runs(project, names)
    if not 1 < len(runs) <= MAX_RUNS:
        raise SpecError(
            f"comparing {counted(len(runs), 'run')}: at least 2 and at most {MAX_RUNS} are needed",
            "name more runs, a group, or a pattern such as 'train/*'; to list them: orch runs",
        )
    seen = tuple(look(project, runs))
    short = short_ids(run.key for run in project.known.all())
    labels = tuple(f"{run.job}/{short.get(run.key, run.run_id)}" for run in runs)
    metrics = [newest(one.report) for one in seen]
    rows = [_rows([_settings(one) for one in seen]), _rows([_code(one) for one in seen]), _rows(metrics)]
    settings, code, values = (tuple(row for row in found if not _is_same(row)) for found in rows)
    same = sum(map(len, rows)) - len(settings) - len(code) - len(values)
    return Comparison(seen, labels, settings, code, values, same, _groups(labels, settings, code, metrics))


def _settings(seen: SeenRun) -> Facts:
    record = read_run_record(seen.copy)
    found: Facts = {} if record is None else dict(all_settings(record.job))
    return {"job": seen.known.job, **seen.report.values, **found, "host": seen.report.host}


def _code(seen: SeenRun) -> Facts:
    code = seen.report.code
    facts: Facts = {"tree": code.tree, "commit": code.commit, "branch": code.branch, "with changes": code.dirty}
    return {name: value for name, value in facts.items() if value is not None}


def _rows(found: Sequence[Mapping[str, Fact]]) -> list[Difference]:
    names = dict.fromkeys(name for values in found for name in values)
    return [Difference(name, tuple(values.get(name) for values in found)) for name in names]


def _is_same(row: Difference) -> bool:
    return all(value == row.values[0] for value in row.values)


def _groups(
    labels: Sequence[str],
    settings: Iterable[Difference],
    code: Iterable[Difference],
    metrics: Sequence[Mapping[str, float]],
) -> tuple[RunGroup, ...]:
    """Group runs whose settings and code differ in nothing but settings such as a seed."""
    telling = [row for row in (*settings, *code) if not REPEATS.fullmatch(row.name)]
    members: dict[str, list[int]] = {}
    for place in range(len(labels)):
        members.setdefault(repr([row.values[place] for row in telling]), []).append(place)
    if all(len(places) == 1 for places in members.values()):
        return ()
    return tuple(
        RunGroup(
            " ".join(f"{row.name.removeprefix('env.')}={row.values[places[0]]}" for row in telling),
            tuple(labels[place] for place in places),
            statistics([metrics[place] for place in places]),
        )
        for places in members.values()
    )


def statistics(found: Sequence[Mapping[str, float]]) -> tuple[Statistics, ...]:
    """Return the statistics of each metric over the runs that have it.

    Args:
        found: The metrics of each run by name.
    """
    from statistics import fmean, stdev  # takes long to import

    result = []
    for metric in dict.fromkeys(name for values in found for name in values):
        numbers = [float(values[metric]) for values in found if metric in values]
        try:
            mean, deviation = fmean(numbers), stdev(numbers) if len(numbers) > 1 else None
        except OverflowError:  # a box may report any number
            continue
        result.append(Statistics(metric, len(numbers), mean, deviation, min(numbers), max(numbers)))
    return tuple(result)
