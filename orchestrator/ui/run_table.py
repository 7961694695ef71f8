"""The table of runs of `status`, `runs` and `watch`, at every width.

Job, run, host and state are always complete. What is said about the progress gives way first: it moves from the end of
the row to a line below it. Then the other columns do, each with its name. A terminal that is too narrow even for the
first four gets one line for each value. What failed, and why, is below the table.

A pipe gets one line for each run, with nothing cut and nothing left out, and complete run ids: what is kept of it must
not come to mean two runs when there are more of them. Every command accepts both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from orchestrator.text import clean
from orchestrator.ui.row_text import launched, reason, row_text, seen, settings, time_taken
from orchestrator.ui.run_text import eta, goals, heartbeat, state_name, style_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from remote.contract.run_report import RunReport

GAP = "  "
MIN_PROGRESS = 30  # columns; if the terminal has fewer left, progress is below the row
NAMES = ("JOB", "RUN", "HOST", "STATE")
STATE = 3
# The least width of each column in a pipe. It keeps rows aligned that are written one by one, as the hosts answer.
PIPE_WIDTHS = {
    "JOB": 8,
    "RUN": 20,
    "HOST": 8,
    "STATE": 11,
    "LAUNCHED": 20,
    "TIME": 10,
    "ETA": 7,
    "GOALS": 5,
    "HEARTBEAT": 13,
}


@dataclass(frozen=True)
class Look:
    """How to show runs.

    Attributes:
        now: The time, in seconds since the epoch.
        masked: Replaces secrets.
        short_ids: The short id of each run, by job and run id; others are shown with their complete id.
        jobs: The jobs of jobs.toml; None if that is not known.
        utc: Whether times are in UTC.
        has_marks: Whether the terminal can show ✓ and ✗.
    """

    now: float
    masked: Callable[[str], str] = str
    short_ids: Mapping[tuple[str, str], str] = field(default_factory=dict)
    jobs: Collection[str] | None = None
    utc: bool = False
    has_marks: bool = True

    def name(self, run: RunReport) -> str:
        """Return the short id of a run."""
        return self.short_ids.get((run.job, run.run_id), run.run_id)

    def safe(self, text: str) -> str:
        """Return `text` as one line without secrets that is safe to show."""
        return clean(self.masked(text))


class Column(NamedTuple):
    """A column besides the first four. `rank` orders those that stay in the row if not all fit, the first first."""

    name: str
    rank: int
    cell: Callable[[RunReport, Look], str]


COLUMNS = (
    Column("LAUNCHED", 5, lambda run, look: launched(run, look.utc, look.now)),
    Column("TIME", 3, lambda run, look: time_taken(run)),
    Column("ETA", 1, lambda run, look: eta(run)),
    Column("GOALS", 2, lambda run, look: goals(run)),
    Column("HEARTBEAT", 4, lambda run, look: seen(run, look.now) or heartbeat(run)),
    Column("SETTINGS", 6, lambda run, look: settings(run)),
)


class RunTable:
    """A table of runs that rich can lay out."""

    def __init__(self, runs: Sequence[RunReport], look: Look) -> None:
        self._runs, self._look = runs, look
        self._names = [
            [look.safe(cell) for cell in (run.job, look.name(run), run.host or "", state_name(run))] for run in runs
        ]
        self._cells = {column.name: [look.safe(column.cell(run, look)) for run in runs] for column in COLUMNS}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        columns, moved = self._fitting(width)
        widths = [_width(name, column) for name, column in columns]
        progress = [self._progress(number, moved) for number in range(len(self._runs))]
        if _total(widths[: len(NAMES)]) > width:
            yield from self._blocks(progress, width)
        else:
            header = Text(_joined([name for name, _ in columns], widths), style="bold")
            rows = [
                self._row(number, [cells[number] for _, cells in columns], widths) for number in range(len(self._runs))
            ]
            if not any(progress):
                yield header
                yield from rows
            elif width - _total(widths) - len(GAP) >= min(MIN_PROGRESS, _width("PROGRESS", progress)):
                yield _side_by_side(header, rows, progress)
            else:
                yield header
                yield from _with_lines_below(rows, progress)
        yield from self._reasons()

    def _fitting(self, width: int) -> tuple[list[tuple[str, Sequence[str]]], list[str]]:
        """Return the columns that fit into a row, each with its cells, and the names of those that do not."""
        names = [(name, [cells[place] for cells in self._names]) for place, name in enumerate(NAMES)]
        total = _total([_width(name, column) for name, column in names])
        used = {column.name for column in COLUMNS if any(self._cells[column.name])}
        fitting = set()
        for column in sorted(COLUMNS, key=lambda column: column.rank):
            needed = len(GAP) + _width(column.name, self._cells[column.name])
            if column.name in used and total + needed <= width:
                total += needed
                fitting.add(column.name)
        others = [(column.name, self._cells[column.name]) for column in COLUMNS if column.name in fitting]
        return [*names, *others], [column.name for column in COLUMNS if column.name in used - fitting]

    def _progress(self, number: int, moved: Iterable[str]) -> str:
        """Return what the row says about the progress, with the columns that do not fit into the row."""
        run, look = self._runs[number], self._look
        parts = [_removed(run, look), look.safe(row_text(run, look.has_marks))]
        parts += [f"{name.lower()} {self._cells[name][number]}" for name in moved if self._cells[name][number]]
        return " · ".join(filter(None, parts))

    def _row(self, number: int, cells: Sequence[str], widths: Sequence[int]) -> Text:
        """Return one row as a Text. Rich would read a str as markup, and fail on "[/x]" from a box."""
        text = Text(no_wrap=True)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            text.append(GAP if place else "")
            text.append(cell.ljust(width), style_of(self._runs[number]) if place == STATE else "")
        text.rstrip()
        return text

    def _blocks(self, progress: Sequence[str], width: int) -> RenderResult:
        """Yield one line for each value of a run: a name that is longer than a line continues in the next one."""
        indent = len("STATE" + GAP)
        room = max(1, width - indent)
        for number, run in enumerate(self._runs):
            for place, (name, value) in enumerate(zip(NAMES, self._names[number], strict=True)):
                for start in range(0, len(value), room):
                    text = Text((name if start == 0 else "").ljust(indent), style="bold", no_wrap=True)
                    yield text.append(value[start : start + room], style_of(run) if place == STATE else "not bold")
            yield from _below(progress[number])

    def _reasons(self) -> Iterator[Text]:
        for run in self._runs:
            why = self._look.safe(reason(run))
            if why:
                yield Text(f"{run.job} {self._look.name(run)}: {why}", style=style_of(run), overflow="fold")


def pipe_lines(runs: Iterable[RunReport], look: Look, with_header: bool) -> Iterator[str]:
    """Yield one line for each run, for a pipe."""
    rows = [[cell or "-" for cell in _pipe_cells(run, look)] for run in runs]  # every line has the same columns
    least = PIPE_WIDTHS.values()
    widths = [max(width, *(len(cells[place]) for cells in rows)) for place, width in enumerate(least)]
    if with_header:
        yield _joined([*PIPE_WIDTHS, "PROGRESS"], [*widths, 0])
    for cells in rows:
        yield look.safe(_joined(cells, [*widths, 0]))


def _pipe_cells(run: RunReport, look: Look) -> list[str]:
    parts = [_removed(run, look), settings(run), row_text(run, has_marks=False), reason(run)]
    return [
        run.job,
        run.run_id,
        run.host or "",
        state_name(run),
        launched(run, look.utc),
        time_taken(run),
        eta(run),
        goals(run),
        seen(run, look.now) or heartbeat(run),
        " · ".join(filter(None, parts)),
    ]


def _removed(run: RunReport, look: Look) -> str:
    return "" if look.jobs is None or run.job in look.jobs else "job is not in jobs.toml"


def _side_by_side(header: Text, rows: Iterable[Text], progress_of_each: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    table.add_column(header, no_wrap=True)
    table.add_column("PROGRESS")
    for row, progress_text in zip(rows, progress_of_each, strict=True):
        table.add_row(row, Text(progress_text, overflow="fold"))
    return table


def _with_lines_below(rows: Iterable[Text], progress_of_each: Iterable[str]) -> RenderResult:
    for row, progress_text in zip(rows, progress_of_each, strict=True):
        yield row
        yield from _below(progress_text)


def _below(text: str) -> RenderResult:
    if text:
        from rich.padding import Padding

        yield Padding(Text(text, style="dim", overflow="fold"), (0, 0, 0, len(GAP)))


def _width(name: str, cells: Sequence[str]) -> int:
    return max(len(name), *map(len, cells))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _joined(cells: Iterable[str], widths: Iterable[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
