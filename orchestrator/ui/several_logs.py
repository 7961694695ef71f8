"""Show the logs of several runs as they grow, each line with the run that wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.box.retry import Waiting
from orchestrator.commands.watch import LogBytes
from orchestrator.errors import Interrupted
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
        """Its settings if it is one of a group, else its job and the end of its id."""
        if self.report is None:
            return ""
        label = settings_of(self.report) or f"{self.report.job} {self.report.run_id[-4:]}"
        return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 10]}... {self.report.run_id[-4:]}"


def show(screen: Renderer, events: Iterable[OfRun], names: str, is_to_the_end: bool) -> list[RunReport]:
    """Show the logs as they grow, and each change of a run's state; return the last reports.

    Args:
        screen: Where they are shown.
        events: The pieces of the logs, reports of the runs, and lost connections.
        names: What the user wrote.
        is_to_the_end: Whether the logs are followed to the end of all runs. If so, `ended` shows the ends.

    Raises:
        Interrupted: The user pressed Ctrl-C.
    """
    runs: dict[Target, _Followed] = {}
    try:
        for each in events:
            run = runs.setdefault(each.target, _Followed(STYLES[len(runs) % len(STYLES)]))
            width = max(len(other.label) for other in runs.values())
            event = each.event
            if isinstance(event, Waiting):
                screen.lost(event)
            elif isinstance(event, LogBytes):
                screen.log_of(run.report, event, run.log, run.label.ljust(width), run.style)
            else:
                is_change = run.report is None or state_name(run.report) != state_name(event.report)
                run.report = event.report
                if is_change and not (is_to_the_end and run.report.has_ended and len(runs) == 1):
                    screen.terminal.note(f"{run.label}: {sentence_of(run.report)}")
    except KeyboardInterrupt:
        count = f"{len(runs)} runs" if len(runs) != 1 else "1 run"
        raise Interrupted(f"stopped following {count}; they keep running", f"to continue: orch tail {names}") from None
    width = max((len(run.label) for run in runs.values()), default=0)
    for run in runs.values():
        screen.terminal.log_lines(run.label.ljust(width), run.style, run.log.finish())
    reports = [run.report for run in runs.values() if run.report is not None]
    return sorted(reports, key=lambda report: (report.job, report.run_id))
