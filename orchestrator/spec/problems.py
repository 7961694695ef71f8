"""Collect all mistakes in a jobs.toml into one SpecError, one line for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.errors import SpecError
from orchestrator.spec.tables import Mistake, Table, read_table
from orchestrator.spec.wording import Loc

T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Problem:
    """One mistake, as one line of the error message, and how to correct it."""

    text: str
    hint: str


class Report:
    """Collects mistakes, so that one error names all of them. `source` is a file name or `--set`."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def add(self, table: str, text: str, hint: str = "") -> None:
        """Add a mistake in `table`, such as `[jobs.train]`; "" for the top level."""
        problem = Problem(f"{self.source}: {table} {text}" if table else f"{self.source}: {text}", hint)
        if problem not in self.problems:  # a wrong default is found again in every job that has it
            self.problems.append(problem)

    def check(self, kind: type[T], values: Mapping[str, Any], table_of: Callable[[Loc], str]) -> T | None:
        """Return a table, or add every mistake in its values and return None.

        Args:
            kind: The class of the table.
            values: The values of the table, defaults included.
            table_of: Returns the header of the table that sets the value at a Loc.
        """
        mistakes: list[Mistake] = []
        table = read_table(kind, values, mistakes)
        for mistake in mistakes:
            self.add(table_of(mistake.loc), mistake.text, mistake.hint)
        return table

    def error(self) -> SpecError:
        """Return the error that names all mistakes, of which there is at least one."""
        if len(self.problems) == 1:
            return SpecError(self.problems[0].text, self.problems[0].hint)
        return SpecError("\n".join(f"{each.text}; {each.hint}" if each.hint else each.text for each in self.problems))

    def raise_if_any(self) -> None:
        """Raise the error if there are mistakes."""
        if self.problems:
            raise self.error()
