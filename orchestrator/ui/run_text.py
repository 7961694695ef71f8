"""Runs in words, for every command alike. What came from a box is made safe to show here."""

from __future__ import annotations

from orchestrator.box.reports import RunReport
from orchestrator.checks.rehearsal import Outcome
from orchestrator.text import clean, duration, shortened, size_text
from remote.contract import protocol

LONGEST_PHASE = 40  # characters
LONGEST_DETAIL = 300  # characters of a reason on one line; --json has the rest

_STYLES = {
    "running": "green",
    "succeeded": "bold green",
    "failed": "bold red",
    "stopped": "yellow",
    "lost": "bold red",
    "missing": "bold red",
}


def word(run: RunReport) -> str:
    """The run's state, or the laptop's own words for what it cannot see."""
    if run.is_missing:
        return "missing"
    if run.is_lost:
        return "lost"
    if run.supervised is None and not run.has_ended:
        return "unreachable"
    return run.state.name if run.state else "unknown"


def style_of(run: RunReport) -> str:
    """The colour of the run's state, in rich's terms."""
    return _STYLES.get(word(run), "")


def standing(run: RunReport) -> str:
    """What is to be known beside the state: progress, or the reason."""
    if run.note:
        return clean(run.note)
    state = run.state
    if isinstance(state, (protocol.Failed, protocol.Stopped)):
        return f"{clean(state.reason)}: {shortened(state.detail, LONGEST_DETAIL)}"
    if isinstance(state, protocol.Queued):
        return " · ".join(filter(None, [f"waiting for {shortened(state.waiting_for, LONGEST_DETAIL)}", progress(run)]))
    if isinstance(state, protocol.Succeeded):
        return " · ".join(filter(None, [epochs(run), took(run)]))
    if isinstance(state, protocol.Restarting):
        return f"attempt {state.attempt} after {shortened(state.reason, LONGEST_DETAIL)}"
    return progress(run)


def progress(run: RunReport) -> str:
    beat = run.heartbeat
    if beat is None:
        return "no heartbeat yet" if run.is_running else ""
    parts = [] if beat.phase == "train" else [shortened(beat.phase, LONGEST_PHASE)]
    parts += [f"{name} {value}/{of}" for name, value, of in _counts(run) if value and of]
    return " ".join(parts)


def _counts(run: RunReport) -> tuple[tuple[str, int | None, int | None], ...]:
    beat = run.heartbeat
    return (("epoch", beat.epoch, beat.epochs), ("step", beat.step, beat.steps)) if beat else ()


def epochs(run: RunReport) -> str:
    beat = run.heartbeat
    return f"epoch {beat.epoch}/{beat.epochs}" if beat and beat.epoch and beat.epochs else ""


def took(run: RunReport) -> str:
    """From its first attempt, or its launch where there was none, to its end, by the box's clock."""
    began = run.created if run.started is None else run.started
    if run.state is None or began is None or not run.has_ended:
        return ""
    return f"took {duration(max(0.0, run.state.since - began))}"


def line(run: RunReport) -> str:
    """One run on one line, as `tail` keeps it below the log."""
    facts = (("ETA", eta(run)), ("goals", goals(run)), ("heartbeat", beat_age(run)))
    parts = [f"{run.job} {word(run)}", standing(run), *(f"{name} {value}" for name, value in facts if value)]
    return " · ".join(part for part in parts if part)


def eta(run: RunReport) -> str:
    left = run.heartbeat.eta_s if run.heartbeat and run.is_running else None
    return "" if left is None else duration(left)


def goals(run: RunReport) -> str:
    if not run.goals or run.metrics is None:
        return ""
    return f"{sum(result.holds for result in run.verdict)}/{len(run.goals)}"


def beat_age(run: RunReport) -> str:
    return "" if run.heartbeat_age is None or run.has_ended else duration(run.heartbeat_age)


def rehearsed(outcome: Outcome) -> str:
    """How a rehearsal went, and what it says of the run to come."""
    if outcome.reason:
        return f"{outcome.verdict}: {outcome.reason}"
    forecast, parts = outcome.forecast, [f"passed in {duration(outcome.seconds)}"]
    if forecast and forecast.seconds_total is not None:
        price = "" if outcome.usd is None else f" and cost {outcome.usd:.2f} USD"
        parts.append(f"the run will take about {duration(forecast.seconds_total)}{price}")
    if forecast and forecast.host_bytes:
        gpu = f" and {size_text(forecast.peak_gpu_bytes)} of the GPU's" if forecast.peak_gpu_bytes else ""
        parts.append(f"{size_text(forecast.host_bytes)} of memory{gpu}")
    if forecast and forecast.checkpoints:
        parts.append(f"{size_text(forecast.checkpoint_bytes * forecast.checkpoints)} of checkpoints")
    return " · ".join(parts)
