"""A figure: paired, interleaved repetitions of orch and of its reference, and the limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """The most that is allowed: a ratio to the reference, milliseconds, milliseconds in addition to it, or a count."""

    most: float
    of: Literal["ratio", "ms", "added ms", "count"] = "ratio"

    def __str__(self) -> str:
        return {"ratio": "{:g} x", "ms": "{:g} ms", "added ms": "+{:g} ms", "count": "{:g}"}[self.of].format(self.most)


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: What was measured; a key of `levers.LEVERS`.
        reference_name: What stands beside it.
        orch: The values of orch, one for each repetition, in seconds (or a count).
        reference: Those of the reference, measured in turn with them; may be empty for a count.
        limit: What is allowed; None if the figure is only shown.
        delay_ms: The delay of a round trip to the box.
    """

    name: str
    reference_name: str
    orch: list[float]
    reference: list[float]
    limit: Limit | None = None
    delay_ms: int = 0

    @property
    def median(self) -> float:
        """The median of orch."""
        return statistics.median(self.orch)

    @property
    def reference_median(self) -> float | None:
        """The median of the reference, if there is one."""
        return statistics.median(self.reference) if self.reference else None

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair, from the smallest to the largest."""
        return sorted(mine / other for mine, other in zip(self.orch, self.reference, strict=bool(self.reference)))

    @property
    def judged(self) -> float:
        """The value that is compared with the limit."""
        of = self.limit.of if self.limit else "ratio"
        if of == "ratio":
            return statistics.median(self.ratios)
        if of == "added ms":
            return 1000 * statistics.median(a - b for a, b in zip(self.orch, self.reference, strict=True))
        return self.median * (1000 if of == "ms" else 1)

    @property
    def reached(self) -> bool:
        """Whether the limit was kept."""
        return self.limit is None or self.judged <= self.limit.most

    def document(self) -> dict[str, Any]:
        """Return the figure for build/bench.json; times are seconds."""
        limit = {"most": self.limit.most, "of": self.limit.of} if self.limit else None
        values = {"median": self.median, "reference_median": self.reference_median, "judged": self.judged}
        head = {"name": self.name, "delay_ms": self.delay_ms, "reference_name": self.reference_name}
        verdict = {"limit": limit, "reached": self.reached, "ratios": self.ratios}
        return {**head, **values, **verdict, "orch": self.orch, "reference": self.reference}


LONG_ENOUGH_S = 60  # after so long, no further round begins


def interleaved(rounds: int, ways: Mapping[str, Callable[[], T]], first: int = 1) -> dict[str, list[T]]:
    """Run each way in turn, and return their values.

    Args:
        rounds: How often, at most: no round begins after LONG_ENOUGH_S, except the first that counts.
        ways: What is run, by name.
        first: How many rounds come before those, and do not count.
    """
    began = time.monotonic()
    values: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(first + rounds):
        if number > first and time.monotonic() - began > LONG_ENOUGH_S:
            break
        for name, way in ways.items():
            value = way()
            if number >= first:
                values[name].append(value)
    return values
