"""Show the logs of several runs as they grow, each line with the run that wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.box.retry import Waiting
from orchestrator.commands.watch import LogBytes
from orchestrator.errors import Interrupted
from orchestrator.text import counted
from orchestrator.ui.folded_log import FoldedLog
from orchestrator.ui.run_text import sentence_of, settings_of, state_name

if TYPE_CHECKING:
    from orchestrator.commands.follow_several import OfRun
    from orchestrator.commands.selection import Target
    from orchestrator.ui.renderer import Renderer
    from remote.contract.run_report import RunReport

STYLES = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")
MAX_LABEL = 40  # characters


@dataclass
class _Followed:
    """One of the runs."""

    style: str
    log: FoldedLog = field(default_factory=FoldedLog)
    report: RunReport | None = None

    @property
    def label(self) -> str:
        """The name of the run, before each of its lines."""
        return label_of(self.report) if self.report else ""


def label_of(run: RunReport) -> str:
    """Return the settings of a run if it is one of a group, else its job and the end of its id."""
    label = settings_of(run) or f"{run.job} {run.run_id[-4:]}"
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 10]}... {run.run_id[-4:]}"


def show(screen: Renderer, events: Iterable[OfRun], names: str, known: Iterable[RunReport]) -> list[RunReport]:
    """Show the logs as they grow, and each change of a run's state; return the last reports.

    Args:
        screen: Where they are shown.
        events: The pieces of the logs, reports of the runs, and lost connections.
        names: What the user wrote.
        known: The runs as they are known before they are followed: the labels have the width of the longest.

    Raises:
        Interrupted: The user pressed Ctrl-C.
    """
    runs: dict[Target, _Followed] = {}
    width = max(map(len, map(label_of, known)), default=0)
    try:
        for each in events:
            run = runs.setdefault(each.target, _Followed(STYLES[len(runs) % len(STYLES)]))
            event = each.event
            if isinstance(event, Waiting):
                screen.lost(event)
            elif isinstance(event, LogBytes):
                screen.log_of(run.report, event, run.log, run.label.ljust(width), run.style)
            else:
                before, run.report = run.report, event.report
                is_change = state_name(before) != state_name(run.report) if before else not run.report.has_ended
                if is_change:
                    screen.terminal.note(f"{run.label}: {sentence_of(run.report)}")
    except KeyboardInterrupt:
        count = counted(len(runs), "run")
        raise Interrupted(f"stopped following {count}; they keep running", f"to continue: orch tail {names}") from None
    for run in runs.values():
        screen.terminal.log_lines(run.label.ljust(width), run.style, run.log.finish())
    reports = [run.report for run in runs.values() if run.report is not None]
    return sorted(reports, key=lambda report: (report.job, report.run_id))
