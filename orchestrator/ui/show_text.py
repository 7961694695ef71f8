"""How `orch show` shows a run: as text with one section for each subject, and as a document."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.commands.run_metrics import newest
from orchestrator.text import clean, counted, duration, shortened, size_text
from orchestrator.ui.look_objects import ShownObject, shown_to_json
from orchestrator.ui.run_text import cause, sentence_of

if TYPE_CHECKING:
    from orchestrator.commands.looking import SeenRun
    from orchestrator.commands.run_settings import Setting
    from orchestrator.commands.show import Files, PastAttempt, Shown
    from orchestrator.ui.terminal import Terminal
    from remote.contract.run_report import RunReport

WIDTH = 12  # columns of the names of the sections
MAX_VALUE = 300  # characters of one setting
MAX_LISTED = 40  # metrics, settings or attempts
DURATIONS = ("stall_after", "deadline", "queue_deadline", "stop_grace")  # settings in seconds
Line = tuple[str, str]  # the name of the section, or "" if the line continues it; the text


class ShowView:
    """A run with all that is known about it; with `diff`, only how its code differs from its commit."""

    kind = "show"

    def __init__(self, shown: Shown, diff: bool, utc: bool) -> None:
        self._shown, self._diff, self._utc = shown, diff, utc

    def write(self, terminal: Terminal) -> None:
        """Write the sections, or the diff, which `git apply` can read."""
        shown = self._shown
        if self._diff:
            terminal.content(shown.patch.encode(errors="backslashreplace"))  # a surrogate is legal in JSON
            if not shown.patch:
                terminal.note("its code does not differ from its commit, or no diff was recorded")
            elif not shown.is_own_patch:
                terminal.note("this machine did not record the diff at the launch: read it before you apply it")
            return
        if shown.seen.error:
            terminal.note(f"{shown.seen.error.message}; what is known here is shown")
        for line in lines(shown, time.time(), self._utc):
            terminal.say(line)

    def facts(self) -> ShownObject:
        """Return everything; the diff only if it was asked for."""
        return shown_to_json(self._shown, self._diff)


def moment(seconds: float, utc: bool) -> str:
    """Return a time in the time zone of this machine, `2026-11-28 14:02:37`, or in UTC, with a `Z` at its end."""
    try:
        found = time.gmtime(seconds) if utc else time.localtime(seconds)
    except (OverflowError, ValueError, OSError):  # a box may report any number
        return "at an impossible time"
    return time.strftime("%Y-%m-%d %H:%M:%S", found) + ("Z" if utc else "")


def age_text(seen: SeenRun, now: float) -> str:
    """Return how old a report is, if its host was not asked just now and the run may have changed since."""
    if seen.is_new or (seen.known.is_complete and seen.error is None):
        return ""
    if seen.at is None:
        return "as in the copy here"
    return f"as seen {duration(max(0.0, now - seen.at))} ago"


def lines(shown: Shown, now: float, utc: bool) -> Iterator[str]:
    """Yield the lines about a run.

    Args:
        shown: The run.
        now: The time in seconds since the epoch.
        utc: Whether to show times in UTC.
    """
    run = shown.seen.report
    yield " · ".join(filter(None, [f"{run.job} {run.run_id}: {sentence_of(run)}", age_text(shown.seen, now)]))
    for name, text in _sections(shown, utc):
        yield f"{name:{WIDTH}}{text}".rstrip()


def _sections(shown: Shown, utc: bool) -> Iterator[Line]:
    run = shown.seen.report
    yield "host", clean(run.host or shown.seen.known.host)
    yield "there", clean(shown.there)
    yield "here", _here(shown)
    if shown.record is not None:
        by = f" by {shortened(shown.record.by, MAX_VALUE)}" if shown.record.by else ""
        yield "launched", f"{moment(shown.record.created, utc) if shown.record.created else 'at an unknown time'}{by}"
    if run.group:
        values = "".join(
            f" {shortened(name, MAX_VALUE)}={shortened(value, MAX_VALUE)}" for name, value in run.values.items()
        )
        yield "group", clean(run.group) + values
    yield from _titled("settings", _settings(shown.settings))
    yield from _titled("goals", (clean(result) for result in run.verdict))
    yield from _titled("metrics", _metrics(run))
    yield from _titled("code", _code(shown))
    if shown.environment:
        use = shown.environment
        facts = [use.file, use.tool and f"by {use.tool}", use.python and f"Python {use.python}", use.key[:12]]
        yield "environment", " · ".join(shortened(fact, MAX_VALUE) for fact in facts if fact)
    yield from _titled("attempts", (attempt_text(attempt, utc) for attempt in shown.attempts))
    yield from _titled("diagnostics", (f"evidence/{clean(name)}" for name in shown.diagnostics))
    yield from _titled("files", _files(shown))
    if shown.usd is not None:
        yield "cost", f"{shown.usd:.2f} USD"
    yield from _titled("again", _again(shown))


def _titled(name: str, found: Iterable[str]) -> Iterator[Line]:
    """Yield lines with the name before the first one, at most MAX_LISTED of them."""
    every = list(found)
    for number, text in enumerate(every[:MAX_LISTED]):
        yield ("" if number else name), text
    if len(every) > MAX_LISTED:
        yield "", f"and {len(every) - MAX_LISTED} more; all of them: --json"


def _here(shown: Shown) -> str:
    if shown.here is None:
        return "no copy; to make one: orch sync " + shown.seen.known.run_id
    state = "complete" if shown.is_complete else "not complete; to complete it: orch sync " + shown.seen.known.run_id
    return f"{shown.here} ({state})"


def setting_text(key: str, value: Any) -> str:
    """Return the value of a setting as one line: a command as it is typed, a time in hours and minutes."""
    if key in ("command", "resume") and isinstance(value, list):
        return shortened(shlex.join(map(str, value)), MAX_VALUE)
    if key in DURATIONS and isinstance(value, (int, float)):
        return duration(value)
    if key == "secrets" and isinstance(value, list):
        return shortened(", ".join(map(str, value)), MAX_VALUE) + " (their values are not recorded)"
    return shortened(value if isinstance(value, str) else json.dumps(value), MAX_VALUE)


def _settings(settings: Iterable[Setting]) -> Iterator[str]:
    for key, value in settings:
        if not key.startswith("goals."):  # these have a section of their own, with their values
            yield f"{shortened(key, MAX_VALUE)} {setting_text(key, value)}"


def _metrics(run: RunReport) -> Iterator[str]:
    yield from (f"{shortened(name, MAX_VALUE)} {value:.6g}" for name, value in newest(run).items())


def _code(shown: Shown) -> Iterator[str]:
    code = shown.seen.report.code
    if code.tree:
        parts = [f"tree {code.tree[:12]}"]
        parts += [f"commit {clean(code.commit[:12])}"] if code.commit else []
        parts += [f"branch {shortened(code.branch, MAX_VALUE)}"] if code.branch else []
        parts += {True: ["with changes"], False: ["as committed"]}.get(code.dirty, []) if code.dirty is not None else []
        yield " · ".join(parts)
    summary = diff_summary(shown.patch)
    if summary:
        yield f"{summary}; to see it: orch show {shown.seen.known.run_id} --diff"


def diff_summary(patch: str) -> str:
    """Return what a patch changes: `2 files changed, lines: +10 -3`. Empty if it changes nothing."""
    found = patch.splitlines()
    files = sum(line.startswith("diff --git ") for line in found)
    added = sum(line.startswith("+") and not line.startswith("+++ ") for line in found)
    removed = sum(line.startswith("-") and not line.startswith("--- ") for line in found)
    notes = sum(line.startswith("# ") for line in found)
    parts = [f"{counted(files, 'file')} changed, lines: +{added} -{removed}"] if files else []
    parts += [f"{counted(notes, 'note')} on what is not in it"] if notes else []
    return ", ".join(parts)


def attempt_text(attempt: PastAttempt, utc: bool) -> str:
    """Return one line about an attempt: `1: 2026-11-28 14:02:37, 12 min, exit code 1: ... · restarting`."""
    parts = [moment(attempt.start, utc)]
    if attempt.end is not None:
        parts.append(duration(max(0.0, attempt.end - attempt.start)))
    if attempt.reason:
        parts.append(cause(attempt.reason, attempt.detail))
    elif attempt.detail:
        parts.append(shortened(attempt.detail, MAX_VALUE))
    text = f"{attempt.number}: {', '.join(parts)}"
    text += f" · {clean(attempt.then)}" if attempt.then else ""
    return text + (f" · resumed from {shortened(attempt.resumed_from, MAX_VALUE)}" if attempt.resumed_from else "")


def _files(shown: Shown) -> Iterator[str]:
    if shown.files_here.count:
        yield f"here {files_text(shown.files_here)}"
    if shown.files_there is not None and not shown.is_complete:
        yield f"there {files_text(shown.files_there)}"
    if shown.files_here.count or shown.files_there:
        yield f"to list them: orch ls {shown.seen.known.run_id}"


def files_text(files: Files) -> str:
    """Return the number and size of files: `12 files with 3 GB, the largest out/model.pt (1.2 GB)`."""
    largest = ", ".join(f"{shortened(name, MAX_VALUE)} ({size_text(size)})" for name, size in files.largest)
    text = f"{counted(files.count, 'file')} with {size_text(files.bytes)}"
    return f"{text}, the largest {largest}" if largest else text


def _again(shown: Shown) -> Iterator[str]:
    run = shown.seen.known
    if not shown.again:
        yield f"jobs.toml has no job {run.job!r} any more"
        return
    yield shortened(shown.again, 10 * MAX_VALUE)
    if shown.changed:
        yield f"other settings have changed in jobs.toml since: {shortened(', '.join(shown.changed), MAX_VALUE)}"
    commit = shown.seen.report.code.commit
    if commit:
        can_apply = diff_summary(shown.patch) and shown.is_own_patch
        diff = f"; its changes: orch show {run.run_id} --diff | git apply" if can_apply else ""
        yield f"its code: git checkout {clean(commit[:12])}{diff}"
