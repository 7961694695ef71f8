"""How `orch compare` and `orch best` show their results."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.text import clean, counted, shortened
from orchestrator.ui.columns import aligned, number_text, width_of
from orchestrator.ui.look_objects import BestObject, ComparisonObject, best_to_json, comparison_to_json
from orchestrator.ui.run_text import settings_of, state_name
from orchestrator.ui.show_text import MAX_LISTED, MAX_VALUE, age_text, setting_text

if TYPE_CHECKING:
    from orchestrator.commands.best import Best, Candidate
    from orchestrator.commands.compare import Comparison, Difference, Statistics
    from orchestrator.ui.terminal import Terminal

MAX_CELL = 60  # characters
MAX_BEST = 10  # runs that are listed as text
DIGITS = 12  # of a hash
WIDE = 200  # columns if the output is not a terminal
WHY = {
    "goal": "as its goal says",
    "option": "as you said",
    "name": "to judge by its name; --min or --max chooses otherwise",
}


class CompareView:
    """Runs side by side: only what differs, then the statistics of repetitions."""

    kind = "compare"

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def write(self, terminal: Terminal) -> None:
        """Write a table, the groups, and what to do next."""
        found = self._comparison
        for error in dict.fromkeys(one.error.message for one in found.seen if one.error):
            terminal.note(f"{error}; what is known here is compared")
        for text in aligned(_laid_out(_table(found))):
            terminal.say(text)
        for what, rows in (("settings", found.settings), ("facts", found.code), ("metrics", found.metrics)):
            _say_rest(terminal, f"more {what}", len(rows))
        for group in found.groups:
            terminal.say("")
            terminal.say(f"{shortened(group.name, MAX_VALUE) or 'all'}: {counted(len(group.runs), 'run')}")
            listed = group.statistics[:MAX_LISTED]
            for text in aligned([["  METRIC", "MEAN", "STD", "MIN", "MAX", "N"], *map(_statistics, listed)]):
                terminal.say(text)
            _say_rest(terminal, "more", len(group.statistics))
        terminal.note(f"{found.same} settings, facts and metrics are the same in all runs")
        commits = next((row.values for row in found.code if row.name == "commit"), ())
        if len(commits) == 2 and all(commits):
            terminal.note(f"the code that differs: git diff {commits[0]!s:.{DIGITS}} {commits[1]!s:.{DIGITS}}")

    def facts(self) -> ComparisonObject:
        """Return the document."""
        return comparison_to_json(self._comparison)


def _table(found: Comparison) -> list[list[str]]:
    """Return the table with one column for each run."""
    now = time.time()
    ages = [age_text(one, now) for one in found.seen]
    rows = [["", *map(clean, found.names)], ["state", *(state_name(one.report) for one in found.seen)]]
    rows += [["age", *ages]] if any(ages) else []
    for row in found.settings[:MAX_LISTED]:
        rows.append(_cells(row, ("-" if value is None else setting_text(row.name, value) for value in row.values)))
    for row in found.code[:MAX_LISTED]:
        rows.append(_cells(row, ("-" if value is None else str(value)[:DIGITS] for value in row.values)))
    for row in found.metrics[:MAX_LISTED]:
        rows.append(
            _cells(row, (number_text(value if isinstance(value, (int, float)) else None) for value in row.values))
        )
    return rows


def _say_rest(terminal: Terminal, more: str, count: int) -> None:
    if count > MAX_LISTED:
        terminal.say(f"and {count - MAX_LISTED} {more}; all of them: --json")


def _cells(row: Difference, values: Iterable[str]) -> list[str]:
    return [shortened(row.name, MAX_CELL), *(shortened(value, MAX_CELL) or '""' for value in values)]


def _laid_out(table: list[list[str]]) -> list[list[str]]:
    """Turn a table that is too wide for the terminal, so that each run has a row, if it is narrower then."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    turned = [list(column) for column in zip(*table, strict=True)]
    return turned if width_of(turned) < width_of(table) and width_of(table) > columns else table


def _statistics(found: Statistics) -> list[str]:
    values = (found.mean, found.deviation, found.least, found.greatest)
    return [f"  {shortened(found.metric, MAX_CELL)}", *map(number_text, values), str(found.count)]


class BestView:
    """The runs with the best values of a metric."""

    kind = "best"

    def __init__(self, best: Best) -> None:
        self._best = best

    def write(self, terminal: Terminal) -> None:
        """Write the best runs as a table, which direction was taken and why."""
        best = self._best
        for error in dict.fromkeys(one.seen.error.message for one in best.candidates if one.seen.error):
            terminal.note(f"{error}; what is known here is compared")
        rows = [["RUN", "BEST", "AT", "NEWEST", "STATE", "SETTINGS"], *map(_candidate, best.candidates[:MAX_BEST])]
        has_settings = any(row[-1] for row in rows[1:])
        for text in aligned(rows if has_settings else [row[:-1] for row in rows]):
            terminal.say(text)
        more = len(best.candidates) - MAX_BEST
        if more > 0:
            terminal.note(f"and {more} more; all of them: --json")
        terminal.note(f"{'less' if best.is_less_better else 'more'} is better, {WHY[best.why]}")
        if any(not one.from_history for one in best.candidates[:MAX_BEST]):
            terminal.note("newest value only: the history of the run is not here; to fetch it: orch sync")
        if best.without:
            terminal.note(f"{counted(best.without, 'run')} without this metric")

    def facts(self) -> BestObject:
        """Return the document."""
        return best_to_json(self._best)


def _candidate(one: Candidate) -> list[str]:
    places = (("epoch", one.epoch), ("step", one.step))
    at = " ".join(f"{name} {value}" for name, value in places if value is not None)
    return [
        clean(one.name),
        number_text(one.value),
        at or ("-" if one.from_history else "newest value only"),
        number_text(one.newest),
        state_name(one.seen.report),
        settings_of(one.seen.report),
    ]
