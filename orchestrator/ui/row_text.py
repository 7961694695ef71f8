"""What the table of runs says about one run: the texts of its cells. Text from a box is made safe to show here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.box.run_ids import launched_at
from orchestrator.text import clean, duration, shortened, size_text
from orchestrator.ui.run_text import (
    MAX_METRICS,
    MAX_PHASE,
    are_judged,
    cause,
    current_metrics,
    epochs,
    losses,
    position,
    resumed,
    took,
    unjudged,
    waiting,
)
from remote.contract import protocol
from remote.contract.schema import MAX_TEXT

if TYPE_CHECKING:
    from remote.contract.run_report import RunReport


def row_text(run: RunReport, has_marks: bool) -> str:
    """Return what a row of the table says last: how far the run is, and its metrics. `reason` is below the table.

    Args:
        run: The run.
        has_marks: Whether goals are marked with signs instead of words.
    """
    state = run.state
    values = judged(run, has_marks)
    if isinstance(state, protocol.Queued):
        parts = [waiting(run, state), values]
    elif isinstance(state, protocol.Stopped):
        parts = [cause(state.reason, state.detail), epochs(run) or position(run), values]
    elif run.has_ended:
        parts = [epochs(run), values]
    elif isinstance(state, protocol.Restarting):
        parts = [f"attempt {state.attempt} follows", values]
    else:
        attempt = getattr(state, "attempt", 1)
        log = f"log {size_text(run.log_bytes)}" if run.log_bytes and not position(run) else ""
        parts = [f"attempt {attempt}" if attempt > 1 else "", position(run) or log, values, resumed(run)]
    return " · ".join(filter(None, parts))


def reason(run: RunReport) -> str:
    """Return all of what is to be said about a run's end or its report; empty if there is nothing."""
    state = run.state
    said = clean(run.note)
    if isinstance(state, protocol.Failed):
        return " · ".join(filter(None, [cause(state.reason, state.detail, MAX_TEXT), said]))
    if isinstance(state, protocol.Restarting):
        code, _, detail = state.reason.partition(": ")
        why = cause(code, detail, MAX_TEXT) if detail else shortened(code, MAX_TEXT)
        return " · ".join(filter(None, [f"attempt {state.attempt} follows after {why}", said]))
    remark = shortened(state.remark, MAX_TEXT) if isinstance(state, protocol.Succeeded) else ""
    return " · ".join(filter(None, [remark, unjudged(run) if run.has_succeeded else "", said]))


def settings(run: RunReport) -> str:
    """Return the group of a run and the settings that tell it from the others: `lr-sweep SEED=0 LR=1e-3`."""
    values = (f"{name.removeprefix('env.')}={value}" for name, value in run.values.items())
    return clean(" ".join(filter(None, [run.group, *values])))


def judged(run: RunReport, has_marks: bool) -> str:
    """Return the metrics of all goals, each with whether its goal is met, then the loss: `acc 0.97 ✓ f1 0.4 ✗ loss 1`.

    Args:
        run: The run.
        has_marks: Whether to use signs instead of `met`, `missed` and `not reported`.
    """
    found = current_metrics(run)
    met, missed, unknown = ("✓", "✗", "?") if has_marks else ("met", "missed", "not reported")
    parts = []
    for result in run.verdict if are_judged(run) else ():
        value = unknown if result.holds is None else f"{result.value_text} {met if result.holds else missed}"
        parts.append(f"{shortened(result.goal.metric, MAX_PHASE)} {value}")
    others = [name for name in dict.fromkeys([*losses(found), *sorted(found)]) if name not in run.goals]
    others = others[: 1 if parts else MAX_METRICS]
    parts += [f"{shortened(name, MAX_PHASE)} {found[name]:.4g}" for name in others]
    return (" " if has_marks else ", ").join(parts)


def time_taken(run: RunReport) -> str:
    """Return how long the run took, or how long it has been in its state: `12 min`. Empty if it is not known."""
    if run.has_ended:
        return took(run).removeprefix("took ")
    if run.state is None or run.now is None or run.supervised is None:
        return ""
    return duration(max(0.0, run.now - run.state.since))


def launched(run: RunReport, utc: bool, now: float | None = None) -> str:
    """Return when the run was launched, in local time: `14:02` if that was today, else `28 Nov 14:02`.

    Args:
        run: The run.
        utc: Return UTC instead of local time.
        now: Now; None for the complete date and time, as `2026-11-28T14:02:37`.
    """
    at = run.created if run.created is not None else launched_at(run.run_id)
    zone = UTC if utc else None
    try:
        moment, today = (datetime.fromtimestamp(each or 0.0, zone) for each in (at, now))
    except (ValueError, OverflowError, OSError):  # a box may report any number
        return ""
    if at is None:
        return ""
    if now is None:
        return moment.strftime("%Y-%m-%dT%H:%M:%S") + ("Z" if utc else "")
    if moment.date() == today.date():
        return moment.strftime("%H:%M")
    return moment.strftime("%d %b %H:%M" if moment.year == today.year else "%d %b %Y")


def seen(run: RunReport, now: float) -> str:
    """Return how old the report about an unfinished run is, if its host did not answer: `seen 3 h ago`."""
    is_old = run.seen is not None and not run.has_ended
    return f"seen {duration(max(0.0, now - (run.seen or 0.0)))} ago" if is_old else ""
