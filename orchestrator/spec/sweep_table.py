"""The table [jobs.NAME.sweep] of jobs.toml: the values of the settings that a launch varies."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.spec.tables import Invalid
from orchestrator.spec.wording import show

# What is decided once for all runs of a job.
NOT_SWEPT = ("name", "host", "needs", "secrets", "sweep", "data", "data.from")


def parse_sweep_table(value: object) -> object:
    """Return the table with dotted keys: `env.SEED = [0, 1]`, without quotes, is a table in a table.

    Raises:
        Invalid: A setting cannot be swept, or its values are not a list of different ones.
    """
    if not isinstance(value, dict):
        return value
    settings = [
        (f"{key}.{name}" if name else key, values)
        for key, held in value.items()
        for name, values in (held if isinstance(held, dict) else {"": held}).items()
    ]
    for key, values in settings:
        problem = values_problem(key, values)
        if problem:
            raise Invalid(f"{key}: {problem}", 'write for example "env.SEED" = [0, 1, 2]')
    return dict(settings)


def values_problem(key: str, values: Any) -> str:
    """Return what is wrong with the values of a setting; empty if nothing."""
    if key in NOT_SWEPT or key.startswith("secrets."):
        return "this setting is the same for all runs of a launch"
    if not isinstance(values, (list, tuple)) or not values:
        return f"expected a list of values, got {show(values)}"
    if "" in values:
        return "one of the values is empty"
    texts = [json.dumps(value, default=str) for value in values]
    repeated = next((value for place, value in enumerate(values) if texts[place] in texts[:place]), None)
    return f"{show(repeated)} is listed twice" if repeated is not None else ""
