"""Goals of a job, such as `val_accuracy = ">= 0.97"`: parse them, and judge metrics by them."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

_GOAL = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*")
MAX_SHOWN = 80  # characters of a wrong goal that an error repeats
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Goal:
    """One condition on one metric. `75 %` is 0.75."""

    metric: str
    comparison: str
    target: float

    @classmethod
    def parse(cls, metric: str, text: str) -> Goal:
        """Parse a comparison and a number, such as `>= 75 %`.

        Raises:
            ValueError: `text` is something else; the message says what is expected.
        """
        match = _GOAL.fullmatch(text)
        if not match:
            shown = repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
            raise ValueError(
                f"{shown} is not a valid goal; write a comparison and a number, such as '>= 0.75' or '>= 75 %'"
            )
        comparison, number, percent = match.groups()
        return cls(metric, comparison, float(number) / (100 if percent else 1))

    def holds(self, value: Any) -> bool:
        """Return whether `value` meets the goal. A value that is missing or not finite does not meet it."""
        number = _number(value)
        return number is not None and math.isfinite(number) and bool(_COMPARE[self.comparison](number, self.target))

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.target:g}"


@dataclass(frozen=True)
class GoalResult:
    """A goal, the value of its metric (None if it is not a number), and whether the goal is met.

    `holds` is None if the metric was never reported: the goal could not be judged.
    """

    goal: Goal
    value: Optional[float]
    holds: Optional[bool]

    def __str__(self) -> str:
        if self.holds is None:
            return f"{self.goal.metric} never reported, goal {self.goal.comparison} {self.goal.target:g}: not judged"
        value = "not a number" if self.value is None else self._short(self.value)
        verdict = "met" if self.holds else "missed"
        return f"{self.goal.metric} {value}, goal {self.goal.comparison} {self.goal.target:g}: {verdict}"

    def _short(self, value: float) -> str:
        """Return three digits, or all digits if three digits would contradict the verdict."""
        short = f"{value:.3g}"
        return short if self.goal.holds(float(short)) == self.holds else repr(value)


def parse_goals(goals: Mapping[str, str]) -> List[Goal]:
    """Parse conditions by metric. Raise ValueError as `Goal.parse` does."""
    return [Goal.parse(metric, text) for metric, text in goals.items()]


def judge(goals: Sequence[Goal], metrics: Mapping[str, Any]) -> List[GoalResult]:
    """Return the result of each goal for `metrics`, in the order of the goals."""
    return [
        GoalResult(goal, _number(metrics[goal.metric]), goal.holds(metrics[goal.metric]))
        if goal.metric in metrics
        else GoalResult(goal, None, None)
        for goal in goals
    ]


def all_hold(results: Sequence[GoalResult]) -> bool:
    """Return whether there is at least one goal and all are met."""
    return bool(results) and all(result.holds for result in results)


def summary(results: Sequence[GoalResult]) -> str:
    """Return how many goals are met, such as `2 of 3 goals met`."""
    return (
        f"{len([result for result in results if result.holds])} of {len(results)} goals met"
        if results
        else "no goals are set"
    )


def sentence(results: Sequence[GoalResult]) -> str:
    """Return the summary and each goal that is not met: `2 of 3 goals met; consistency 0.38, goal >= 0.7: missed`."""
    return "; ".join([summary(results), *(str(result) for result in results if not result.holds)])


def as_record(results: Sequence[GoalResult]) -> Dict[str, bool]:
    """Return whether each goal is met, by its metric. One whose metric was not reported is not."""
    return {result.goal.metric: bool(result.holds) for result in results}


def _number(value: Any) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer that is too large for a float
        return None
