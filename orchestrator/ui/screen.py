"""Show the results of commands as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.checks.check import CODE
from orchestrator.text import clean, counted, duration, shortened, size_text
from orchestrator.ui.renderer import Renderer
from orchestrator.ui.run_text import (
    names_of,
    outputs_text,
    position,
    rehearsed,
    sentence_of,
    settings_of,
    state_name,
    style_of,
)
from remote.contract.goals import summary

if TYPE_CHECKING:
    from orchestrator.box.mirror import Mirrored, NotMirrored
    from orchestrator.checks.check import Checked
    from orchestrator.checks.rehearsal import Outcome
    from orchestrator.code.snapshot import CodeSnapshot
    from orchestrator.commands.disconnect import Disconnected
    from orchestrator.commands.init import Initialised
    from orchestrator.commands.launch import Launched
    from orchestrator.commands.on_box import Place
    from orchestrator.commands.overview import Overview
    from orchestrator.commands.push import Pushed
    from orchestrator.commands.shipping import Shipped
    from orchestrator.commands.stop import Changed
    from orchestrator.commands.trust import OfferedKey, TrustResult
    from orchestrator.commands.wait import Waited
    from orchestrator.commands.watch import LogBytes
    from orchestrator.errors import OrchError
    from orchestrator.system.seen_notices import SeenNotices
    from orchestrator.ui.folded_log import FoldedLog
    from orchestrator.ui.view import View
    from remote.contract.run_report import RunReport

T = TypeVar("T")
MAX_LEFT_OUT = 20  # files of one run that are listed as not copied
MAX_RUNS = 20  # runs of a group that are listed
MAX_WITHHELD = 20  # files that are listed as not sent
MAX_NAME = 200  # characters of a file's name
MAX_COMMAND = 300  # characters of a command
MAX_CANDIDATES = 10  # scripts of which one may be the right one
TEST_MORE = 'to test them, add a command that trains for a few steps: rehearse = "... --max_steps 2"'
CHECK_STYLES = {"warn": "yellow", "fail": "bold red"}


class Screen(Renderer):
    """Writes results to stdout, and notes to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: SeenNotices | None = None  # None: show all
        self._left_out = 0  # notices that were seen before
        self._ended: set[tuple[str, str]] = set()  # runs whose end was shown

    def leave_out_seen(self, directory: Path) -> None:
        """Show each notice of the project in `directory` only once."""
        from orchestrator.system.seen_notices import SeenNotices

        self._seen = SeenNotices(directory)

    # --- results -------------------------------------------------------------------------------------

    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        """Show the code, the problems found, the rehearsals, and each run with its state."""
        self.terminal.quiet()
        self._snapshot(result.snapshot, "sent" if result.sent else "already on the host")
        self._checks(each for each in result.checks if each.check.status != "ok" and each.about != CODE)
        self._rehearsals(result.outcomes)
        for note in self._new(result.notes, str):
            self.terminal.note(note)
        if self._left_out:
            shown = f"orch check {names_of(runs)}, orch doctor"
            notices = counted(self._left_out, "notice")
            self.terminal.note(f"{notices} as at an earlier launch; to see them: {shown}")
        if result.group:
            at_once = f", at most {result.group.at_once} at once" if result.group.at_once else ""
            self.terminal.say(f"group {result.group.name}: {counted(len(runs), 'run')}{at_once}")
        for run in runs[: MAX_RUNS if result.group else None]:
            is_shown_later = waits and run.has_ended
            state = "" if is_shown_later else f": {sentence_of(run)}"
            name = "  ".join(filter(None, [run.job, run.run_id, settings_of(run)]))
            self.terminal.say(f"{name}  on {run.host}{state}", "" if is_shown_later else style_of(run))
            if run.attach and not run.has_ended:
                self.terminal.note(f"  attach on the box: {shortened(run.attach, MAX_NAME)}")
        if result.group and len(runs) > MAX_RUNS:
            self.terminal.say(f"and {len(runs) - MAX_RUNS} more")
        names = names_of(runs)
        followed = names if result.group else runs[0].job
        results = f"download results: orch sync {names}"
        self.terminal.note(f"follow: orch tail {followed} · all runs: orch status · {results}")

    def initialised(self, result: Initialised) -> None:
        """Show what `orch init` wrote, and what is left to the user."""
        self.terminal.say(f"wrote {result.path}")
        command = result.command
        self.terminal.note(f"command: {shortened(' '.join(command.words), MAX_COMMAND)}")
        if command.candidates:
            self.terminal.note("not certain which of these trains; set the right one in `command`:")
            for name in command.candidates[:MAX_CANDIDATES]:
                self.terminal.note(f"  {clean(name)}")
            if len(command.candidates) > MAX_CANDIDATES:
                self.terminal.note(f"  and {len(command.candidates) - MAX_CANDIDATES} more")
        for each in command.to_set:
            self.terminal.note(f"to be set in it: {clean(each)}")
        if result.ignored:
            self.terminal.note(f"added to .gitignore: {', '.join(result.ignored)}")
        for folder, reason in result.left_out:
            self.terminal.note(f"not uploaded: {clean(folder)} ({reason}); to upload it, use [project] include")
        self._checks(result.warnings)
        self.terminal.note("next: read it, then run: orch check train, orch launch train")

    def host_key(self, host: str, key: OfferedKey) -> None:
        """Show a host key before the user is asked whether to trust it."""
        self.terminal.say(f"{host} shows the host key {key.kind} {key.fingerprint}")
        if key.replaces:
            self.terminal.say(f"THE KEY HAS CHANGED: known_hosts has {', '.join(key.replaces)} for {host}")
            self.terminal.note("unless the host was set up again, this may be a man-in-the-middle attack")
        if key.is_pinned:
            return
        self.terminal.note("compare it with the fingerprint from another source: the instance's console, or its owner")

    def trusted(self, result: TrustResult) -> None:
        """Show what `orch trust` did with the key."""
        if result.file is None:
            self.terminal.say(f"not pinned: {result.host} shows {result.fingerprint}")
        elif result.was_pinned:
            self.terminal.say(f"nothing to do: {result.file} already has this key of {result.host}")
        else:
            self.terminal.say(f"pinned {result.fingerprint} for {result.host} in {result.file}")
        if result.replaced:
            self.terminal.say(f"replaced {', '.join(result.replaced)}; a copy of each changed file is kept as FILE.old")

    def disconnected(self, hosts: Iterable[Disconnected]) -> None:
        """Show which connections `orch disconnect` has closed."""
        for each in hosts:
            self.terminal.say(f"{each.host}: {'disconnected' if each.was_open else 'was not connected'}")

    def entered(self, place: Place) -> None:
        """Show where a shell is about to start."""
        self.terminal.note(f"{place.host}: {shortened(place.path, MAX_NAME)}")

    def without_terminal(self, place: Place) -> None:
        """Say why the log of a run is followed instead of its terminal."""
        name = " ".join(filter(None, place.run or ()))
        self.terminal.note(f"{name} has no terminal on {place.host}, only its log: only tmux gives one to a live run")

    def forwarding(self, place: Place, local: int, remote: int) -> None:
        """Show where a forwarded port can be reached."""
        self.terminal.say(f"http://127.0.0.1:{local}")
        self.terminal.note(f"forwards to port {remote} of {place.host}; Ctrl-C ends it")
        if place.listens is False:
            self.terminal.note(f"no program listens at 127.0.0.1:{remote} of {place.host} yet")

    def warned(self, warnings: Sequence[Checked]) -> None:
        """Show the warnings about the code."""
        self.terminal.quiet()
        self._checks(warnings)

    def checked(self, result: Launched) -> None:
        """Show all checks, passed ones included, and the rehearsals."""
        self.terminal.quiet()
        self._snapshot(result.snapshot, "sent" if result.sent else "already on the host")
        self._checks(each for each in result.checks if each.about != CODE)
        self._rehearsals(result.outcomes)
        for note in result.notes:
            self.terminal.note(note)

    def examined(self, checks: Sequence[Checked]) -> None:
        """Show all checks, passed ones included."""
        self._checks(checks)

    def shipped(self, results: Sequence[Shipped]) -> None:
        """Show one line for each host, and the files that were not sent."""
        self.terminal.quiet()
        for item in results:
            self._snapshot(item.snapshot, f"{'sent to' if item.sent else 'already on'} {item.host}")

    def pushed(self, result: Pushed) -> None:
        """Show where the data is, and what was not sent."""
        self.terminal.quiet()
        what = f"{counted(result.files, 'file')}, {size_text(result.bytes)}"
        state = "sent to" if result.sent else "already at"
        self.terminal.say(f"{what}, {state} {result.host}:{clean(result.path)}")
        for name, reason in result.skipped[:MAX_WITHHELD]:
            self.terminal.note(f"  not sent: {shortened(name, MAX_NAME)} ({shortened(reason, MAX_NAME)})")
        if len(result.skipped) > MAX_WITHHELD:
            self.terminal.note(f"  not sent: {len(result.skipped) - MAX_WITHHELD} more files")

    def waited(self, result: Waited) -> None:
        """Show a line for each run that meets the condition or has changed, and how many runs are in each state."""
        for run in result.news:
            self.terminal.say(f"{result.names[run.job, run.run_id]}: {sentence_of(run)}", style_of(run))
        for host, error in result.unreachable.items():
            self.terminal.say(f"{host} did not answer: {clean(error.message)}", "bold red")
        counts = Counter(state_name(run) for run in result.runs)
        states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no unfinished runs"
        self.terminal.note(states if result.is_met else f"after {duration(result.seconds)}: {states}")

    def present(self, view: View) -> None:
        """Show the text of the view."""
        self.terminal.quiet()
        view.write(self.terminal)

    def ended(self, runs: Sequence[RunReport]) -> None:
        """Show the state of each run, and below it which goals it met, missed or could not be judged by.

        The end of a run is shown once.
        """
        for run in runs:
            if (run.job, run.run_id) in self._ended:
                continue
            self._ended.add((run.job, run.run_id))
            self.terminal.say(f"{run.job} {run.run_id}: {sentence_of(run)}", style_of(run))
            if run.goals and (run.metrics is not None or run.has_succeeded):
                self.terminal.say(f"  {summary(run.verdict)}")
                for result in run.verdict:
                    self.terminal.say(f"    {clean(result)}")

    def changed_meanwhile(self, run: RunReport) -> None:
        """Show how a run ended at once, and not again when the others have ended, too."""
        if run.has_ended:
            self.ended([run])
        else:
            super().changed_meanwhile(run)

    def watch(self, overviews: Iterable[Overview], utc: bool = False) -> Sequence[RunReport]:
        """Redraw one table on a terminal; write a line for each change elsewhere."""
        from orchestrator.ui import run_updates  # rich takes a while to import

        return run_updates.watch(self.terminal, overviews, utc)

    def live(self, text: str, is_long: bool = False, has_time: bool = True) -> None:
        """Show `text` on the last line of a terminal, until `quiet` removes it."""
        self.terminal.live(text, is_long, has_time)

    def _overview(self, overviews: Iterable[Overview], utc: bool, most: int | None) -> Overview | None:
        from orchestrator.ui import run_updates

        last = run_updates.show(self.terminal, overviews, utc, most)
        if last is not None and not last.runs and not any(host.error for host in last.hosts):
            asked = " and ".join(sorted(host.host for host in last.hosts))
            self.terminal.say(f"no runs{' on ' + asked if asked else ''} yet; start one with: orch launch JOB")
        if last is not None and len(last.runs) == 1 and last.runs[0].outputs:
            self.terminal.say(outputs_text(last.runs[0].outputs))
        return last

    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        for run in runs:
            name = f"{run.job} {run.run_id}"
            if (run.job, run.run_id) in change.had_ended:
                self.terminal.say(f"{name} had already ended; nothing to stop: {sentence_of(run)}", style_of(run))
            elif kind == "stop" and run.is_live:
                reached = position(run)
                self.terminal.say(f"{name}: stop requested{f' · {reached}' if reached else ''}")
            else:
                self.ended([run])

    def _copied(self, item: Mirrored) -> None:
        state = "complete" if item.complete else "copied so far; still running"
        if item.is_part:
            rest = f"to copy the rest: orch sync {item.report.run_id}"
            state = f"only what was chosen; {'the copy is complete' if item.complete else rest}"
        state += ", verified by checksum" if item.verified else ""
        run = f"{item.report.job} {item.report.run_id}"
        self.terminal.say(f"{run}: {counted(item.files, 'file')}, {size_text(item.bytes)}, {state}")
        self.terminal.note(f"  {item.directory}")
        if item.deleted:
            files = counted(item.deleted, "file")
            self.terminal.note(f"  deleted here: {files} that the job deleted (`keep = true` keeps them)")
        for name, reason in item.kept[:MAX_LEFT_OUT]:
            self.terminal.note(f"  kept: {shortened(name, MAX_NAME)} ({reason})")
        for name, reason in item.left_out[:MAX_LEFT_OUT]:
            self.terminal.note(f"  not copied: {shortened(name, MAX_NAME)} ({reason})")
        if len(item.left_out) > MAX_LEFT_OUT:
            self.terminal.note(f"  not copied: {len(item.left_out) - MAX_LEFT_OUT} more files")

    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        self.terminal.quiet()
        if not copied and not failed:
            self.terminal.say("nothing new to copy")

    def _log(self, piece: LogBytes) -> None:
        self.terminal.log(piece.data)

    def log_of(self, run: RunReport | None, piece: LogBytes, log: FoldedLog, label: str, style: str) -> None:
        """Write the lines that have settled, each with the label."""
        self.terminal.log_lines(label, style, log.feed(self.terminal.mask(piece.data)))

    def _failed(self, error: OrchError) -> None:
        """Do nothing: the error is shown on stderr."""

    # --- pieces --------------------------------------------------------------------------------------

    def _new(self, notices: Iterable[T], text: Callable[[T], str]) -> list[T]:
        """Return the notices that are to be shown; count the others."""
        found = list(notices)
        if self._seen is None or not found:
            return found
        are_new = self._seen.new([text(notice) for notice in found])
        self._left_out += are_new.count(False)
        return [notice for notice, is_new in zip(found, are_new, strict=True) if is_new]

    def _checks(self, checks: Iterable[Checked]) -> None:
        for checked in self._new(checks, lambda each: f"{each.about}: {each.check.name}: {each.check.detail}"):
            check = checked.check
            text = f"{check.status:4}  {checked.about}: {check.name}: {check.detail}"
            self.terminal.say(text, CHECK_STYLES.get(check.status, ""))
            if check.hint:
                self.terminal.note(f"      hint: {check.hint}")

    def _rehearsals(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            text = f"rehearsal of {outcome.job}: {clean(rehearsed(outcome))}"
            self.terminal.say(text, "yellow" if outcome.reason else "")
        if any(outcome.verdict == "passed" and outcome.reason for outcome in outcomes):
            self.terminal.note(f"      hint: {TEST_MORE}")

    def _snapshot(self, snapshot: CodeSnapshot, where: str) -> None:
        size = size_text(snapshot.size)
        self.terminal.note(f"code {snapshot.tree[:12]}: {counted(len(snapshot.files), 'file')}, {size}, {where}")
        withheld = self._new(snapshot.withheld, lambda each: f"not sent: {each.path}: {each.reason}")
        for each in withheld[:MAX_WITHHELD]:
            self.terminal.note(f"  not sent: {clean(each.path)} ({clean(each.reason)})")
        if len(withheld) > MAX_WITHHELD:
            self.terminal.note(f"  not sent: {len(withheld) - MAX_WITHHELD} more files")
        if withheld:
            self.terminal.note("  to send a file anyway, list it in [project] include of jobs.toml")
