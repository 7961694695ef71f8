"""The interface through which commands show their results. `Screen` shows them as text, `Documents` as JSON.

Both write notes and errors to stderr.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean
from orchestrator.ui.run_text import line, sentence_of, state_name
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
    from orchestrator.commands.watch import Event, LogBytes, RunUpdate
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
    def ended(self, runs: Sequence[RunReport]) -> None:
        """Show how runs ended."""

    @abstractmethod
    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """Show each overview until there are no more; return the runs of the last one."""

    @abstractmethod
    def live(self, text: str, is_long: bool = False) -> None:
        """Tell a waiting user what is being done. `text` replaces the previous one.

        Args:
            text: One line.
            is_long: Whether the wait may be long: then it is also written now and then if there is no terminal.
        """

    @abstractmethod
    def _overview(self, overviews: Iterable[Overview]) -> Overview | None:
        """Show the runs of each host as it answers; return the last overview."""

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
    def _failed(self, error: OrchError) -> None:
        """Show the error that ends the command on stdout, if it belongs there. `error` shows it on stderr."""

    # --- the same for text and JSON ------------------------------------------------------------------

    def overview(self, overviews: Iterable[Overview]) -> None:
        """Show the runs of `orch status` or `orch runs`, as the hosts answer."""
        last = self._overview(overviews)
        if last is None:
            return
        for note in (*(note for host in last.hosts for note in host.notes), *last.notes):
            self.terminal.note(note)
        self._raise_first([error for host in last.hosts for error in host.errors])

    def stopped(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch stop` did; `runs` are the runs of `change` as they are now."""
        self._changed("stop", change, runs)
        self._raise_first(change.errors)

    def restarted(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch restart` did; `runs` are the runs of `change` as they are now."""
        self._changed("restart", change, runs)
        self._raise_first(change.errors)

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
        self._raise_first([item.error for item in failed])

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
                    self._waiting(event)
                else:
                    is_change = last is None or state_name(last) != state_name(event.report)
                    last = event.report
                    if is_change and not (is_to_the_end and last.has_ended):
                        self.terminal.note(line(last))
                    self.live(line(last))
        except KeyboardInterrupt:
            self.terminal.end_log()
            hint = f"to continue: orch tail {name} --from {next_byte}"
            raise Interrupted(f"stopped following {name}; it keeps running", hint) from None
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
        names = " ".join(run.job for run in runs)
        try:
            for event in events:
                if isinstance(event, Waiting):
                    self._waiting(event)
                    continue
                run, before = event.report, latest[event.report.job, event.report.run_id]
                latest[run.job, run.run_id] = run
                others = [other for other in latest.values() if not other.has_ended]
                # The command shows how the last run ended when the wait is over.
                if state_name(run) != state_name(before) and (others or not run.has_ended):
                    self.terminal.note(f"{run.job} {run.run_id}: {sentence_of(run)}")
                self.live("   ".join(line(other) for other in others))
        except KeyboardInterrupt:
            hint = f"orch status {names}, orch tail {runs[0].job}"
            raise Interrupted(f"stopped waiting for {names}; still {meanwhile}", hint) from None
        self.terminal.quiet()
        return list(latest.values())

    def error(self, error: OrchError) -> None:
        """Show the error that ends the command. Ignores errors of the streams, which may be what failed."""
        with suppress(OSError):
            self.terminal.quiet()
        with suppress(OSError):
            self._failed(error)
        with suppress(OSError):
            self.terminal.problem(error)

    def _waiting(self, event: Waiting) -> None:
        self.terminal.note(
            f"{clean(event.error.message)}; trying again in {event.delay:.0f} s, the run is not affected"
        )

    def _raise_first(self, errors: Sequence[OrchError]) -> None:
        for error in errors[1:]:
            self.terminal.problem(error)
        if errors:
            raise errors[0]


def changes(overviews: Iterable[Overview]) -> Iterator[tuple[Overview, list[str]]]:
    """Yield each overview with one line for each run whose state, and each host whose error, has changed."""
    before: dict[str, str] = {}
    for overview in overviews:
        errors = {host.host: clean(host.error.message) for host in overview.hosts if host.error}
        lines = {**{run.run_id: line(run) for run in overview.runs}, **errors}
        now = {**{run.run_id: state_name(run) for run in overview.runs}, **errors}
        yield overview, [lines[key] for key in now if now[key] != before.get(key)]
        before = now
