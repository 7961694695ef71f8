"""The metrics of runs: their newest values, their history, and which direction is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote.contract.files import read_jsonl
from remote.contract.goals import Goal
from remote.contract.reported import MetricsLine
from remote.contract.schema import from_json

if TYPE_CHECKING:
    from remote.contract.paths import RunPaths
    from remote.contract.run_report import RunReport

MAX_HISTORY_BYTES = 1 << 28  # of metrics.jsonl
FAR = 1e300  # a larger integer has no float
# Keys of a line of metrics that are no metrics.
NOT_METRICS = ("schema", "time", "epoch", "step", "goals", "source")
# Parts of the names of metrics of which less is better, such as `val_loss` and `rmse`.
LESS_IS_BETTER = (
    *("loss", "error", "err", "mse", "mae", "rmse", "mape", "perplexity", "ppl", "nll", "wer", "cer", "fid", "bpb"),
    *("latency", "seconds", "regret", "distance", "divergence"),
)


def newest(report: RunReport) -> dict[str, float]:
    """Return the newest metrics of a run that are finite numbers, in the order in which they were reported."""
    return _numbers(report.metrics or {})


def _numbers(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in NOT_METRICS and _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < FAR


@dataclass(frozen=True)
class Validation:
    """One line of metrics.jsonl: the epoch and step, if they are known, and the metrics that are finite numbers."""

    epoch: int | None
    step: int | None
    values: dict[str, float]


def history(run: RunPaths) -> Iterator[Validation]:
    """Yield the validations in the copy of a run, the oldest first."""
    for value in read_jsonl(run.metrics, MAX_HISTORY_BYTES):
        line = from_json(MetricsLine, value, problems=[], longest=None)
        yield Validation(line.epoch, line.step, _numbers(line.values))


def is_less_better(metric: str) -> bool:
    """Return whether less is better, by the name of the metric: of losses, errors and the like."""
    words = metric.lower().replace("/", "_").replace("-", "_").replace(".", "_").split("_")
    return any(word in LESS_IS_BETTER or word.endswith(("loss", "error")) for word in words)


def is_less_better_by_goal(metric: str, goals: Mapping[str, str]) -> bool | None:
    """Return whether less is better according to the goal of a metric; None if there is none."""
    try:
        return Goal.parse(metric, goals[metric]).comparison in ("<", "<=") if metric in goals else None
    except ValueError:  # a box may report anything as a goal
        return None
