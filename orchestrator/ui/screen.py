"""Show the results of commands as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.checks.check import CODE
from orchestrator.text import clean, shortened, size_text
from orchestrator.ui.renderer import Renderer
from orchestrator.ui.run_text import outputs_text, rehearsed, sentence_of, style_of
from remote.contract.goals import summary

if TYPE_CHECKING:
    from orchestrator.box.mirror import Mirrored, NotMirrored
    from orchestrator.checks.check import Checked
    from orchestrator.checks.rehearsal import Outcome
    from orchestrator.code.snapshot import CodeSnapshot
    from orchestrator.commands.disconnect import Disconnected
    from orchestrator.commands.init import Initialised
    from orchestrator.commands.launch import Launched
    from orchestrator.commands.overview import Overview
    from orchestrator.commands.push import Pushed
    from orchestrator.commands.shipping import Shipped
    from orchestrator.commands.stop import Changed
    from orchestrator.commands.trust import OfferedKey, TrustResult
    from orchestrator.commands.watch import LogBytes
    from orchestrator.errors import OrchError
    from remote.contract.run_report import RunReport

MAX_LEFT_OUT = 20  # files of one run that are listed as not copied
MAX_WITHHELD = 20  # files that are listed as not sent
MAX_NAME = 200  # characters of a file's name
MAX_COMMAND = 300  # characters of a command
MAX_CANDIDATES = 10  # scripts of which one may be the right one
TEST_MORE = 'to test them, add a command that trains for a few steps: rehearse = "... --max_steps 2"'
CHECK_STYLES = {"warn": "yellow", "fail": "bold red"}


class Screen(Renderer):
    """Writes results to stdout, and notes to stderr."""

    # --- results -------------------------------------------------------------------------------------

    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        """Show the code, the problems found, the rehearsals, and each run with its state."""
        self.terminal.quiet()
        self._snapshot(result.snapshot, "sent" if result.sent else "already on the host")
        self._checks(each for each in result.checks if each.check.status != "ok" and each.about != CODE)
        self._rehearsals(result.outcomes)
        for note in result.notes:
            self.terminal.note(note)
        for run in runs:
            is_shown_later = waits and run.has_ended
            state = "" if is_shown_later else f": {sentence_of(run)}"
            self.terminal.say(f"{run.job}  {run.run_id}  on {run.host}{state}", "" if is_shown_later else style_of(run))
            if run.attach and not run.has_ended:
                self.terminal.note(f"  attach on the box: {shortened(run.attach, MAX_NAME)}")
        names = " ".join(run.job for run in runs)
        self.terminal.note(
            f"follow: orch tail {runs[0].job} · all runs: orch status · download results: orch sync {names}"
        )

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
            self.terminal.note("known_hosts already has this key")
            return
        self.terminal.note("compare it with the fingerprint from another source: the instance's console, or its owner")

    def trusted(self, result: TrustResult) -> None:
        """Show what `orch trust` did with the key."""
        if result.file is None:
            self.terminal.say(f"not pinned: {result.host} shows {result.fingerprint}")
        else:
            self.terminal.say(f"pinned {result.fingerprint} for {result.host} in {result.file}")
        if result.replaced:
            self.terminal.say(f"replaced {', '.join(result.replaced)}; a copy of each changed file is kept as FILE.old")

    def disconnected(self, hosts: Iterable[Disconnected]) -> None:
        """Show which connections `orch disconnect` has closed."""
        for each in hosts:
            self.terminal.say(f"{each.host}: {'disconnected' if each.was_open else 'was not connected'}")

    def warned(self, warnings: Sequence[Checked]) -> None:
        """Show the warnings about the code."""
        self.terminal.quiet()
        self._checks(warnings)

    def checked(self, result: Launched) -> None:
        """Show all checks, passed ones included, and the rehearsals."""
        self.terminal.quiet()
        self._checks(each for each in result.checks if each.about != CODE)
        self._rehearsals(result.outcomes)

    def examined(self, checks: Sequence[Checked]) -> None:
        """Show all checks, passed ones included."""
        self._checks(checks)

    def shipped(self, results: Sequence[Shipped]) -> None:
        """Show one line for each host, and the files that were not sent."""
        for item in results:
            self._snapshot(item.snapshot, f"{'sent to' if item.sent else 'already on'} {item.host}")

    def pushed(self, result: Pushed) -> None:
        """Show where the data is, and what was not sent."""
        self.terminal.quiet()
        what = f"{result.files} file{'' if result.files == 1 else 's'}, {size_text(result.bytes)}"
        state = "sent to" if result.sent else "already at"
        self.terminal.say(f"{what}, {state} {result.host}:{clean(result.path)}")
        for name, reason in result.skipped[:MAX_WITHHELD]:
            self.terminal.note(f"  not sent: {shortened(name, MAX_NAME)} ({shortened(reason, MAX_NAME)})")
        if len(result.skipped) > MAX_WITHHELD:
            self.terminal.note(f"  not sent: {len(result.skipped) - MAX_WITHHELD} more files")

    def ended(self, runs: Sequence[RunReport]) -> None:
        """Show the state of each run, and below it which goals it met, missed or could not be judged by."""
        for run in runs:
            self.terminal.say(f"{run.job} {run.run_id}: {sentence_of(run)}", style_of(run))
            if run.goals and (run.metrics is not None or run.has_succeeded):
                self.terminal.say(f"  {summary(run.verdict)}")
                for result in run.verdict:
                    self.terminal.say(f"    {clean(result)}")

    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """Redraw one table on a terminal; write a line for each change elsewhere."""
        from orchestrator.ui import run_table  # rich takes a while to import

        return run_table.watch(self.terminal, overviews)

    def live(self, text: str, is_long: bool = False) -> None:
        """Show `text` on the last line of a terminal, until `quiet` removes it."""
        self.terminal.live(text, is_long)

    def _overview(self, overviews: Iterable[Overview]) -> Overview | None:
        from orchestrator.ui import run_table

        last = run_table.show(self.terminal, overviews)
        if last is not None and not last.runs and not any(host.error for host in last.hosts):
            asked = " and ".join(host.host for host in last.hosts)
            self.terminal.say(f"no runs{' on ' + asked if asked else ''} yet; start one with: orch launch JOB")
        if last is not None and len(last.runs) == 1 and last.runs[0].outputs:
            self.terminal.say(outputs_text(last.runs[0].outputs))
        return last

    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        for run in runs:
            if (run.job, run.run_id) in change.had_ended:
                self.terminal.note(f"{run.job} {run.run_id} had already ended; nothing to stop")
        self.ended(runs)

    def _copied(self, item: Mirrored) -> None:
        state = "complete" if item.complete else "copied so far; still running"
        state += ", verified by checksum" if item.verified else ""
        run = f"{item.report.job} {item.report.run_id}"
        self.terminal.say(f"{run}: {item.files} files, {size_text(item.bytes)}, {state}")
        self.terminal.note(f"  {item.directory}")
        if item.deleted:
            self.terminal.note(f"  deleted here: {item.deleted} files that the job deleted (`keep = true` keeps them)")
        for name, reason in item.kept[:MAX_LEFT_OUT]:
            self.terminal.note(f"  kept: {shortened(name, MAX_NAME)} ({reason})")
        for name, reason in item.left_out[:MAX_LEFT_OUT]:
            self.terminal.note(f"  not copied: {shortened(name, MAX_NAME)} ({reason})")
        if len(item.left_out) > MAX_LEFT_OUT:
            self.terminal.note(f"  not copied: {len(item.left_out) - MAX_LEFT_OUT} more files")

    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        if not copied and not failed:
            self.terminal.say("nothing new to copy")

    def _log(self, piece: LogBytes) -> None:
        self.terminal.log(piece.data)

    def _failed(self, error: OrchError) -> None:
        """Do nothing: the error is shown on stderr."""

    # --- pieces --------------------------------------------------------------------------------------

    def _checks(self, checks: Iterable[Checked]) -> None:
        for checked in checks:
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
        self.terminal.note(f"code {snapshot.tree[:12]}: {len(snapshot.files)} files, {size}, {where}")
        for withheld in snapshot.withheld[:MAX_WITHHELD]:
            self.terminal.note(f"  not sent: {clean(withheld.path)} ({clean(withheld.reason)})")
        if len(snapshot.withheld) > MAX_WITHHELD:
            self.terminal.note(f"  not sent: {len(snapshot.withheld) - MAX_WITHHELD} more files")
        if snapshot.withheld:
            self.terminal.note("  to send a file anyway, list it in [project] include of jobs.toml")
