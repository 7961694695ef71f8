"""Sweeps: several runs of a job, one for each combination of the values of some settings.

orch launch train --sweep env.SEED=0,1,2 --sweep env.LR=1e-3,3e-4

[jobs.train.sweep]
"env.SEED" = [0, 1, 2]
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.build import build_table
from orchestrator.spec.models import Job, Spec
from orchestrator.spec.overrides import override, parse_override, typed, with_overrides
from orchestrator.spec.problems import Report
from orchestrator.spec.sweep_table import values_problem
from orchestrator.spec.tables import to_toml
from orchestrator.spec.wording import header, show

MAX_RUNS = 500  # of one launch; each has a supervisor, which takes about 15 MB
EXAMPLE = "write for example --sweep env.SEED=0,1,2"
Values = Mapping[str, tuple[Any, ...]]  # the values of each setting


@dataclass(frozen=True)
class PlannedRun:
    """One run of a launch: its job with all its settings, and those that tell it from the other runs of the job."""

    job: Job
    values: dict[str, str] = field(default_factory=dict)


def variants(spec: Spec, names: Sequence[str], overrides: Iterable[str], sweeps: Iterable[str]) -> list[PlannedRun]:
    """Return the runs of a launch: one for each job, or for each combination of the values that its sweep has.

    Args:
        spec: The jobs.toml.
        names: The jobs.
        overrides: Texts such as `deadline=2h`. One for a setting that the table `sweep` of a job has picks that value.
        sweeps: Texts such as `env.SEED=0,1,2`, for all jobs. They replace those in the table of a job.

    Raises:
        SpecError: A job or a setting does not exist, a value is wrong, or there would be too many runs.
    """
    overrides = list(overrides)
    changed = with_overrides(spec, names, overrides)
    wanted: dict[str, tuple[Any, ...]] = {}
    for text in sweeps:
        key, values = parse_sweep(text)
        if key in wanted:
            raise SpecError(f"--sweep: {key} is given twice", f"list its values in one: --sweep {key}=1,2,3")
        wanted[key] = values
    fixed = {parse_override(text)[0] for text in overrides}
    for key in sorted(fixed & set(wanted)):
        raise SpecError(f"--sweep {key}: --set changes it too", "leave out one of them")
    found: list[PlannedRun] = []
    report = Report("--sweep")
    for job in map(changed.job, names):
        of_table = {key: values for key, values in job.sweep.items() if key not in fixed}
        found += _combinations(job, {**of_table, **wanted}, report, MAX_RUNS - len(found))
    report.raise_if_any()
    return found


def _combinations(job: Job, sweep: Values, report: Report, most: int) -> list[PlannedRun]:
    """Return a variant of the job for each combination; `report` is given their mistakes."""
    count = prod(map(len, sweep.values()))
    if count > most:
        raise SpecError(
            f"this launches {count} runs of {job.name}; at most {MAX_RUNS} are allowed", "sweep fewer values"
        )
    if not sweep:
        return [PlannedRun(replace(job, sweep={}))]
    found = []
    seen: dict[str, dict[str, Any]] = {}  # the settings of each run, by all settings of its job
    for combination in product(*sweep.values()):
        settings = list(zip(sweep, combination, strict=True))
        variant = _with_settings(job, settings, report)
        if variant is not None:
            same = seen.setdefault(repr(variant), dict(settings))
            for key, value in settings:
                if same[key] is not value:
                    message = f"--sweep {key}: {show(same[key])} and {show(value)} mean the same value"
                    raise SpecError(message, "leave out one of them")
            found.append(PlannedRun(variant, {key: _label(variant, key, value) for key, value in settings}))
    return found


def _with_settings(job: Job, settings: Iterable[tuple[str, Any]], report: Report) -> Job | None:
    """Return the job with these settings and without a sweep; None if `report` was given mistakes."""
    values = to_toml(replace(job, sweep={}))
    for key, value in settings:
        override(values, key, value)
    return build_table(Job, "jobs", job.name, values, {}, report)


def _label(job: Job, key: str, value: Any) -> str:
    """Return the value of a setting as text: of a variable, as the program gets it."""
    if key.startswith("env."):
        return job.env[key.removeprefix("env.")]
    return value if isinstance(value, str) else json.dumps(value)


def check_table(job: Job, report: Report) -> None:
    """Add the mistakes of the table [jobs.NAME.sweep] to `report`: settings that do not exist, and wrong values."""
    for key, values in job.sweep.items():
        for value in values:
            own = Report(report.source)
            _with_settings(job, [(key, value)], own)
            for problem in own.problems:
                text = problem.text.removeprefix(f"{report.source}: {header('jobs', job.name)} ")
                report.add(f"[jobs.{job.name}.sweep]", text, problem.hint)


def parse_sweep(text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the setting and the values of `KEY=VALUE,VALUE` or `KEY=[...]`, a TOML list.

    Raises:
        SpecError: It is malformed.
    """
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise SpecError(f"--sweep: {show(text)} is not KEY=VALUE,VALUE", EXAMPLE)
    try:
        values = tomllib.loads(f"values = {raw}")["values"] if raw.startswith("[") else _split(key, raw)
    except (ValueError, csv.Error, RecursionError):
        hint = f"""quote a value with a comma, such as --sweep '{key}="a,b",c', or write a TOML list"""
        raise SpecError(f"--sweep {key}: cannot read the values {show(raw)}", hint) from None
    problem = values_problem(key, values)
    if problem:
        raise SpecError(f"--sweep {key}: {problem}", EXAMPLE)
    return key, tuple(values)


def _split(key: str, raw: str) -> list[Any]:
    """Return the values between the commas. Raise csv.Error if a quotation mark is missing."""
    words = next(csv.reader([raw], strict=True, skipinitialspace=True), [])
    return [typed(key, word.strip()) for word in words]
