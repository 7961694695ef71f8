"""The table of runs that `status`, `runs` and `watch` show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.box.reports import RunReport
from orchestrator.commands.overview import Overview
from orchestrator.text import clean
from orchestrator.ui.run_text import beat_age, eta, goals, standing, style_of, word

# The least widths keep rows that are shown one after the other, as their hosts answer, in line.
COLUMNS = (("JOB", 8), ("RUN", 20), ("HOST", 8), ("STATE", 11))


def view(seen: Overview, masked: Callable[[str], str], with_errors: bool = True) -> Group:
    """The table, and below it what keeps it from being true now: hosts that have yet to answer, or that failed."""
    lines = [
        Text(clean(masked(f"{host.error.message}: its runs are shown as last heard of, and go on")), style="yellow")
        for host in seen.hosts
        if host.error and with_errors
    ]
    if seen.waiting_for:
        lines.append(Text(f"waiting for {', '.join(seen.waiting_for)}", style="dim"))
    return Group(table_of(seen.runs, masked), *lines)


def table_of(runs: Sequence[RunReport], masked: Callable[[str], str], with_header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=with_header)
    for name, width in COLUMNS:
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("STANDING", overflow="ellipsis", no_wrap=True)
    for name in ("ETA", "GOALS", "BEAT"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        cells = (run.job, run.run_id, run.host or "", word(run), standing(run), eta(run), goals(run), beat_age(run))
        # Text, never str: rich reads a str as markup, and "[/x]" from a box would be an error.
        row = [Text(clean(masked(cell))) for cell in cells]
        row[3].stylize(style_of(run))
        table.add_row(*row)
    return table
