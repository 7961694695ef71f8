"""Results of commands, as text or as versioned JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.box.reports import RunReport
from orchestrator.box.retry import Waiting
from orchestrator.checks.rehearsal import Outcome
from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands.launch import Checked, Launched
from orchestrator.commands.overview import Overview
from orchestrator.commands.shipping import Shipped
from orchestrator.commands.stop import Changed
from orchestrator.commands.trust import Shown, Trusted
from orchestrator.commands.watch import Event, LogBytes, Standing
from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean, shortened, size_text
from orchestrator.ui.documents import (
    as_record,
    check_fields,
    check_record,
    error_record,
    launch_record,
    mirrored_record,
    not_mirrored_record,
    withheld_record,
)
from orchestrator.ui.run_text import line, rehearsed, standing, style_of, word
from orchestrator.ui.terminal import Terminal
from remote.contract.goals import sentence

MOST_NAMED = 20  # files that are not copied, of one run
LONGEST_NAME = 200  # characters of a file's name
MOST_WITHHELD = 20  # files that are named


class Screen(Terminal):
    """The results of commands, each as text or as one document."""

    # --- results -------------------------------------------------------------------------------------

    def launched(self, result: Launched, runs: Sequence[RunReport]) -> None:
        """`runs` are those of `result` as they stand now."""
        if self.as_json:
            self.document("launch", **launch_record(result), runs=[as_record(run) for run in runs])
            return
        self._snapshot(result.snapshot, "shipped" if result.sent else "already there")
        self._checks(checked for checked in result.checks if checked.check.status != "ok")
        self._rehearsals(result.outcomes)
        for note in result.notes:
            self.note(note)
        for run in runs:
            self.say(f"{run.job}  {run.run_id}  on {run.host}: {_facts(run)}", style_of(run))
            if run.attach and not run.has_ended:
                self.note(f"  attach on the box: {shortened(run.attach, LONGEST_NAME)}")
        names = " ".join(run.job for run in result.runs)
        self.note(
            f"orch tail {result.runs[0].job} follows it, orch status shows all, orch sync {names} fetches results"
        )

    def initialised(self, path: Path) -> None:
        self.say(f"wrote {path}")
        self.note("put your command into it, then: orch launch train")

    def host_key(self, host: str, shown: Shown) -> None:
        self.say(f"{host} shows the host key {shown.kind} {shown.fingerprint}")
        if shown.replaces:
            self.say(f"IT HAS CHANGED: on file for {host} is {', '.join(shown.replaces)}")
            self.note("unless the host was set up again, this may be a man-in-the-middle attack")
        self.note("compare it with one that you got another way: the console of the instance, or its owner")

    def trusted(self, result: Trusted) -> None:
        if result.file is None:
            self.say(f"not pinned: {result.host} shows {result.fingerprint}")
        else:
            self.say(f"pinned {result.fingerprint} of {result.host} in {result.file}")
        if result.replaced:
            self.say(f"it replaces {', '.join(result.replaced)}; files that were changed are kept as FILE.old")

    def checked(self, result: Launched) -> None:
        self.quiet()
        if self.as_json:
            self.document("check", **launch_record(result))
        else:
            self._checks(result.checks)
            self._rehearsals(result.outcomes)

    def examined(self, checks: Sequence[Checked]) -> None:
        if self.as_json:
            self.document("doctor", checks=[check_record(checked) for checked in checks])
        else:
            self._checks(checks)

    def shipped(self, results: Sequence[Shipped]) -> None:
        if self.as_json:
            hosts = [
                {"host": item.host, "tree": item.snapshot.tree, "sent": item.sent, **withheld_record(item.snapshot)}
                for item in results
            ]
            self.document("sync", code=hosts)
            return
        for item in results:
            self._snapshot(item.snapshot, f"{'shipped to' if item.sent else 'already on'} {item.host}")

    def overview(self, overviews: Iterable[Overview]) -> None:
        """Show where the runs stand, each host's as it answers. Raise the first error when all is shown."""
        last: Overview | None = None
        if self.as_json:
            *_, last = overviews
            self._status_document(last)
        elif sys.stdout.isatty():
            last = self._redrawn_overview(overviews)
        else:
            shown: set[tuple[str, str]] = set()
            for last in overviews:
                if last.waiting_for:
                    shown |= self._new_rows(last, shown)
            if last is not None and shown:
                self._new_rows(last, shown)
            elif last is not None:
                self._all_rows(last)
        if last is None:
            return
        for note in (*(note for host in last.hosts for note in host.notes), *last.notes):
            self.note(note)
        self._raise_first([error for host in last.hosts for error in host.errors])

    def _redrawn_overview(self, overviews: Iterable[Overview]) -> Overview | None:
        """On a terminal: one table, redrawn as hosts answer. One that is complete at once is only printed."""
        from orchestrator.ui.run_table import view

        last: Overview | None = None
        with ExitStack() as stack:
            redraw: Callable[[Any], None] | None = None
            for last in overviews:
                if last.waiting_for and redraw is None:
                    redraw = stack.enter_context(self.redrawn())
                if redraw is not None and last.runs:
                    redraw(view(last, self.masked, with_errors=False))  # they come below, each once
        if last is not None and (redraw is None or not last.runs):
            self._all_rows(last)
        return last

    def _raise_first(self, errors: Sequence[OrchError]) -> None:
        for error in errors[1:]:
            self.problem(error)
        if errors:
            raise errors[0]

    def _all_rows(self, seen: Overview) -> None:
        if seen.runs:
            from orchestrator.ui.run_table import table_of  # rich takes a while to import

            self.show(table_of(seen.runs, self.masked))
        elif not any(host.error for host in seen.hosts):
            asked = " and ".join(host.host for host in seen.hosts)
            self.say(f"no runs{' on ' + asked if asked else ''} yet: orch launch JOB starts one")

    def _new_rows(self, seen: Overview, shown: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Rows of the runs that were not shown yet: into a pipe, a host's runs are not held back by another host."""
        runs = [run for run in seen.runs if (run.job, run.run_id) not in shown]
        if runs:
            from orchestrator.ui.run_table import table_of

            self.show(table_of(runs, self.masked, with_header=not shown))
        return {(run.job, run.run_id) for run in runs}

    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """The table as it changes, and the runs as they were at the end; elsewhere than on a terminal, each change."""
        if self.as_json or not sys.stdout.isatty():
            return self._watch_lines(overviews)
        from orchestrator.ui.run_table import view

        runs: Sequence[RunReport] = ()
        with self.redrawn() as redraw:
            for seen in overviews:
                runs = seen.runs
                redraw(view(seen, self.masked))
        return runs

    def _watch_lines(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        runs: Sequence[RunReport] = ()
        before: dict[str, str] = {}
        for seen in overviews:
            runs = seen.runs
            texts = {run.run_id: line(run) for run in runs}
            errors = {host.host: clean(host.error.message) for host in seen.hosts if host.error}
            texts.update(errors)
            now = {**{run.run_id: word(run) for run in runs}, **errors}
            news = [key for key in now if now[key] != before.get(key)]
            if news and self.as_json:
                self._status_document(seen)
            for key in news:
                self.say(texts[key])
            before = now
        return runs

    def restarted(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """`runs` are those of `change` as they stand now. Raise the first error of a host when all is shown."""
        self._changed("restart", change, runs)

    def stopped(self, change: Changed, runs: Sequence[RunReport]) -> None:
        """As `restarted`."""
        for run in runs:
            if (run.job, run.run_id) in change.had_ended and not self.as_json:
                self.note(f"{run.job} {run.run_id} had ended before; nothing was stopped")
        self._changed("stop", change, runs, had_ended=[list(pair) for pair in sorted(change.had_ended)])

    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport], **facts: object) -> None:
        if self.as_json and (runs or not change.errors):
            errors = [error_record(error) for error in change.errors]
            self.document(kind, runs=[as_record(run) for run in runs], errors=errors, **facts)
        elif not self.as_json:
            self.verdicts(runs)
        self._raise_first(change.errors)

    def ended(self, runs: Sequence[RunReport]) -> None:
        """The last word of `launch --wait` and `tail`."""
        if self.as_json:
            self.document("ended", runs=[as_record(run) for run in runs])
        else:
            self.verdicts(runs)

    def verdicts(self, runs: Iterable[RunReport]) -> None:
        """How each run ended, and what each goal says of it."""
        for run in runs:
            self.say(f"{run.job} {run.run_id}: {_facts(run)}", style_of(run))
            if run.metrics is not None and run.goals:
                self.say(f"  {sentence(run.verdict).split(';')[0]}")
                for result in run.verdict:
                    self.say(f"    {clean(result)}")

    def copied(self, item: Mirrored) -> None:
        """One run that `sync` has copied."""
        if self.as_json:
            return
        state = "complete" if item.complete else "copied so far; still running"
        self.say(f"{item.report.job} {item.report.run_id}: {item.files} files, {size_text(item.bytes)}, {state}")
        self.note(f"  {item.directory}")
        for name, reason in item.left_out[:MOST_NAMED]:
            self.note(f"  not copied: {shortened(name, LONGEST_NAME)} ({reason})")
        if len(item.left_out) > MOST_NAMED:
            self.note(f"  not copied: {len(item.left_out) - MOST_NAMED} more")

    def synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        """The end of `sync`. Raise the first of its errors when all have been shown."""
        if self.as_json:
            runs = [{**as_record(item.report), **mirrored_record(item)} for item in copied]
            self.document("sync", runs=runs, errors=[not_mirrored_record(item) for item in failed], notes=list(notes))
        elif not copied and not failed:
            self.say("nothing new to copy")
        for note in notes:
            self.note(note)
        self._raise_first([item.error for item in failed])

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
            raise Interrupted(f"stopped following {name}: still running", f"orch tail {name} --from {at}") from None
        self.quiet()
        return last

    def wait(
        self, events: Iterable[Standing | Waiting], runs: Sequence[RunReport], meanwhile: str = "running"
    ) -> list[RunReport]:
        """Show how runs go on until they have ended.

        Ctrl-C raises Interrupted, which says what they are `meanwhile`, and how to come back.
        """
        latest = {(run.job, run.run_id): run for run in runs}
        names = " ".join(run.job for run in runs)
        try:
            for event in events:
                if isinstance(event, Waiting):
                    self._waiting(event)
                    continue
                run = event.report
                if word(run) != word(latest[run.job, run.run_id]):
                    self.note(f"{run.job} {run.run_id}: {_facts(run)}")
                latest[run.job, run.run_id] = run
                self.live("   ".join(line(run) for run in latest.values() if not run.has_ended))
        except KeyboardInterrupt:
            hint = f"orch status {names}, orch tail {names}"
            raise Interrupted(f"stopped waiting for {names}: still {meanwhile}", hint) from None
        self.quiet()
        return list(latest.values())

    # --- pieces --------------------------------------------------------------------------------------

    def _checks(self, checks: Iterable[Checked]) -> None:
        for about, name, status, detail, hint in map(check_fields, checks):
            self.say(f"{status:4}  {about}: {name}: {detail}", {"warn": "yellow", "fail": "bold red"}.get(status, ""))
            if hint:
                self.note(f"      -> {hint}")

    def _rehearsals(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.say(f"rehearsed {outcome.job}: {clean(rehearsed(outcome))}", "yellow" if outcome.reason else "")

    def _status_document(self, result: Overview) -> None:
        hosts = [
            {
                "host": host.host,
                "error": error_record(host.error),
                "problems": list(host.problems),
                "notes": list(host.notes),
            }
            for host in result.hosts
        ]
        self.document("status", hosts=hosts, runs=[as_record(run) for run in result.runs], notes=list(result.notes))

    def _snapshot(self, snapshot: CodeSnapshot, what: str) -> None:
        self.note(f"code {snapshot.tree[:12]}: {len(snapshot.files)} files, {size_text(snapshot.size)}, {what}")
        for withheld in snapshot.withheld[:MOST_WITHHELD]:
            self.note(f"  not shipped: {clean(withheld.path)} ({clean(withheld.reason)})")
        if len(snapshot.withheld) > MOST_WITHHELD:
            self.note(f"  not shipped: {len(snapshot.withheld) - MOST_WITHHELD} files more")
        if snapshot.withheld:
            self.note("  [project] include in jobs.toml names what is to be shipped all the same")

    def _moved(self, before: RunReport | None, now: RunReport) -> None:
        if before is None or word(before) != word(now):
            self.note(line(now))
        self.live(line(now))

    def _waiting(self, event: Waiting) -> None:
        self.note(f"{clean(event.error.message)}; trying again in {event.delay:.0f} s, the run is not affected")

    def _log(self, event: LogBytes) -> None:
        if self.as_json:
            self.document("log", offset=event.offset, bytes=len(event.data), text=event.data.decode("utf-8", "replace"))
            return
        self.log(event.data)


def _facts(run: RunReport) -> str:
    return " · ".join(part for part in (word(run), standing(run)) if part)
