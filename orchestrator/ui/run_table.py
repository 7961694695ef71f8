"""The table of runs of `status`, `runs` and `watch`: redrawn on a terminal, written line by line into a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.text import Text

from orchestrator.text import clean
from orchestrator.ui.renderer import changes
from orchestrator.ui.run_text import eta, goals, heartbeat, progress, state_name, style_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.table import Table

    from orchestrator.commands.overview import Overview
    from orchestrator.ui.terminal import Terminal
    from remote.contract.run_report import RunReport

# Name and least width. The widths keep rows aligned that are written into a pipe one by one, as the hosts answer.
COLUMNS = (("JOB", 8), ("RUN", 20), ("HOST", 8), ("STATE", 11), ("ETA", 7), ("GOALS", 5), ("HEARTBEAT", 12))
STATE = 3
OPTIONAL = ("ETA", "GOALS", "HEARTBEAT")  # a column that is omitted on a terminal if no run has a value
GAP = "  "
MIN_PROGRESS = 30  # columns; if the terminal has fewer left, progress is below the row
Masked = Callable[[str], str]


class RunTable:
    """A table of runs that rich can lay out. On a narrow terminal, the progress of a run is on a line of its own."""

    def __init__(self, runs: Sequence[RunReport], masked: Masked) -> None:
        self._runs = runs
        self._rows = [[clean(masked(cell)) for cell in _cells(run)] for run in runs]
        self._progress = [clean(masked(progress(run))) for run in runs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        used = [
            column
            for column, (name, _) in enumerate(COLUMNS)
            if name not in OPTIONAL or any(row[column] for row in self._rows)
        ]
        names = [COLUMNS[column][0] for column in used]
        widths = [
            max(len(name), *(len(row[column]) for row in self._rows)) for column, name in zip(used, names, strict=True)
        ]
        rows = [self._row(number, used, widths) for number in range(len(self._rows))]
        header = Text(_joined(names, widths), style="bold")
        if options.max_width - len(header) - len(GAP) >= MIN_PROGRESS:
            yield _side_by_side(header, rows, self._progress)
            return
        yield header
        for row, progress_text in zip(rows, self._progress, strict=True):
            row.rstrip()
            yield row
            if progress_text:
                from rich.padding import Padding

                yield Padding(Text(progress_text, style="dim"), (0, 0, 0, len(GAP)))

    def lines(self, with_header: bool) -> Iterator[Text]:
        """Yield one line for each run, with all columns, whatever the width of the terminal."""
        widths = [width for _, width in COLUMNS]
        if with_header:
            yield Text(GAP.join([_joined([name for name, _ in COLUMNS], widths), "PROGRESS"]))
        for number, progress_text in enumerate(self._progress):
            row = self._row(number, range(len(COLUMNS)), widths).append(GAP + progress_text)
            row.rstrip()
            yield row

    def _row(self, number: int, used: Iterable[int], widths: Sequence[int]) -> Text:
        """Return one row as a Text. Rich would read a str as markup, and fail on "[/x]" from a box."""
        text = Text()
        for column, width in zip(used, widths, strict=True):
            style = style_of(self._runs[number]) if column == STATE else ""
            text.append(GAP if text else "")
            text.append(self._rows[number][column].ljust(width), style)
        return text


def _side_by_side(header: Text, rows: Iterable[Text], progress_of_each: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    table.add_column(header, no_wrap=True)
    table.add_column("PROGRESS")
    for row, progress_text in zip(rows, progress_of_each, strict=True):
        table.add_row(row, Text(progress_text))
    return table


def _cells(run: RunReport) -> tuple[str, ...]:
    return run.job, run.run_id, run.host or "", state_name(run), eta(run), goals(run), heartbeat(run)


def _joined(cells: Iterable[str], widths: Iterable[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


# --- updates as hosts answer -----------------------------------------------------------------------------


def show(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """Show the runs as their hosts answer, each run once; return the last overview."""
    return (_redrawn if terminal.is_interactive else _appended)(terminal, overviews)


def _redrawn(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """Redraw one table as hosts answer. Print it once if all of them answer at once."""
    last: Overview | None = None
    with ExitStack() as stack:
        redraw: Callable[[Any], None] | None = None
        for last in overviews:
            if last.waiting_for and redraw is None:
                redraw = stack.enter_context(terminal.redrawn())
            if redraw is not None and last.runs:
                redraw(_view(last, terminal.masked, with_errors=False))  # the command shows the errors at its end
    if last is not None and last.runs and redraw is None:
        terminal.show(RunTable(last.runs, terminal.masked))
    return last


def _appended(terminal: Terminal, overviews: Iterable[Overview]) -> Overview | None:
    """Write the runs of each host when it answers, without waiting for the other hosts."""
    last: Overview | None = None
    shown: set[tuple[str, str]] = set()
    for last in overviews:
        new = [run for run in last.runs if (run.job, run.run_id) not in shown]
        if new:
            lines = RunTable(new, terminal.masked).lines(with_header=not shown)
            terminal.show(Text("\n").join(lines), soft_wrap=True)  # at once, because each call takes a while
        shown |= {(run.job, run.run_id) for run in new}
    return last


def watch(terminal: Terminal, overviews: Iterable[Overview]) -> Sequence[RunReport]:
    """Redraw the table on a terminal, or write each change as a line into a pipe; return the last reports."""
    runs: Sequence[RunReport] = ()
    if not terminal.is_interactive:
        for overview, lines in changes(overviews):
            runs = overview.runs
            for text in lines:
                terminal.say(text)
        return runs
    with terminal.redrawn() as redraw:
        for overview in overviews:
            runs = overview.runs
            redraw(_view(overview, terminal.masked))
    return runs


def _view(overview: Overview, masked: Masked, with_errors: bool = True) -> Group:
    """Return the table and, below it, the hosts that failed or have not answered yet."""
    from rich.console import Group

    parts: list[Any] = [RunTable(overview.runs, masked)] if overview.runs else []
    for host in overview.hosts:
        if host.error and with_errors:
            text = f"{host.error.message}; its runs are shown as last seen, and keep running"
            parts.append(Text(clean(masked(text)), style="yellow"))
    if overview.waiting_for:
        parts.append(Text(f"waiting for {', '.join(overview.waiting_for)}", style="dim"))
    return Group(*parts)
