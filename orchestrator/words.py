"""Runs in words and as records, for every command alike. What came from a box is made harmless here."""

from __future__ import annotations

import codecs
import re
import unicodedata

from orchestrator.rehearsal import Outcome
from orchestrator.reports import RunReport
from remote import protocol

_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls; bidirectional and zero-width ones; halves; two odd line ends
# Letters and marks that show nothing, by the Default_Ignorable_Code_Point property of Unicode. The variation
# selectors FE00 to FE0F are left: they are part of many an emoji.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")


def clean(text: object) -> str:
    """One line of text in which nothing moves the cursor, turns the direction of writing or cannot be seen."""
    return _visible(str(text)).replace("\n", " ")


def _visible(text: str, kept: str = "") -> str:
    """Lines and tabs stay, and the characters of `kept`; what is hidden becomes its number: `\\x1b`, `\\u202e`."""
    return _UNUSUAL.sub(lambda match: match[0] if match[0] in kept else _number_if_hidden(match[0]), text)


def _number_if_hidden(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN and not _BLANK.match(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LogText:
    """Log bytes as text for a terminal: lines, tabs and carriage returns stay, all else that is hidden and every byte
    that is no UTF-8 becomes a visible number. A character that comes in two pieces is whole.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes) -> str:
        return _visible(self._decoder.decode(data), kept="\r")


def word(run: RunReport) -> str:
    """The run's state, or the laptop's own words for what it cannot see."""
    if run.is_lost:
        return "lost"
    if run.supervised is None and not run.has_ended:
        return "unreachable"
    return run.state.name if run.state else "unknown"


def standing(run: RunReport) -> str:
    """What is to be known beside the state: progress, or the reason."""
    state = run.state
    if isinstance(state, (protocol.Failed, protocol.Stopped)):
        return f"{clean(state.reason)}: {clean(state.detail)}"
    if isinstance(state, protocol.Queued):
        return " · ".join(filter(None, [f"waiting for {clean(state.waiting_for)}", progress(run)]))
    if isinstance(state, protocol.Succeeded):
        return " · ".join(filter(None, [epochs(run), took(run)]))
    if isinstance(state, protocol.Restarting):
        return f"attempt {clean(state.attempt)} after {clean(state.reason)}"
    return progress(run)


def progress(run: RunReport) -> str:
    beat = run.heartbeat
    if beat is None:
        return "no heartbeat yet" if run.is_running else ""
    parts = [] if beat.phase == "train" else [clean(beat.phase)]
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


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `1 h 05`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d}"


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


def size_text(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
