"""Find out why an attempt failed: one word and a sentence, from exit code, log and kernel messages. Pure functions.

A reason that the worker recorded itself (`Run.fail`) comes first. Otherwise the messages of common libraries are
recognised: CPython, PyTorch (c10/cuda, c10/core), NVIDIA's driver.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import List, Optional, Tuple

from remote.contract import tracebacks
from remote.contract.logs import OURS
from remote.contract.reported import FailureRecord

MAX_CHARS = 300  # characters of an exception in a sentence
LAST_LINES = 20  # lines of the log that are searched for an error message if there is no traceback
NEAR_END = 5  # of these lines, in which any message that looks like an error counts
LOOKED_AT = 1 << 16  # characters of the log

_KILLED_CHILD = "killed by signal: Killed"  # printed by torch's DataLoader about its workers

# The first reason with a match counts.
_MARKS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("gpu_oom", ("cuda out of memory", "cuda error: out of memory", "outofmemoryerror", "cublas_status_alloc_failed")),
    (
        "gpu_lost",
        (
            "gpu is lost",
            "fallen off the bus",
            "uncorrectable ecc error",
            "no cuda-capable device is detected",
            "cuda-capable device(s) is/are busy or unavailable",
            "cuda error: unspecified launch failure",
            "cuda error: unknown error",
        ),
    ),
    # The last one is the error of torch.save if the file cannot grow.
    ("disk_full", ("no space left on device", "disk quota exceeded", "failed writing file", "] . unexpected pos ")),
    ("oom", ("memoryerror", "cannot allocate memory", "std::bad_alloc", "can't allocate memory", "not enough memory")),
    ("non_finite", ("loss is nan", "loss is inf", "non-finite loss", "loss is not finite")),
)
# Dates, times, durations and other fractions; addresses of objects. A count of steps or epochs is a whole number.
_CHANGING = re.compile(r"\d{1,20}(?:[-:.,T]\d{1,20})+|0x[0-9a-fA-F]{1,16}")
# What comes after the message of the program: from trackers, launchers, shells and Python's own clean-up.
NOISE = re.compile(
    r"\[orch\] |wandb:|srun: |slurmstepd: |make(\[\d+\])?: \*\*\* |npm ERR|(Killed|Terminated|Aborted)\b"
    r"|warnings\.warn\(|[EWI]\d{4} \d\d:\d\d"
    r"|(\[?rank\d+\]?:)?\s*\[[WEI]\d{3,4} |.{0,200}resource_tracker|error: Recipe |[-=+*#~ ]+$"
)
_ERROR = re.compile(
    r"\b(\w*error|fatal|\w*exception|failed|failure|cannot|can't|couldn't|not found|no such|denied|invalid|what\(\))",
    re.IGNORECASE,
)
_REASON = re.compile(r"[a-z][a-z_]{0,31}")
_XID = re.compile(r"NVRM: Xid.*?: (\d+)")
# Errors after which the GPU is unusable until it is reset (NVIDIA, "XID Errors", r580): double-bit ECC,
# fallen off the bus, row remapping failure, contained and uncontained ECC errors, GSP time-outs.
_LOST_XIDS = frozenset((48, 62, 64, 74, 79, 94, 95, 119, 120))


@dataclass(frozen=True)
class Failure:
    """How an attempt failed. `exit_code` is negative for a signal, and None if the end was not observed."""

    reason: str
    detail: str
    exit_code: Optional[int] = None
    exception: Optional[str] = None  # the last line of the traceback, if there was one
    step: Optional[int] = None  # over all epochs, if the heartbeat reported it
    has_written: bool = field(default=False, compare=False)  # whether the attempt wrote to a file of its run
    log_digest: Optional[str] = field(default=None, compare=False)  # of what it printed, without times


@dataclass(frozen=True)
class ExitDetails:
    """What is known about the end of an attempt."""

    log: str = ""  # the end of its output
    reported: Optional[FailureRecord] = None  # the worker's own record of its failure
    kernel: str = ""  # the kernel's messages of that time
    oom_kills: int = 0  # of the whole machine, during the attempt
    step: Optional[int] = None
    has_written: bool = False


def classify(exit_code: Optional[int], details: ExitDetails) -> Failure:
    """Return why an attempt failed. `exit_code` is None if its end was not observed."""
    failure = _classify(exit_code, details)
    return replace(failure, has_written=details.has_written, log_digest=_digest(details.log))


def _digest(log: str) -> str:
    """Return a digest of a log, which is the same for an attempt that prints the same at another time."""
    lines = [line for line in log.splitlines() if not line.startswith(OURS)]
    return sha256(_CHANGING.sub("", "\n".join(lines)).encode("utf-8", "replace")).hexdigest()[:16]


def _classify(exit_code: Optional[int], details: ExitDetails) -> Failure:
    how = "its end was not observed" if exit_code is None else describe_exit(exit_code)
    if details.reported and _REASON.fullmatch(details.reported.reason):
        detail = details.reported.detail[:MAX_CHARS]
        return Failure(details.reported.reason, f"{how}: {detail}", exit_code, detail, details.step)
    cause = tracebacks.find_cause(details.log)
    exceptions = [each.exception[:MAX_CHARS] for each in cause.chain]
    text = "\n".join(exceptions) or "\n".join(_last_lines(details.log, cause))
    number = signal_of(cause.exit_code if cause.launcher else exit_code)
    reason = "lost" if exit_code is None else "signal" if number else "exit"
    if details.oom_kills and (number == signal.SIGKILL or _KILLED_CHILD in text):
        reason, how = "oom", f"{how}: the box was out of memory"
    elif _lost_gpu(details.kernel):
        reason, how = "gpu_lost", f"{how}: {_lost_gpu(details.kernel)}"
    elif exit_code != 0:
        lowered = text.lower()
        reason = next((name for name, marks in _MARKS if any(mark in lowered for mark in marks)), reason)
    shown = exceptions[0] if exceptions else _without_traceback(reason, details.log, cause)
    exception = exceptions[0] if exceptions else shown if cause.launcher else None
    return Failure(reason, f"{how}: {shown}" if shown else how, exit_code, exception or None, details.step)


def _without_traceback(reason: str, log: str, cause: tracebacks.Cause) -> str:
    """Return what the log tells about the end of a program that printed no traceback; "" for nothing."""
    if cause.launcher and cause.exit_code is not None and cause.exit_code < 0:
        who = "its process" if cause.rank is None else f"rank {cause.rank}"
        return f"{who} was {describe_exit(cause.exit_code)}"
    lines = _last_lines(log, cause)
    marks = dict(_MARKS).get(reason, ())
    if marks and reason != "oom":
        return next((line for line in reversed(lines) if any(mark in line.lower() for mark in marks)), "")
    if reason != "exit":
        return ""
    said = [line for line in lines if not NOISE.match(line)]
    error = next((line for line in reversed(said[-NEAR_END:]) if _ERROR.search(line)), "")
    return error or (f"last line: {said[-1]}" if said else "")


def _last_lines(text: str, cause: tracebacks.Cause) -> List[str]:
    """Return the last lines that are not empty, before those of the launcher. A bar that was redrawn is one line."""
    end = cause.launcher.begin if cause.launcher else len(text)
    lines = (line.rsplit("\r", 1)[-1].strip() for line in text[max(0, end - LOOKED_AT) : end].split("\n"))
    return [line[:MAX_CHARS] for line in lines if line][-LAST_LINES:]


def _lost_gpu(kernel: str) -> Optional[str]:
    codes = [int(code) for code in _XID.findall(kernel) if int(code) in _LOST_XIDS]
    return f"the NVIDIA driver reports Xid {codes[-1]}" if codes else None


def signal_of(exit_code: Optional[int]) -> Optional[int]:
    """Return the number of the signal, even if a shell turned it into an exit code (128 + signal); else None."""
    if exit_code is None:
        return None
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if 0 < number < 65 else None


def describe_exit(exit_code: int) -> str:
    """Return `exit code 3`, or `ended by SIGKILL` for a negative code, as subprocess reports a signal."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"
