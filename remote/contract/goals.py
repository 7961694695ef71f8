"""Goals: `metric = ">= value"`, read alike by the worker's early stopping, the status line and the report."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

_GOAL = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Goal:
    """One condition on one metric. `75 %` reads as 0.75."""

    metric: str
    comparison: str
    target: float

    @classmethod
    def parse(cls, metric: str, text: str) -> Goal:
        """Raise ValueError, saying what was expected, unless `text` is a comparison and a number."""
        match = _GOAL.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is no goal; write a comparison and a number, such as '>= 0.75' or '>= 75 %'")
        comparison, number, percent = match.groups()
        return cls(metric, comparison, float(number) / (100 if percent else 1))

    def holds(self, value: Any) -> bool:
        """False for a value that is missing or not finite."""
        number = _number(value)
        return number is not None and math.isfinite(number) and bool(_COMPARE[self.comparison](number, self.target))

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.target:g}"


@dataclass(frozen=True)
class GoalResult:
    goal: Goal
    value: Optional[float]
    holds: bool

    def __str__(self) -> str:
        value = "not measured" if self.value is None else self._short(self.value)
        holds = "holds" if self.holds else "does not hold"
        return f"{self.goal.metric} {value} ({self.goal.comparison} {self.goal.target:g}: {holds})"

    def _short(self, value: float) -> str:
        """Four digits, or all of them where four would contradict the verdict."""
        short = f"{value:.4g}"
        return short if self.goal.holds(float(short)) == self.holds else repr(value)


def parse_goals(goals: Mapping[str, str]) -> List[Goal]:
    return [Goal.parse(metric, text) for metric, text in goals.items()]


def judge(goals: Sequence[Goal], metrics: Mapping[str, Any]) -> List[GoalResult]:
    """What each goal says of `metrics`, in the order of the goals."""
    return [GoalResult(goal, _number(metrics.get(goal.metric)), goal.holds(metrics.get(goal.metric))) for goal in goals]


def all_hold(results: Sequence[GoalResult]) -> bool:
    """True when there is at least one goal and every one holds."""
    return bool(results) and all(result.holds for result in results)


def sentence(results: Sequence[GoalResult]) -> str:
    """`2 of 3 goals hold; missing: consistency 0.38 (>= 0.7)`: why early stopping did or did not fire."""
    if not results:
        return "no goals are set"
    missing = [result for result in results if not result.holds]
    head = f"{len(results) - len(missing)} of {len(results)} goals hold"
    return head + ("; " + "; ".join(str(result) for result in missing) if missing else "")


def as_record(results: Sequence[GoalResult]) -> Dict[str, bool]:
    return {result.goal.metric: result.holds for result in results}


def _number(value: Any) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer that no float can hold
        return None
