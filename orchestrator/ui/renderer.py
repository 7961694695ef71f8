"""What commands show, whatever its form: `Screen` shows it as text, `Documents` as JSON.

Notes and errors go to stderr in both forms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.box.retry import Waiting
from orchestrator.checks.check import Checked
from orchestrator.commands.launch import Launched
from orchestrator.commands.overview import Overview
from orchestrator.commands.shipping import Shipped
from orchestrator.commands.stop import Changed
from orchestrator.commands.sync import Result
from orchestrator.commands.watch import Event, LogBytes, RunUpdate
from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean
from orchestrator.ui.run_text import line, sentence_of, word
from orchestrator.ui.terminal import Terminal
from remote.contract.run_report import RunReport


class Renderer(ABC):
    """One method for the result of each command. Those that meet errors of hosts raise the first when all is shown."""

    def __init__(self) -> None:
        self.terminal = Terminal()

    # --- results: the form decides -------------------------------------------------------------------

    @abstractmethod
    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        """Show what `orch launch` did.

        Args:
            result: Its checks, rehearsals and notes.
            runs: Its runs as they are now.
            waits: Whether the command waits for the runs to end, and then shows how they ended.
        """

    @abstractmethod
    def checked(self, result: Launched) -> None:
        """Show what `orch check` found."""

    @abstractmethod
    def examined(self, checks: Sequence[Checked]) -> None:
        """Show what `orch doctor` found."""

    @abstractmethod
    def shipped(self, results: Sequence[Shipped]) -> None:
        """Show where `orch sync --code` has put the code."""

    @abstractmethod
    def ended(self, runs: Sequence[RunReport]) -> None:
        """Show how runs ended that were waited for."""

    @abstractmethod
    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """Show runs until the last overview; return them as they were in it."""

    @abstractmethod
    def live(self, text: str) -> None:
        """Say what is going on, for a person who waits."""

    @abstractmethod
    def _overview(self, overviews: Iterable[Overview]) -> Overview | None:
        """Show the runs, as hosts answer; return the last overview."""

    @abstractmethod
    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        """Show what `orch stop` or `orch restart`, which is `kind`, did."""

    @abstractmethod
    def _copied(self, item: Mirrored) -> None:
        """One run that `orch sync` has copied."""

    @abstractmethod
    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        """All that `orch sync` did, after the last `_copied`."""

    @abstractmethod
    def _log(self, piece: LogBytes) -> None:
        """The next piece of a log."""

    @abstractmethod
    def _failed(self, error: OrchError) -> None:
        """The error that ends the command, on stdout where that belongs to the form."""

    # --- the same in every form ----------------------------------------------------------------------

    def overview(self, overviews: Iterable[Overview]) -> None:
        """Show the runs of `orch status` or `orch runs`, each host's as it answers."""
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
        """Show each run as `orch sync` copies it, and what it could not copy."""
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
        """Show a log as it comes; return the last report. Raise Interrupted on Ctrl-C, with how to continue.

        The end of a run is not said here if the log is followed to it: `ended` says it.
        """
        last: RunReport | None = None
        at = 0
        try:
            for event in events:
                if isinstance(event, LogBytes):
                    self._log(event)
                    at = event.offset + len(event.data)
                elif isinstance(event, Waiting):
                    self._waiting(event)
                else:
                    is_news = last is None or word(last) != word(event.report)
                    last = event.report
                    if is_news and not (is_to_the_end and last.has_ended):
                        self.terminal.note(line(last))
                    self.live(line(last))
        except KeyboardInterrupt:
            raise Interrupted(f"stopped following {name}; it keeps running", f"orch tail {name} --from {at}") from None
        self.terminal.quiet()
        return last

    def wait(
        self, events: Iterable[RunUpdate | Waiting], runs: Sequence[RunReport], meanwhile: str = "running"
    ) -> list[RunReport]:
        """Show how runs progress until they have ended; return them.

        Raise Interrupted on Ctrl-C, which says that they are still `meanwhile`.
        """
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
                # The end of the last one is said by what follows the wait.
                if word(run) != word(before) and (others or not run.has_ended):
                    self.terminal.note(f"{run.job} {run.run_id}: {sentence_of(run)}")
                self.live("   ".join(line(other) for other in others))
        except KeyboardInterrupt:
            hint = f"orch status {names}, orch tail {runs[0].job}"
            raise Interrupted(f"stopped waiting for {names}; still {meanwhile}", hint) from None
        self.terminal.quiet()
        return list(latest.values())

    def error(self, error: OrchError) -> None:
        """The error that ends the command, as far as the streams can still be written: they may be what failed."""
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


def news(overviews: Iterable[Overview]) -> Iterator[tuple[Overview, list[str]]]:
    """Yield each overview with the lines about runs whose state, and hosts whose error, is new in it."""
    before: dict[str, str] = {}
    for seen in overviews:
        errors = {host.host: clean(host.error.message) for host in seen.hosts if host.error}
        lines = {**{run.run_id: line(run) for run in seen.runs}, **errors}
        now = {**{run.run_id: word(run) for run in seen.runs}, **errors}
        yield seen, [lines[key] for key in now if now[key] != before.get(key)]
        before = now
