"""Decide what to do with a run, from its liveness signals. Pure: no clock, no file, no process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Union

from remote.contract.protocol import STARTED_WELL
from remote.supervisor.failures import Failure

FIRST_BACKOFF = 5.0  # seconds before the first restart; doubled for each later one
MAX_BACKOFF = 300.0  # seconds
JITTER = 0.25  # largest random share taken off the delay: runs that failed together then restart at different times
USAGE = 2  # the conventional exit code (argparse, getopt, bash) for wrong arguments or input
ON_PURPOSE = ("asked", "deadline", "time_limit", STARTED_WELL)  # reasons of an end on purpose: no restart


@dataclass(frozen=True)
class Limits:
    """The limits of a job. Times are in seconds."""

    stall_after: float
    deadline: Optional[float]
    restarts: int
    attempt: Optional[float] = None  # for one attempt; the deadline counts from the start of the first one
    queue_deadline: Optional[float] = None  # from the launch to the start of the first attempt


@dataclass(frozen=True)
class Seen:
    """The liveness signals. Ages are in seconds of the monotonic clock."""

    since_begin: float  # since the first attempt was started
    since_step: float  # since phase, epoch or step of the heartbeat changed
    since_log: float  # since the log grew
    since_gpu_use: Optional[float] = None  # None if no GPU use was ever seen
    since_start: float = 0.0  # of this attempt
    heartbeat_age: Optional[float] = None  # None if the worker writes no heartbeat
    is_disk_full: bool = False
    since_cpu_use: Optional[float] = None  # None if it never used the CPU
    since_output: Optional[float] = None  # since one of its files was written to; None if none was
    has_steps: bool = False  # whether it reports its step: then CPU use alone is no sign of progress


@dataclass(frozen=True)
class End:
    """The decision to end the worker. `reason` is one word (see docs/run-directory.md), `detail` a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Ended:
    """How an attempt ended. `by` is why the supervisor ended it; None if it ended by itself."""

    failure: Failure
    by: Optional[End] = None
    missing: Sequence[str] = ()  # expected files that it did not write
    is_disk_full: bool = False
    problem: Optional[End] = None  # why a rehearsal has failed despite its exit code 0
    remark: str = ""  # what the user should know although it succeeded


@dataclass(frozen=True)
class Restart:
    """The decision to start another attempt after `delay`."""

    reason: str
    detail: str
    delay: float  # seconds


@dataclass(frozen=True)
class Finish:
    """The decision that the run is over: `succeeded`, `failed` or `stopped`."""

    state: str
    reason: str = ""
    detail: str = ""


def while_running(limits: Limits, seen: Seen) -> Optional[End]:
    """Return why the worker must be ended now, or None."""
    if limits.deadline is not None and seen.since_begin >= limits.deadline:
        return End("deadline", f"still running at its deadline of {limits.deadline:.0f} s")
    if limits.attempt is not None and seen.since_start >= limits.attempt:
        return End("time_limit", f"still running after {limits.attempt:.0f} s")
    if seen.is_disk_full:
        return End("disk_full", "the disk is full")
    ages = [seen.since_step, seen.since_log, seen.since_gpu_use, seen.since_output]
    if not seen.has_steps:
        ages.append(seen.since_cpu_use)
    if min(age for age in ages if age is not None) >= limits.stall_after:
        return End("stalled", describe_stall(seen))
    return None


def describe_stall(seen: Seen) -> str:
    """Return a sentence with each liveness signal."""
    signals = [f"step unchanged for {seen.since_step:.0f} s", f"log silent for {seen.since_log:.0f} s"]
    signals.append("no GPU use seen" if seen.since_gpu_use is None else f"GPU idle for {seen.since_gpu_use:.0f} s")
    if not seen.has_steps:
        signals.append("no CPU use seen" if seen.since_cpu_use is None else f"CPU idle for {seen.since_cpu_use:.0f} s")
    if seen.since_output is not None:
        signals.append(f"no file written for {seen.since_output:.0f} s")
    signals.append("no heartbeat" if seen.heartbeat_age is None else f"last heartbeat {seen.heartbeat_age:.0f} s ago")
    return f"the process is alive but makes no progress: {', '.join(signals)}"


def after_exit(
    limits: Limits, used: int, ended: Ended, last: Optional[Failure] = None, jitter: float = 0.0
) -> Union[Restart, Finish]:
    """Decide what follows an attempt.

    Args:
        limits: The limits of the job.
        used: How many restarts were used before.
        ended: How the attempt ended.
        last: How the previous attempt failed, if there was one.
        jitter: A random number from 0 to 1, drawn by the caller.
    """
    failure, by = ended.failure, ended.by
    if by and by.reason in ON_PURPOSE:
        return Finish("stopped", by.reason, by.detail)
    if failure.exit_code == 0 and not by:
        if ended.problem:
            return Finish("failed", ended.problem.reason, ended.problem.detail)
        if not ended.missing:
            return Finish("succeeded", detail=ended.remark)
        return Finish("failed", "missing_output", "exit code 0, but the run did not write: " + ", ".join(ended.missing))
    reason, detail = (by.reason, by.detail) if by else (failure.reason, failure.detail)
    hopeless = None if by and by.reason != "disk_full" else _why_hopeless(failure, last, ended.is_disk_full)
    if hopeless:
        return Finish("failed", reason, f"{detail}; {hopeless}")
    if by and reason == "preempted":
        return Restart(reason, detail, 0.0)  # not the worker's fault, so it does not count as a restart
    if used >= limits.restarts:
        tries = f" (attempt {used + 1} of {limits.restarts + 1})" if limits.restarts else ""
        return Finish("failed", reason, detail + tries)
    delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(used, 16))
    return Restart(reason, detail, delay * (1 - JITTER * jitter))


def _why_hopeless(failure: Failure, last: Optional[Failure], is_disk_full: bool) -> Optional[str]:
    """Return why a restart would fail in the same way; None if it may succeed."""
    if is_disk_full:
        return "there is still no space for a checkpoint: free some, then launch again"
    if failure.exit_code == USAGE and not failure.exception:
        return "not restarted: exit code 2 means wrong input or usage"
    is_same = last and failure.exception and (failure.exception, failure.step) == (last.exception, last.step)
    if last and is_same and not (failure.step is None and _went_on(failure, last)):
        where = f"at step {failure.step}" if failure.step else "before its first step"
        return f"not restarted: the same exception {where} twice in a row"
    return None


def _went_on(failure: Failure, last: Failure) -> bool:
    """Return whether an attempt that reports no steps did anything else than the one before it."""
    return failure.has_written or failure.log_digest != last.log_digest
