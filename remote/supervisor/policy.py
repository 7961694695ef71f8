"""What to do with a run, decided from what is seen of it. Pure: no clock, no file, no process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Union

from remote.supervisor.failures import Failure

FIRST_BACKOFF = 5.0  # seconds before the first restart; doubled for each one after it
MAX_BACKOFF = 300.0
JITTER = 0.25  # of the delay: what broke for many at once is not taken up by all at once
USAGE = 2  # by convention (argparse, getopt, bash): wrong arguments or input
FINAL = ("asked", "deadline", "time_limit")  # ended on purpose: no restart


@dataclass(frozen=True)
class Limits:
    """A job's own bounds, in seconds."""

    stall_after: float
    deadline: Optional[float]
    restarts: int
    attempt: Optional[float] = None  # for one attempt, where the deadline counts from the launch on


@dataclass(frozen=True)
class Seen:
    """What the witnesses say. Ages in seconds, by a clock that only moves forward."""

    since_launch: float
    since_step: float  # the phase, epoch and step of the heartbeat have not moved for so long
    since_log: float  # the log has not grown for so long
    since_gpu_use: Optional[float] = None  # None where no GPU use was ever seen
    since_start: float = 0.0  # of this attempt
    heartbeat_age: Optional[float] = None  # None where it writes none
    is_disk_full: bool = False


@dataclass(frozen=True)
class End:
    """End the worker now. `reason` is a word of the contract."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Ended:
    """How an attempt came to its end. `by` says why the supervisor ended it, None where it ended by itself."""

    failure: Failure
    by: Optional[End] = None
    missing: Sequence[str] = ()  # of the files that it was to write
    is_disk_full: bool = False


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
    if seen.is_disk_full:
        return End("disk_full", "the disk is full")
    ages = [seen.since_step, seen.since_log]
    ages += [] if seen.since_gpu_use is None else [seen.since_gpu_use]
    if min(ages) >= limits.stall_after:
        return End("stalled", describe_stall(seen))
    return None


def describe_stall(seen: Seen) -> str:
    """Each witness in words."""
    said = [f"step unchanged for {seen.since_step:.0f} s", f"log silent for {seen.since_log:.0f} s"]
    said.append("no GPU use seen" if seen.since_gpu_use is None else f"GPU idle for {seen.since_gpu_use:.0f} s")
    said.append("no heartbeat" if seen.heartbeat_age is None else f"last heartbeat {seen.heartbeat_age:.0f} s ago")
    return f"the process lives and nothing moves: {', '.join(said)}"


def after_exit(
    limits: Limits, used: int, ended: Ended, last: Optional[Failure] = None, jitter: float = 0.0
) -> Union[Restart, Finish]:
    """What follows an attempt. `used` restarts went before it, `last` is how the one before it failed.

    `jitter`, 0 to 1, is the caller's random draw.
    """
    failure, by = ended.failure, ended.by
    if by and by.reason in FINAL:
        return Finish("stopped", by.reason, by.detail)
    if failure.exit_code == 0 and not by:
        if not ended.missing:
            return Finish("succeeded")
        return Finish("failed", "missing_output", "it exited 0 without " + ", ".join(ended.missing))
    reason, detail = (by.reason, by.detail) if by else (failure.reason, failure.detail)
    hopeless = None if by and by.reason != "disk_full" else _why_hopeless(failure, last, ended.is_disk_full)
    if hopeless:
        return Finish("failed", reason, f"{detail}; {hopeless}")
    if by and reason == "preempted":
        return Restart(reason, detail, 0.0)  # no fault of its own, so none of its restarts is used up
    if used >= limits.restarts:
        tries = f" (attempt {used + 1} of {limits.restarts + 1})" if limits.restarts else ""
        return Finish("failed", reason, detail + tries)
    delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(used, 16))
    return Restart(reason, detail, delay * (1 - JITTER * jitter))


def _why_hopeless(failure: Failure, last: Optional[Failure], is_disk_full: bool) -> Optional[str]:
    """Why a restart would end in the same way."""
    if is_disk_full:
        return "there is still no room for a checkpoint: free some, then launch again"
    if failure.exit_code == USAGE and not failure.exception:
        return "it refuses its input, which a restart would not change"
    if last and failure.exception and (failure.exception, failure.step) == (last.exception, last.step):
        where = f"at step {failure.step}" if failure.step else "before its first step"
        return f"the same {where} twice in a row, so a restart would not change it"
    return None
