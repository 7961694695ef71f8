"""The interface through which commands show their results. `Screen` shows them as text, `Documents` as JSON.

Both write notes and errors to stderr.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean, counted
from orchestrator.ui.run_text import bars, full_line, line, names_of, sentence_of, state_name
from orchestrator.ui.terminal import Terminal

if TYPE_CHECKING:
    from orchestrator.box.mirror import Mirrored, NotMirrored
    from orchestrator.box.retry import Waiting
    from orchestrator.checks.check import Checked
    from orchestrator.commands.launch import Launched
    from orchestrator.commands.overview import Overview
    from orchestrator.commands.push import Pushed
    from orchestrator.commands.shipping import Shipped
    from orchestrator.commands.stop import Changed
    from orchestrator.commands.sync import Result
    from orchestrator.commands.wait import Waited
    from orchestrator.commands.watch import Event, LogBytes, RunUpdate
    from orchestrator.ui.folded_log import FoldedLog
    from orchestrator.ui.view import View
    from remote.contract.run_report import RunReport


class Renderer(ABC):
    """Shows results, with one method for each command.

    If a result includes errors of hosts, its method shows the result and all errors but the first, then raises the
    first.
    """

    def __init__(self) -> None:
        self.terminal = Terminal()

    # --- different for text and JSON -----------------------------------------------------------------

    @abstractmethod
    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        """Show what `orch launch` did.

        Args:
            result: Its checks, rehearsals and notes.
            runs: Its runs as they are now.
            waits: Whether the command waits for the runs to end, and then shows how they ended.
        """

    @abstractmethod
    def warned(self, warnings: Sequence[Checked]) -> None:
        """Show the warnings about the code, before it is sent. They are also in the result of the command."""

    @abstractmethod
    def checked(self, result: Launched) -> None:
        """Show what `orch check` found."""

    @abstractmethod
    def examined(self, checks: Sequence[Checked]) -> None:
        """Show what `orch doctor` found."""

    @abstractmethod
    def shipped(self, results: Sequence[Shipped]) -> None:
        """Show which hosts `orch sync --code` has sent the code to."""

    @abstractmethod
    def pushed(self, result: Pushed) -> None:
        """Show what `orch push` sent."""

    @abstractmethod
    def waited(self, result: Waited) -> None:
        """Show the result of `orch wait`."""

    @abstractmethod
    def present(self, view: View) -> None:
        """Show a result that itself knows how it is shown as text and as JSON."""

    @abstractmethod
    def ended(self, runs: Sequence[RunReport]) -> None:
        """Show how runs ended."""

    @abstractmethod
    def watch(self, overviews: Iterable[Overview], utc: bool = False) -> Sequence[RunReport]:
        """Show each overview until there are no more, with times in local time or UTC; return the last one's runs."""

    @abstractmethod
    def live(self, text: str, is_long: bool = False, has_time: bool = True) -> None:
        """Tell a waiting user what is being done. `text` replaces the previous one.

        Args:
            text: One line.
            is_long: Whether the wait may be long: then it is also written now and then if there is no terminal.
            has_time: Whether to add how long it has been the text.
        """

    @abstractmethod
    def leave_out_seen(self, directory: Path) -> None:
        """Do not repeat notices of the project in `directory` that were shown before, if the output is for a person."""

    @abstractmethod
    def _overview(self, overviews: Iterable[Overview], utc: bool, most: int | None) -> Overview | None:
        """Show the runs of each host as it answers; return the last overview. The arguments are those of `overview`."""

    @abstractmethod
    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch stop` or `orch restart` did; `kind` is "stop" or "restart"."""

    @abstractmethod
    def _copied(self, item: Mirrored) -> None:
        """Show one run that `orch sync` has copied."""

    @abstractmethod
    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        """Show the complete result of `orch sync`, after a call of `_copied` for each copied run."""

    @abstractmethod
    def _log(self, piece: LogBytes) -> None:
        """Show the next piece of a log."""

    @abstractmethod
    def log_of(self, run: RunReport | None, piece: LogBytes, log: FoldedLog, label: str, style: str) -> None:
        """Show the next piece of the log of one of several runs.

        Args:
            run: The run, if it is known by now.
            piece: The piece.
            log: What was shown of this log.
            label: The name of the run, for each line.
            style: The style of `label`.
        """

    @abstractmethod
    def _failed(self, error: OrchError) -> None:
        """Show the error that ends the command on stdout, if it belongs there. `error` shows it on stderr."""

    # --- the same for text and JSON ------------------------------------------------------------------

    def overview(self, overviews: Iterable[Overview], utc: bool = False, most: int | None = None) -> None:
        """Show the runs of `orch status` or `orch runs`, as the hosts answer.

        Args:
            overviews: What is known as the hosts answer.
            utc: Whether times are in UTC instead of local time.
            most: How many runs to show to a person, the newest; None for all. Pipes and documents have all.
        """
        last = self._overview(overviews, utc, most)
        if last is None:
            return
        for note in (*(note for host in last.hosts for note in host.notes), *last.notes):
            self.terminal.note(note)
        self.raise_first([error for host in last.hosts for error in host.errors])

    def stopped(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch stop` did; `runs` are the runs of `change` as they are now."""
        self._notes(change)
        self._changed("stop", change, runs)
        self.raise_first(change.errors)

    def restarted(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch restart` did; `runs` are the runs of `change` as they are now."""
        self._notes(change)
        self._changed("restart", change, runs)
        self.raise_first(change.errors)

    def synced(self, results: Iterable[Result]) -> None:
        """Show each run as soon as `orch sync` has copied it, then the notes and errors."""
        from orchestrator.box.mirror import Mirrored, NotMirrored

        copied: list[Mirrored] = []
        failed: list[NotMirrored] = []
        notes: list[str] = []
        for item in results:
            if isinstance(item, Mirrored):
                self._copied(item)
                copied.append(item)
            elif isinstance(item, NotMirrored):
                failed.append(item)
            else:
                notes.append(item.text)
        self._synced(copied, failed, notes)
        for note in notes:
            self.terminal.note(note)
        self.raise_first([item.error for item in failed])

    def follow(self, events: Iterable[Event], name: str, is_to_the_end: bool) -> RunReport | None:
        """Show a log as it grows, and each change of the run's state.

        Args:
            events: The pieces of the log, reports of the run, and lost connections.
            name: The job or run id that the user gave.
            is_to_the_end: Whether the log is followed to the end of the run. If so, `ended` shows the end.

        Returns:
            The last report, or None if there was none.

        Raises:
            Interrupted: The user pressed Ctrl-C. The hint is the command that continues at the same byte.
        """
        from orchestrator.box.retry import Waiting
        from orchestrator.commands.watch import LogBytes

        last: RunReport | None = None
        next_byte = 0
        try:
            for event in events:
                if isinstance(event, LogBytes):
                    self._log(event)
                    next_byte = event.offset + len(event.data)
                elif isinstance(event, Waiting):
                    self.lost(event)
                else:
                    is_change = last is None or state_name(last) != state_name(event.report)
                    last = event.report
                    if is_change and not (is_to_the_end and last.has_ended):
                        self.terminal.note(full_line(last))
                    self.live(line(last), has_time=False)
        except KeyboardInterrupt:
            self.terminal.end_log()
            hint = f"to continue: orch tail {name} --from {next_byte}"
            stopped = Interrupted(f"stopped following {name}; it keeps running", hint)
            raise stopped.concerning([last.run_id] if last else []) from None
        self.terminal.end_log()
        self.terminal.quiet()
        return last

    def wait(
        self, events: Iterable[RunUpdate | Waiting], runs: Sequence[RunReport], meanwhile: str = "running"
    ) -> list[RunReport]:
        """Show the progress of runs until they have ended; return their last reports.

        Args:
            events: Reports of the runs, and lost connections.
            runs: The runs as first reported.
            meanwhile: What the runs do while the user waits, for the message after Ctrl-C.

        Raises:
            Interrupted: The user pressed Ctrl-C.
        """
        from orchestrator.box.retry import Waiting

        latest = {(run.job, run.run_id): run for run in runs}
        names = names_of(runs)
        try:
            for event in events:
                if isinstance(event, Waiting):
                    self.lost(event)
                    continue
                run, before = event.report, latest[event.report.job, event.report.run_id]
                latest[run.job, run.run_id] = run
                others = [other for other in latest.values() if not other.has_ended]
                # The command shows how the last run ended when the wait is over.
                if state_name(run) != state_name(before) and (others or not run.has_ended):
                    self.changed_meanwhile(run)
                self.live(bars(others))
        except KeyboardInterrupt:
            hint = f"orch status {names}, orch tail {names}"
            stopped = Interrupted(f"stopped waiting for {names}; still {meanwhile}", hint)
            raise stopped.concerning(run.run_id for run in latest.values() if not run.has_ended) from None
        self.terminal.quiet()
        return list(latest.values())

    def changed_meanwhile(self, run: RunReport) -> None:
        """Show the new state of a run while others are waited for."""
        self.terminal.note(f"{run.job} {run.run_id}: {sentence_of(run)}")

    def until(self, events: Iterable[RunUpdate | Waiting], runs: int) -> None:
        """Show on the last line which of the runs was reported last, and note each lost connection once.

        Args:
            events: Reports of runs, and lost connections.
            runs: How many runs there are.

        Raises:
            Interrupted: The user pressed Ctrl-C.
        """
        from orchestrator.box.retry import Waiting

        what = counted(runs, "run")
        lost: set[str] = set()
        try:
            self.live(f"waiting for {what}", is_long=True)
            for event in events:
                if not isinstance(event, Waiting):
                    lost.discard(str(event.report.host))
                    self.live(f"waiting for {what}, last change: {line(event.report)}")
                elif event.host not in lost:
                    lost.add(event.host)
                    self.lost(event)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped waiting for {what}; still running", "orch status") from None
        self.terminal.quiet()

    def error(self, error: OrchError) -> None:
        """Show the error that ends the command. Ignores errors of the streams, which may be what failed."""
        with suppress(OSError):
            self.terminal.quiet()
        with suppress(OSError):
            self._failed(error)
        with suppress(OSError):
            self.terminal.problem(error)

    def _notes(self, change: Changed) -> None:
        for note in change.notes:
            self.terminal.note(note)

    def lost(self, event: Waiting) -> None:
        """Say that a connection was lost, and when it is tried again."""
        self.terminal.note(
            f"{clean(event.error.message)}; trying again in {event.delay:.0f} s, the run is not affected"
        )

    def raise_first(self, errors: Sequence[OrchError]) -> None:
        """Show all errors but the first, and raise that."""
        for error in errors[1:]:
            self.terminal.problem(error)
        if errors:
            raise errors[0]


def changes(overviews: Iterable[Overview]) -> Iterator[tuple[Overview, list[str]]]:
    """Yield each overview with one line for each run whose state, and each host whose error, has changed."""
    before: dict[str, str] = {}
    for overview in overviews:
        errors = {host.host: clean(host.error.message) for host in overview.hosts if host.error}
        lines = {**{run.run_id: full_line(run) for run in overview.runs}, **errors}
        now = {**{run.run_id: state_name(run) for run in overview.runs}, **errors}
        yield overview, [lines[key] for key in now if now[key] != before.get(key)]
        before = now
