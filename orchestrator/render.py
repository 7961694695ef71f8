"""Results as text or as versioned JSON: the only writer to the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, OrchError
from orchestrator.mirror import Mirrored
from orchestrator.pipeline import Checked, Launched, Overview, Shipped, Trusted
from orchestrator.records import (
    as_record,
    check_fields,
    check_record,
    error_record,
    launch_record,
    mirrored_record,
)
from orchestrator.rehearsal import Outcome
from orchestrator.reports import RunReport
from orchestrator.snapshot import CodeSnapshot
from orchestrator.watching import Event, LogBytes, Standing, Waiting
from orchestrator.words import (
    LogText,
    beat_age,
    clean,
    eta,
    goals,
    line,
    rehearsed,
    size_text,
    standing,
    word,
)
from remote.goals import sentence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

SCHEMA = 1
WIDE = 200  # columns where the output is no terminal: a line a run, uncut
_STYLES = {"running": "green", "succeeded": "bold green", "failed": "bold red", "stopped": "yellow", "lost": "bold red"}


class Screen:
    """Where results go. With `as_json`, stdout holds JSON documents and nothing else."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._status: Status | None = None
        self._has_result = False
        self._log_text = LogText()

    # --- results -------------------------------------------------------------------------------------

    def launched(self, result: Launched, runs: Sequence[RunReport]) -> None:
        """`runs` are those of `result` as they stand now."""
        if self.as_json:
            self._document("launch", **launch_record(result), runs=[as_record(run) for run in runs])
            return
        self._snapshot(result.snapshot, "shipped" if result.sent else "already there")
        self._checks(checked for checked in result.checks if checked.check.status != "ok")
        self._rehearsals(result.outcomes)
        for run in runs:
            self._say(f"{run.job}  {run.run_id}  on {run.host}: {_facts(run)}", _STYLES.get(word(run), ""))
            if run.attach:
                self._note(f"  its terminal, on the box: {clean(run.attach)}")
        names = " ".join(run.job for run in result.runs)
        self._note(f"orch tail {result.runs[0].job} follows it, orch status shows all, orch sync {names} brings home")

    def initialised(self, path: Path) -> None:
        self._say(f"wrote {path}")
        self._note("put your command into it, then: orch launch train")

    def host_key(self, host: str, kind: str, fingerprint: str) -> None:
        self._say(f"{host} shows the host key {kind} {fingerprint}")
        self._note("compare it with one that you got another way: the console of the instance, or its owner")

    def trusted(self, result: Trusted) -> None:
        if result.file is None:
            self._say(f"not pinned: {result.host} shows {result.fingerprint}")
        else:
            self._say(f"pinned {result.fingerprint} of {result.host} in {result.file}")

    def checked(self, result: Launched) -> None:
        self.quiet()
        if self.as_json:
            self._document("check", **launch_record(result))
        else:
            self._checks(result.checks)
            self._rehearsals(result.outcomes)

    def examined(self, checks: Sequence[Checked]) -> None:
        if self.as_json:
            self._document("doctor", checks=[check_record(checked) for checked in checks])
        else:
            self._checks(checks)

    def shipped(self, results: Sequence[Shipped]) -> None:
        if self.as_json:
            hosts = [{"host": item.host, "tree": item.snapshot.tree, "sent": item.sent} for item in results]
            self._document("sync", code=hosts)
            return
        for item in results:
            self._snapshot(item.snapshot, f"{'shipped to' if item.sent else 'already on'} {item.host}")

    def overview(self, result: Overview) -> None:
        """Where the runs stand. Raises the first error of a host after everything has been shown."""
        errors = [host.error for host in result.hosts if host.error]
        if self.as_json:
            hosts = [{"host": host.host, "error": error_record(host.error)} for host in result.hosts]
            self._document("status", hosts=hosts, runs=[as_record(run) for run in result.runs])
        elif result.runs:
            self._console.print(_table(result.runs))
        elif not errors:
            self._say("no runs yet: orch launch JOB starts one")
        for error in errors[1:]:
            self._note(clean(error.message))
        if errors:
            raise errors[0]

    def stopped(self, runs: Sequence[RunReport]) -> None:
        if self.as_json:
            self._document("stop", runs=[as_record(run) for run in runs])
        else:
            self.verdicts(runs)

    def ended(self, runs: Sequence[RunReport]) -> None:
        """The last word of `launch --wait` and `tail`."""
        if self.as_json:
            self._document("ended", runs=[as_record(run) for run in runs])
        else:
            self.verdicts(runs)

    def verdicts(self, runs: Iterable[RunReport]) -> None:
        """How each run ended, and what each goal says of it."""
        for run in runs:
            self._say(f"{run.job} {run.run_id}: {_facts(run)}", _STYLES.get(word(run), ""))
            if run.metrics is not None and run.goals:
                self._say(f"  {sentence(run.verdict).split(';')[0]}")
                for result in run.verdict:
                    self._say(f"    {clean(result)}")

    def brought_home(self, item: Mirrored) -> None:
        if self.as_json:
            return
        state = "whole" if item.whole else "so far; the run goes on"
        self._say(f"{item.report.job} {item.report.run_id}: {item.files} files, {size_text(item.bytes)}, {state}")
        self._note(f"  {item.directory}")
        for name in item.left_out:
            self._note(f"  left on the box (no plain file): {clean(name)}")

    def synced(self, results: Sequence[Mirrored]) -> None:
        if self.as_json:
            self._document("sync", runs=[{**as_record(item.report), **mirrored_record(item)} for item in results])
        elif not results:
            self._say("everything is home already")

    # --- while something goes on ---------------------------------------------------------------------

    def follow(self, events: Iterable[Event], name: str) -> RunReport | None:
        """Show a log as it comes; the last report. Ctrl-C raises Interrupted, which says how to come back."""
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
                    self._moved(last, event.report)
                    last = event.report
        except KeyboardInterrupt:
            raise Interrupted(f"left {name}, which goes on", f"orch tail {name} --from {at}") from None
        self.quiet()
        return last

    def wait(self, events: Iterable[Standing | Waiting], runs: Sequence[RunReport]) -> list[RunReport]:
        """Show how runs go on until they have ended. Ctrl-C raises Interrupted, which says how to come back."""
        latest = {run.run_id: run for run in runs}
        names = " ".join(run.job for run in runs)
        try:
            for event in events:
                if isinstance(event, Waiting):
                    self._waiting(event)
                    continue
                run = event.report
                if word(run) != word(latest[run.run_id]):
                    self._note(f"{run.job} {run.run_id}: {_facts(run)}")
                latest[run.run_id] = run
                self.live("   ".join(line(run) for run in latest.values() if not run.has_ended))
        except KeyboardInterrupt:
            raise Interrupted(f"left {names}, which goes on", f"orch status {names}, orch tail {names}") from None
        self.quiet()
        return list(latest.values())

    def live(self, text: str) -> None:
        """One line that is kept up to date below everything else; on stderr, and only on a terminal."""
        if self.as_json or not sys.stderr.isatty():
            return
        if self._status is None:
            self._status = self._error_console.status("", spinner="line")
            self._status.start()
        self._status.update(_plain(text))

    def quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def error(self, error: OrchError) -> None:
        self.quiet()
        if self.as_json and not self._has_result:  # a result names the errors that it has met itself
            self._document("error", error=error_record(error))
        style = "yellow" if isinstance(error, Interrupted) else "bold red"
        self._error_console.print(_plain(f"orch: {clean_lines(error.message)}"), style=style, soft_wrap=True)
        if error.hint:
            self._error_console.print(_plain(f"  -> {clean_lines(error.hint)}"), soft_wrap=True)

    # --- pieces --------------------------------------------------------------------------------------

    def _checks(self, checks: Iterable[Checked]) -> None:
        for about, name, status, detail, hint in map(check_fields, checks):
            self._say(f"{status:4}  {about}: {name}: {detail}", {"warn": "yellow", "fail": "bold red"}.get(status, ""))
            if hint:
                self._note(f"      -> {hint}")

    def _rehearsals(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._say(f"rehearsed {outcome.job}: {clean(rehearsed(outcome))}", "yellow" if outcome.reason else "")

    def _snapshot(self, snapshot: CodeSnapshot, what: str) -> None:
        self._note(f"code {snapshot.tree[:12]}: {len(snapshot.files)} files, {size_text(snapshot.size)}, {what}")
        for withheld in snapshot.withheld:
            self._note(f"  not shipped: {clean(withheld.path)} ({clean(withheld.reason)})")
        if snapshot.withheld:
            self._note("  [project] include in jobs.toml names what is to be shipped all the same")

    def _moved(self, before: RunReport | None, now: RunReport) -> None:
        if before is None or word(before) != word(now):
            self._note(line(now))
        self.live(line(now))

    def _waiting(self, event: Waiting) -> None:
        self._note(f"{clean(event.error.message)}; trying again in {event.delay:.0f} s, the run is not affected")

    def _log(self, event: LogBytes) -> None:
        """As it is into a file or a pipe, made harmless on a terminal."""
        if self.as_json:
            self._document(
                "log", offset=event.offset, bytes=len(event.data), text=event.data.decode("utf-8", "replace")
            )
            return
        if self._status is not None:
            self._status.stop()
        sys.stdout.buffer.write(self._log_text.feed(event.data).encode() if sys.stdout.isatty() else event.data)
        sys.stdout.buffer.flush()
        if self._status is not None and event.data.endswith(b"\n"):
            self._status.start()

    def _say(self, text: str, style: str = "") -> None:
        if not self.as_json:
            self._console.print(_plain(text), style=style, soft_wrap=True)

    def _note(self, text: str) -> None:
        """On stderr: what a person wants to know and a pipe does not."""
        self._error_console.print(_plain(text), style="dim", soft_wrap=True)

    def _document(self, kind: str, **facts: Any) -> None:
        print(json.dumps({"schema": SCHEMA, "kind": kind, **facts}), flush=True)
        self._has_result = True

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

    @cached_property
    def _error_console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)


def clean_lines(text: str) -> str:
    """Several lines, each made harmless."""
    return "\n".join(clean(part) for part in text.split("\n"))


def _table(runs: Sequence[RunReport]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("JOB", "RUN", "HOST", "STATE"):
        table.add_column(name, no_wrap=True)
    table.add_column("STANDING", overflow="ellipsis", no_wrap=True)
    for name in ("ETA", "GOALS", "BEAT"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        state = Text(word(run), style=_STYLES.get(word(run), ""))
        table.add_row(run.job, run.run_id, run.host, state, Text(standing(run)), eta(run), goals(run), beat_age(run))
    return table


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # never markup: a log line or a path may hold brackets


def _facts(run: RunReport) -> str:
    return " · ".join(part for part in (word(run), standing(run)) if part)
