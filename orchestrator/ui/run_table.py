"""The table of runs that `status`, `runs` and `watch` show: redrawn on a terminal, line by line into a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.commands.overview import Overview
from orchestrator.text import clean
from orchestrator.ui.renderer import news
from orchestrator.ui.run_text import eta, goals, heartbeat, progress, style_of, word
from orchestrator.ui.terminal import Terminal
from remote.contract.run_report import RunReport

# The least widths keep rows in line that go into a pipe one after the other, as their hosts answer.
COLUMNS = (("JOB", 8), ("RUN", 20), ("HOST", 8), ("STATE", 11), ("ETA", 7), ("GOALS", 5), ("HEARTBEAT", 12))
STATE = 3
OPTIONAL = ("ETA", "GOALS", "HEARTBEAT")  # left out on a terminal where no run has any
GAP = "  "
LEAST_PROGRESS = 30  # columns; where there are fewer, progress goes below the row
Masked = Callable[[str], str]


class RunTable:
    """Runs as rows that fit the terminal: where it is narrow, the progress of a run has a line of its own."""

    def __init__(self, runs: Sequence[RunReport], masked: Masked) -> None:
        self._runs = runs
        self._rows = [[clean(masked(cell)) for cell in _cells(run)] for run in runs]
        self._progress = [clean(masked(progress(run))) for run in runs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        used = [
            place
            for place, (name, _) in enumerate(COLUMNS)
            if name not in OPTIONAL or any(r[place] for r in self._rows)
        ]
        names = [COLUMNS[place][0] for place in used]
        widths = [
            max(len(name), *(len(row[place]) for row in self._rows)) for place, name in zip(used, names, strict=True)
        ]
        rows = [self._row(number, used, widths) for number in range(len(self._rows))]
        header = Text(_joined(names, widths), style="bold")
        if options.max_width - len(header) - len(GAP) >= LEAST_PROGRESS:
            yield _side_by_side(header, rows, self._progress)
            return
        yield header
        for row, beside in zip(rows, self._progress, strict=True):
            row.rstrip()
            yield row
            if beside:
                yield Padding(Text(beside, style="dim"), (0, 0, 0, len(GAP)))

    def lines(self, with_header: bool) -> Iterator[Text]:
        """Yield one line a run, with all columns, uncut."""
        widths = [width for _, width in COLUMNS]
        if with_header:
            yield Text(GAP.join([_joined([name for name, _ in COLUMNS], widths), "PROGRESS"]))
        for number, beside in enumerate(self._progress):
            row = self._row(number, range(len(COLUMNS)), widths).append(GAP + beside)
            row.rstrip()
            yield row

    def _row(self, number: int, used: Iterable[int], widths: Sequence[int]) -> Text:
        """Text, never str: rich reads a str as markup, and "[/x]" from a box would be an error."""
        text = Text()
        for place, width in zip(used, widths, strict=True):
            text.append(GAP if text else "")
            text.append(self._rows[number][place].ljust(width), style_of(self._runs[number]) if place == STATE else "")
        return text


def _side_by_side(header: Text, rows: Iterable[Text], progress_of_each: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    table.add_column(header, no_wrap=True)
    table.add_column("PROGRESS")
    for row, beside in zip(rows, progress_of_each, strict=True):
        table.add_row(row, Text(beside))
    return table


def _cells(run: RunReport) -> tuple[str, ...]:
    return run.job, run.run_id, run.host or "", word(run), eta(run), goals(run), heartbeat(run)


def _joined(cells: Iterable[str], widths: Iterable[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


# --- one after the other, as hosts answer ----------------------------------------------------------------


def show(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """Show the runs as their hosts answer; return the last overview."""
    return (_redrawn if terminal.is_interactive else _appended)(terminal, overviews)


def _redrawn(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """On a terminal: one table, redrawn as hosts answer. One that is complete at once is only printed."""
    last: Overview | None = None
    with ExitStack() as stack:
        redraw: Callable[[Any], None] | None = None
        for last in overviews:
            if last.waiting_for and redraw is None:
                redraw = stack.enter_context(terminal.redrawn())
            if redraw is not None and last.runs:
                redraw(_view(last, terminal.masked, with_errors=False))  # they come below, each once
    if last is not None and last.runs and redraw is None:
        terminal.show(RunTable(last.runs, terminal.masked))
    return last


def _appended(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """Into a pipe: the runs of a host are not held back by another host."""
    last: Overview | None = None
    shown: set[tuple[str, str]] = set()
    for last in overviews:
        new = [run for run in last.runs if (run.job, run.run_id) not in shown]
        if new:
            for text in RunTable(new, terminal.masked).lines(with_header=not shown):
                terminal.show(text, soft_wrap=True)
        shown |= {(run.job, run.run_id) for run in new}
    return last


def watch(terminal: Terminal, overviews: Iterable[Overview]) -> Sequence[RunReport]:
    """Show the table as it changes, or each change as a line into a pipe; return the runs as they were at the end."""
    runs: Sequence[RunReport] = ()
    if not terminal.is_interactive:
        for seen, lines in news(overviews):
            runs = seen.runs
            for text in lines:
                terminal.say(text)
        return runs
    with terminal.redrawn() as redraw:
        for seen in overviews:
            runs = seen.runs
            redraw(_view(seen, terminal.masked))
    return runs


def _view(seen: Overview, masked: Masked, with_errors: bool = True) -> Group:
    """The table, and below it why it may be out of date: hosts that have yet to answer, or that failed."""
    parts: list[Any] = [RunTable(seen.runs, masked)] if seen.runs else []
    for host in seen.hosts:
        if host.error and with_errors:
            said = f"{host.error.message}; its runs are shown as last seen, and keep running"
            parts.append(Text(clean(masked(said)), style="yellow"))
    if seen.waiting_for:
        parts.append(Text(f"waiting for {', '.join(seen.waiting_for)}", style="dim"))
    return Group(*parts)
