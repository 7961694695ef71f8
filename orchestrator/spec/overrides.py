"""Change settings of jobs for one command: `--set KEY=VALUE`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.build import build_table, check_references
from orchestrator.spec.models import Job, Spec
from orchestrator.spec.problems import Report
from orchestrator.spec.tables import to_toml
from orchestrator.spec.wording import header, show


def with_overrides(spec: Spec, jobs: Iterable[str], overrides: Iterable[str]) -> Spec:
    """Return the spec with each override applied to each of the jobs.

    Args:
        spec: The spec.
        jobs: The names of the jobs.
        overrides: Texts such as `env.EPOCHS=5` or `deadline=2h`.

    Raises:
        SpecError: There is no such job, or an override is malformed or makes a job invalid.
    """
    report = Report("--set")
    pairs = [_parse_override(text) for text in overrides]
    changed = dict(spec.jobs)
    for name in jobs:
        values = to_toml(spec.job(name))
        for key, value in pairs:
            _override(values, key, value)
        job = build_table(Job, "jobs", name, values, {}, report)
        if job is not None:
            changed[name] = job
    check_references(spec.hosts, spec.jobs, changed, lambda name, key: header("jobs", name), report)
    report.raise_if_any()
    return replace(spec, jobs=changed)


def _parse_override(text: str) -> tuple[str, Any]:
    """Return KEY and VALUE. A VALUE that is not valid TOML is text."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(f"--set: {show(text)} is not KEY=VALUE", "write for example --set env.EPOCHS=5")
    try:
        document = tomllib.loads(f"value = {raw}")
        value = document["value"] if len(document) == 1 else raw
    except (ValueError, RecursionError):
        value = raw
    return key, raw if key.startswith("env.") and not isinstance(value, str) else value


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a key such as `deadline`, `env.EPOCHS` or `secrets.TOKEN.command` in the values of a job.

    Except in `secrets`, everything after the first dot is one key, because the name of a metric may contain dots.
    """
    head, dot, rest = key.partition(".")
    if head == "secrets" and "." in rest:
        rest, _, source = rest.partition(".")
        value = {source: value}
    if not dot:
        values[head] = value
    elif isinstance(values.get(head), dict):
        values[head][rest] = value
    else:
        values[head] = {rest: value}
