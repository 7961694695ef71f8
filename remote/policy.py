"""What to do with a run, decided from what is seen of it. Pure: no clock, no file, no process."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Optional, Sequence, Union

FIRST_BACKOFF = 5.0  # seconds before the first restart; doubled for each one after it
MAX_BACKOFF = 300.0
USAGE = 2  # by convention (argparse, getopt, bash): wrong arguments or input


@dataclass(frozen=True)
class Limits:
    """A job's own bounds, in seconds."""

    stall_after: float
    deadline: Optional[float]
    restarts: int
    attempt: Optional[float] = None  # for one attempt, where the deadline counts from the launch on


@dataclass(frozen=True)
class Seen:
    """Ages in seconds, by a clock that only moves forward."""

    since_launch: float
    since_progress: float  # neither step nor log has moved for so long
    since_gpu_use: Optional[float] = None  # None where no GPU use was ever seen
    since_start: float = 0.0  # of this attempt


@dataclass(frozen=True)
class End:
    """End the worker now. `reason` is a word of the contract."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Restart:
    reason: str
    detail: str
    delay: float  # seconds


@dataclass(frozen=True)
class Finish:
    """The run is over: `succeeded`, `failed` or `stopped`."""

    state: str
    reason: str = ""
    detail: str = ""


def while_running(limits: Limits, seen: Seen) -> Optional[End]:
    """Why the worker is to be ended now, or None."""
    if limits.deadline is not None and seen.since_launch >= limits.deadline:
        return End("deadline", f"still running at its deadline of {limits.deadline:.0f} s")
    if limits.attempt is not None and seen.since_start >= limits.attempt:
        return End("time_limit", f"still running after {limits.attempt:.0f} s")
    silent = min(seen.since_progress, seen.since_progress if seen.since_gpu_use is None else seen.since_gpu_use)
    if silent >= limits.stall_after:
        return End("stalled", f"neither step, log nor GPU has moved for {silent:.0f} s")
    return None


def after_exit(
    limits: Limits, attempt: int, exit_code: int, ended: Optional[End], missing: Sequence[str]
) -> Union[Restart, Finish]:
    """What follows an attempt. `ended` says why the supervisor ended it, None where it ended by itself."""
    if ended and ended.reason in ("asked", "deadline", "preempted", "time_limit"):
        return Finish("stopped", ended.reason, ended.detail)
    if exit_code == 0 and not ended:
        if not missing:
            return Finish("succeeded")
        return Finish("failed", "missing_output", "it exited 0 without " + ", ".join(missing))
    if exit_code == USAGE and not ended:
        return Finish(
            "failed", "exit", f"{describe_exit(exit_code)}: it refuses its input, which a restart would not change"
        )
    reason, detail = (ended.reason, ended.detail) if ended else ("exit", describe_exit(exit_code))
    if attempt > limits.restarts:
        tries = f" (attempt {attempt} of {limits.restarts + 1})" if limits.restarts else ""
        return Finish("failed", reason, detail + tries)
    return Restart(reason, detail, min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(attempt - 1, 16)))


def describe_exit(exit_code: int) -> str:
    """`exit code 3`, or the signal's name for the negative code that subprocess gives."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"
