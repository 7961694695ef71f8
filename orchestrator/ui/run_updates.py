"""Show runs while their hosts answer: one table that is redrawn on a terminal, lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.text import Text

from orchestrator.commands.run_names import short_ids
from orchestrator.text import counted
from orchestrator.ui.renderer import changes
from orchestrator.ui.run_table import Look, RunTable, pipe_lines

if TYPE_CHECKING:
    from rich.console import Group

    from orchestrator.commands.overview import Overview
    from orchestrator.ui.terminal import Terminal
    from remote.contract.run_report import RunReport

LINES_BELOW = 3  # lines of a terminal that are kept for what is below the table of `watch`


def show(terminal: Terminal, overviews: Iterable[Overview], utc: bool, most: int | None) -> Overview | None:
    """Show the runs as their hosts answer, each run once; return the last overview.

    Args:
        terminal: Where to show them.
        overviews: What is known as the hosts answer.
        utc: Whether times are in UTC.
        most: How many runs to show on a terminal, the newest; None for all.
    """
    if terminal.is_interactive:
        return _redrawn(terminal, overviews, utc, most)
    return _appended(terminal, overviews, utc)


def _redrawn(terminal: Terminal, overviews: Iterable[Overview], utc: bool, most: int | None) -> Overview | None:
    """Redraw one table as hosts answer. Print it once if all of them answer at once."""
    last: Overview | None = None
    with ExitStack() as stack:
        redraw: Callable[[Any], None] | None = None
        for last in overviews:
            if last.waiting_for and redraw is None:
                redraw = stack.enter_context(terminal.redrawn())
            if redraw is not None and last.runs:
                table = RunTable(newest(last.runs, most), _look(terminal, last, utc))
                redraw(_with_hosts(table, last, terminal, with_errors=False))  # the command shows the errors at its end
    if last is not None and last.runs and redraw is None:
        terminal.show(RunTable(newest(last.runs, most), _look(terminal, last, utc)))
    left_out = len(last.runs) - len(newest(last.runs, most)) if last is not None else 0
    if left_out:
        terminal.note(f"{counted(left_out, 'older run')} not shown; to show all: orch runs --all")
    return last


def newest(runs: Sequence[RunReport], most: int | None) -> Sequence[RunReport]:
    """Return the newest of the runs and all that have not ended, in the order of `runs`."""
    if most is None or len(runs) <= most:
        return runs
    ids = sorted((run.run_id for run in runs), reverse=True)
    return [run for run in runs if run.run_id >= ids[most - 1] or not run.has_ended]


def _appended(terminal: Terminal, overviews: Iterable[Overview], utc: bool) -> Overview | None:
    """Write the runs of each host when it answers, without waiting for the other hosts."""
    last: Overview | None = None
    shown: set[tuple[str, str]] = set()
    for last in overviews:
        new = [run for run in last.runs if (run.job, run.run_id) not in shown]
        if new:
            lines = pipe_lines(new, _look(terminal, last, utc), with_header=not shown)
            terminal.write("\n".join(lines))  # at once, and without rich, which takes long for a thousand lines
        shown |= {(run.job, run.run_id) for run in new}
    return last


def watch(terminal: Terminal, overviews: Iterable[Overview], utc: bool) -> Sequence[RunReport]:
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
            look = _look(terminal, overview, utc)
            fitting = _fitting(runs, look, terminal)
            left_out = len(runs) - len(fitting)
            redraw(_with_hosts(RunTable(fitting, look), overview, terminal, left_out=left_out))
    return runs


def _fitting(runs: Sequence[RunReport], look: Look, terminal: Terminal) -> Sequence[RunReport]:
    """Return the runs that fit on the terminal, in their order. Those that have ended make way, the oldest first."""
    room = terminal.height - LINES_BELOW
    kept = list(runs)
    while len(kept) > 1 and (lines := terminal.lines_of(RunTable(kept, look))) > room:
        worst_first = sorted(kept, key=lambda run: (not run.has_ended, run.run_id))
        dropped = worst_first[: max(1, len(kept) * (lines - room) // (2 * lines))]  # half, as rows differ in height
        kept = [run for run in kept if run not in dropped]
    return kept


def _look(terminal: Terminal, overview: Overview, utc: bool) -> Look:
    ids = short_ids(overview.known) if terminal.is_interactive else {}
    return Look(time.time(), terminal.masked, ids, overview.jobs, utc, terminal.has_marks)


def _with_hosts(
    table: RunTable, overview: Overview, terminal: Terminal, with_errors: bool = True, left_out: int = 0
) -> Group:
    """Return the table and, below it, the hosts that failed or have not answered yet."""
    from rich.console import Group

    parts: list[Any] = [table] if overview.runs else []
    if left_out:
        parts.append(Text(f"{left_out} more runs do not fit here; to show all: orch runs --all", style="dim"))
    for host in overview.hosts:
        if host.error and with_errors:
            text = f"{host.error.message}; its runs are shown as last seen, and keep running"
            parts.append(Text(terminal.safe(text), style="yellow"))
    if overview.waiting_for:
        parts.append(Text(f"waiting for {', '.join(overview.waiting_for)}", style="dim"))
    return Group(*parts)
