"""What an attempt died of: a word and a sentence, from its exit code, its last words and the kernel's. Pure.

What the worker itself recorded (`Run.fail`) comes first; what programs print is recognised by the words of the
libraries that print it: CPython, PyTorch (c10/cuda, c10/core), NVIDIA's driver.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Tuple

from remote.contract import tracebacks

LONGEST = 300  # characters of an exception in a sentence
OURS = "[orch] "  # begins a line of the log that is not the worker's
LAST_LINES = 20  # in which a program without a traceback says what it died of

_KILLED_CHILD = "killed by signal: Killed"  # torch's DataLoader, of its workers

# In this order: the first that fits is the reason.
_WORDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
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
    # The last of them is how torch.save ends when its file could not grow.
    ("disk_full", ("no space left on device", "disk quota exceeded", "failed writing file", "] . unexpected pos ")),
    ("oom", ("memoryerror", "cannot allocate memory", "std::bad_alloc", "can't allocate memory", "not enough memory")),
    ("non_finite", ("loss is nan", "loss is inf", "non-finite loss", "loss is not finite")),
)
_REASON = re.compile(r"[a-z][a-z_]{0,31}")
_XID = re.compile(r"NVRM: Xid.*?: (\d+)")
# Those after which the GPU is of no use to anybody until it is reset (NVIDIA, "XID Errors", r580): double-bit ECC,
# fallen off the bus, row remapping failure, contained and uncontained ECC errors, GSP time-outs.
_LOST_XIDS = frozenset((48, 62, 64, 74, 79, 94, 95, 119, 120))


@dataclass(frozen=True)
class Failure:
    """`exit_code` is negative for a signal and None where nobody saw the end."""

    reason: str
    detail: str
    exit_code: Optional[int] = None
    exception: Optional[str] = None  # its last line, where it had one
    step: Optional[int] = None  # over all epochs, as far as the heartbeat told

    def to_json(self) -> Mapping[str, Any]:
        return vars(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Optional[Failure]:
        known = {name: record.get(name) for name in ("reason", "detail", "exit_code", "exception", "step")}
        if not isinstance(known["reason"], str) or not isinstance(known["detail"], str):
            return None
        return cls(**known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LastWords:
    """What is left of an attempt. `said` is the worker's own record of its failure."""

    log: str = ""  # the end of what it printed
    said: Optional[Mapping[str, Any]] = None
    kernel: str = ""  # the kernel's lines of that time
    oom_kills: int = 0  # of the whole machine, during the attempt
    step: Optional[int] = None


def classify(exit_code: Optional[int], left: LastWords) -> Failure:
    """What an attempt that did not succeed died of."""
    how = "it ended while nothing watched it" if exit_code is None else describe_exit(exit_code)
    said = left.said or {}
    if isinstance(said.get("reason"), str) and _REASON.fullmatch(said["reason"]):
        detail = str(said.get("detail") or "")[:LONGEST]
        return Failure(said["reason"], f"{how}: {detail}", exit_code, detail, left.step)
    exceptions = _exceptions(left.log)
    exception = exceptions[0] if exceptions else None
    told = "\n".join(exceptions) or _last_lines(left.log)
    reason = "lost" if exit_code is None else "signal" if signal_of(exit_code) else "exit"
    if left.oom_kills and (signal_of(exit_code) == signal.SIGKILL or _KILLED_CHILD in told):
        reason, how = "oom", f"{how}: the kernel was out of memory"
    elif _lost_gpu(left.kernel):
        reason, how = "gpu_lost", f"{how}: {_lost_gpu(left.kernel)}"
    elif exit_code != 0:
        words = told.lower()
        reason = next((name for name, marks in _WORDS if any(mark in words for mark in marks)), reason)
    shown = exception or ("" if reason in ("exit", "signal", "lost", "oom") else _telling_line(left.log, reason))
    return Failure(reason, f"{how}: {shown}" if shown else how, exit_code, exception, left.step)


def _exceptions(text: str) -> List[str]:
    """The last line of the last traceback, then that of the one which led to it, and so on."""
    begins = tracebacks.find_last(text)
    found = (_exception(text[begin:end]) for begin, end in zip(begins, [len(text), *begins]))
    return [line for line in found if line]


def _exception(traceback: str) -> str:
    """The first line after the indented ones; empty where it is not there yet."""
    lines = traceback.splitlines()[1:]
    said = (line.strip() for line in lines if line and not line[0].isspace() and not line.startswith(OURS))
    return next(said, "")[:LONGEST]


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _telling_line(text: str, reason: str) -> str:
    marks = dict(_WORDS).get(reason, ())
    lines = [line.strip() for line in text.splitlines()[-LAST_LINES:]]
    return next((line[:LONGEST] for line in reversed(lines) if any(mark in line.lower() for mark in marks)), "")


def _lost_gpu(kernel: str) -> Optional[str]:
    codes = [int(code) for code in _XID.findall(kernel) if int(code) in _LOST_XIDS]
    return f"the NVIDIA driver reports Xid {codes[-1]}" if codes else None


def signal_of(exit_code: Optional[int]) -> Optional[int]:
    """The signal that ended it, also where a shell in between made an exit code of it (128 + signal)."""
    if exit_code is None:
        return None
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if 0 < number < 65 else None


def describe_exit(exit_code: int) -> str:
    """`exit code 3`, or the signal's name for the negative code that subprocess gives."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"
