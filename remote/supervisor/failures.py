"""Find out why an attempt failed: one word and a sentence, from exit code, log and kernel messages. Pure functions.

A reason that the worker recorded itself (`Run.fail`) comes first. Otherwise the messages of common libraries are
recognised: CPython, PyTorch (c10/cuda, c10/core), NVIDIA's driver.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import List, Optional, Tuple

from remote.contract import tracebacks
from remote.contract.reported import FailureRecord

MAX_CHARS = 300  # characters of an exception in a sentence
OURS = "[orch] "  # starts a line of the log that is from orch, not from the worker
LAST_LINES = 20  # lines of the log that are searched for an error message if there is no traceback

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


@dataclass(frozen=True)
class ExitDetails:
    """What is known about the end of an attempt."""

    log: str = ""  # the end of its output
    reported: Optional[FailureRecord] = None  # the worker's own record of its failure
    kernel: str = ""  # the kernel's messages of that time
    oom_kills: int = 0  # of the whole machine, during the attempt
    step: Optional[int] = None


def classify(exit_code: Optional[int], details: ExitDetails) -> Failure:
    """Return why an attempt failed. `exit_code` is None if its end was not observed."""
    how = "its end was not observed" if exit_code is None else describe_exit(exit_code)
    if details.reported and _REASON.fullmatch(details.reported.reason):
        detail = details.reported.detail[:MAX_CHARS]
        return Failure(details.reported.reason, f"{how}: {detail}", exit_code, detail, details.step)
    exceptions = _exceptions(details.log)
    exception = exceptions[0] if exceptions else None
    text = "\n".join(exceptions) or _last_lines(details.log)
    reason = "lost" if exit_code is None else "signal" if signal_of(exit_code) else "exit"
    if details.oom_kills and (signal_of(exit_code) == signal.SIGKILL or _KILLED_CHILD in text):
        reason, how = "oom", f"{how}: the box was out of memory"
    elif _lost_gpu(details.kernel):
        reason, how = "gpu_lost", f"{how}: {_lost_gpu(details.kernel)}"
    elif exit_code != 0:
        lowered = text.lower()
        reason = next((name for name, marks in _MARKS if any(mark in lowered for mark in marks)), reason)
    shown = exception or ("" if reason in ("exit", "signal", "lost", "oom") else _relevant_line(details.log, reason))
    return Failure(reason, f"{how}: {shown}" if shown else how, exit_code, exception, details.step)


def _exceptions(text: str) -> List[str]:
    """Return the last line of the last traceback, then of the one that led to it, and so on."""
    begins = tracebacks.find_last(text)
    found = (_exception(text[begin:end]) for begin, end in zip(begins, [len(text), *begins]))
    return [line for line in found if line]


def _exception(traceback: str) -> str:
    """Return the line after the stack of a traceback; "" if it is not printed yet."""
    lines = traceback.splitlines()[1:]
    ends = (line.strip() for line in lines if line and not line[0].isspace() and not line.startswith(OURS))
    return next(ends, "")[:MAX_CHARS]


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _relevant_line(text: str, reason: str) -> str:
    marks = dict(_MARKS).get(reason, ())
    lines = [line.strip() for line in text.splitlines()[-LAST_LINES:]]
    return next((line[:MAX_CHARS] for line in reversed(lines) if any(mark in line.lower() for mark in marks)), "")


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
