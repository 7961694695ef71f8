"""Describe runs and rehearsals in text, the same in every command. Text from a box is made safe to show here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.text import clean, duration, shortened, size_text
from remote.contract import protocol
from remote.contract.position import Position
from remote.contract.schema import FAR

if TYPE_CHECKING:
    from orchestrator.checks.rehearsal import Outcome
    from remote.contract.goals import GoalResult
    from remote.contract.run_report import OutputSummary, RunReport

MAX_PHASE = 40  # characters
MAX_DETAIL = 300  # characters of a reason; `--json` prints all of it
MAX_NAME = 80  # characters of the path of a checkpoint
MAX_METRICS = 2  # shown beside the progress
_NOT_METRICS = ("schema", "time", "epoch", "step", "goals", "source")  # keys of the record that holds the metrics
# Codes that are not shown, because the detail says the same.
PLAIN_REASONS = ("exit", "signal", "asked", "deadline", "queue_deadline")

# The detail of a failure as written by remote/supervisor/failures.py and policy.py, of this version and earlier ones:
# the exit code, the message, the attempt, and why the run was not restarted.
_EXIT = re.compile(
    r"(exit code \d+): (.+?)(?: \((attempt \d+ of \d+)\)|(; (?:not restarted|there is still|the same|it refuses).*))?",
    re.DOTALL,
)
_STYLES = {
    "running": "green",
    "succeeded": "bold green",
    "failed": "bold red",
    "stopped": "yellow",
    "lost": "bold red",
    "missing": "bold red",
}


def state_name(run: RunReport) -> str:
    """Return the run's state, or what only the laptop can know: `missing`, `lost` or `unreachable`."""
    if run.is_missing:
        return "missing"
    if run.is_lost:
        return "lost"
    if run.supervised is None and not run.has_ended:
        return "unreachable"
    return run.state.name if run.state else "unknown"


def style_of(run: RunReport) -> str:
    """Return the style in which rich shows the run's state."""
    return _STYLES.get(state_name(run), "")


def sentence_of(run: RunReport) -> str:
    """Return the state and the progress or reason: `running · epoch 3/30`, `stopped by ann@laptop`."""
    state, detail = state_name(run), progress(run)
    if not detail:
        return state
    return f"{state} {detail}" if detail.startswith(("by ", "for ")) else f"{state} · {detail}"


def progress(run: RunReport) -> str:
    """Return how far the run is, or why it is in its state: `epoch 3/30`, `by ann@laptop`."""
    if run.note:
        return clean(run.note)
    state = run.state
    if isinstance(state, (protocol.Failed, protocol.Stopped)):
        return cause(state.reason, state.detail)
    if isinstance(state, protocol.Queued):
        parts = [f"waiting for {shortened(state.waiting_for, MAX_DETAIL)}", _since(run, state.since), position(run)]
        return " · ".join(filter(None, parts))
    if isinstance(state, protocol.Succeeded):
        return " · ".join(
            filter(None, [epochs(run), took(run), metrics(run), unjudged(run), shortened(state.remark, MAX_DETAIL)])
        )
    if isinstance(state, protocol.Restarting):
        reason, _, detail = state.reason.partition(": ")
        return f"attempt {state.attempt} after {cause(reason, detail) if detail else shortened(reason, MAX_DETAIL)}"
    if state_name(run) != "running":
        return position(run)
    return " · ".join(filter(None, [position(run) or running_for(run), metrics(run), resumed(run)]))


def cause(reason: str, detail: str) -> str:
    """Return why an attempt or a run ended: `ZeroDivisionError: division by zero (exit code 1)`.

    Args:
        reason: The code of the reason, such as `exit` or `stall`.
        detail: The text that the box reported with it.
    """
    match = _EXIT.fullmatch(detail)
    if match:
        detail = f"{match[2]} ({', '.join(filter(None, (match[1], match[3])))}){match[4] or ''}"
    text = detail if reason in PLAIN_REASONS and detail else f"{reason}: {detail}"
    return shortened(text, MAX_DETAIL)


def outputs_text(outputs: OutputSummary) -> str:
    """Return the outputs of a run: `outputs: 12 files with 3 GB, the largest out/model.pt (1.2 GB)`."""
    largest = ", ".join(f"{shortened(name, MAX_DETAIL)} ({size_text(size)})" for name, size in outputs.largest)
    if not largest:
        return "outputs: no files"
    files = f"{outputs.files} file{'' if outputs.files == 1 else 's'}"
    return f"outputs: {files} with {size_text(outputs.bytes)}, the largest {largest}"


def position(run: RunReport) -> str:
    """Return the position in the last heartbeat: `epoch 3/30 step 20/500`. Empty without a heartbeat."""
    latest = run.heartbeat
    if latest is None:
        return ""
    parts = [] if latest.phase == "train" else [shortened(latest.phase, MAX_PHASE)]
    at = latest.position
    counts = (("epoch", at.epoch, at.epochs), ("step", at.step, at.steps))
    # An epoch or a step without its total is shown if there is nothing better: `step 250`.
    found = [f"{name} {value}/{of}" for name, value, of in counts if value and of]
    return " ".join(parts + (found or [f"{name} {value}" for name, value, _ in counts if value]))


def _since(run: RunReport, since: float) -> str:
    """Return how long the environment of a queued run has been built: its heartbeat has a phase and no position."""
    is_building = run.heartbeat is not None and run.heartbeat.position == Position()
    return duration(max(0.0, run.now - since)) if is_building and run.now is not None else ""


def epochs(run: RunReport) -> str:
    """Return the epoch in the last heartbeat: `epoch 3/30`. Empty if it is not known."""
    at = run.heartbeat.position if run.heartbeat else None
    return f"epoch {at.epoch}/{at.epochs}" if at and at.epoch and at.epochs else ""


def resumed(run: RunReport) -> str:
    """Return the checkpoint that the attempt started from: `resumed from work/out/checkpoint-500`."""
    path = getattr(run.state, "resumed_from", None)
    return f"resumed from {shortened(path, MAX_NAME)}" if path else ""


def running_for(run: RunReport) -> str:
    """Return how long the run has been running, by the box's clock, and the size of its log: `for 12 min · log 3 kB`.

    Nothing else is known about a run whose worker sends no heartbeats.
    """
    if run.started is None or run.now is None:
        return ""
    log = f" · log {size_text(run.log_bytes)}" if run.log_bytes else ""
    return f"for {duration(max(0.0, run.now - run.started))}{log}"


def took(run: RunReport) -> str:
    """Return how long the run took, by the box's clock: `took 2 h`. Empty if it has not ended.

    The time starts with the first attempt, or with the launch if there was none.
    """
    began = run.created if run.started is None else run.started
    if run.state is None or began is None or not run.has_ended:
        return ""
    return f"took {duration(max(0.0, run.state.since - began))}"


def line(run: RunReport) -> str:
    """Return one line about the run, as `orch tail` shows it below the log."""
    facts = (("ETA", eta(run)), ("goals", goals(run)), ("heartbeat", heartbeat(run)))
    parts = [f"{run.job} {sentence_of(run)}", *(f"{name} {value}" for name, value in facts if value)]
    return " · ".join(parts)


def eta(run: RunReport) -> str:
    """Return the estimated time to the end of a running run. Empty if it is not known."""
    left = run.heartbeat.eta_s if run.heartbeat and run.is_running else None
    return "" if left is None else duration(left)


def metrics(run: RunReport) -> str:
    """Return the metrics that tell most: those of goals, else a loss. `val_accuracy 0.97`. Empty if there are none."""
    found = {
        name: value for name, value in (run.metrics or {}).items() if _is_number(value) and name not in _NOT_METRICS
    }
    wanted = [name for name in run.goals if name in found]
    losses = sorted((name for name in found if "loss" in name.lower()), key=_by_use)
    return " ".join(f"{shortened(name, MAX_PHASE)} {found[name]:.4g}" for name in (wanted or losses)[:MAX_METRICS])


def _by_use(name: str) -> tuple[bool, str]:
    """Sort losses on data that was not trained on first."""
    return not any(word in name.lower() for word in ("val", "eval", "test")), name


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < FAR


def unjudged(run: RunReport) -> str:
    """Return which goals could not be judged: `goal val_accuracy not judged: never reported`. Empty if none."""
    names = [shortened(result.goal.metric, MAX_PHASE) for result in run.verdict if result.holds is None]
    return f"goal{'s' if len(names) > 1 else ''} not judged: {', '.join(names)} never reported" if names else ""


def why_not_judged(run: RunReport, result: GoalResult) -> str:
    """Return why a goal was not judged, or has not been judged yet. Empty if it was."""
    if result.holds is not None:
        return ""
    return "its metric was never reported" if run.has_ended else "its metric was not reported yet"


def goals(run: RunReport) -> str:
    """Return how many goals the run has met: `2/3`. Empty without goals, and before the first metrics."""
    if not run.goals or (run.metrics is None and not run.has_succeeded):
        return ""
    return f"{len([result for result in run.verdict if result.holds])}/{len(run.goals)}"


def heartbeat(run: RunReport) -> str:
    """Return the age of an unfinished run's last heartbeat: `12 s ago`."""
    return "" if run.heartbeat_age is None or run.has_ended else f"{duration(run.heartbeat_age)} ago"


def rehearsed(outcome: Outcome) -> str:
    """Return the outcome of a rehearsal, and what it forecasts for the run."""
    if outcome.verdict == "skipped":
        return outcome.reason
    if outcome.verdict != "passed":
        return f"{outcome.verdict}: {outcome.reason}"
    parts = list(filter(None, [f"passed in {duration(outcome.seconds)}", outcome.reason]))
    forecast = outcome.forecast
    if forecast and forecast.seconds_total is not None:
        price = "" if outcome.usd is None else f" and cost {outcome.usd:.2f} USD"
        parts.append(f"the run will take about {duration(forecast.seconds_total)}{price}")
    if forecast and forecast.host_bytes:
        gpu = f" and {size_text(forecast.peak_gpu_bytes)} of GPU memory" if forecast.peak_gpu_bytes else ""
        parts.append(f"needs {size_text(forecast.host_bytes)} of memory{gpu}")
    if forecast and forecast.checkpoints:
        parts.append(f"writes {size_text(forecast.checkpoint_bytes * forecast.checkpoints)} of checkpoints")
    return " · ".join(parts)
