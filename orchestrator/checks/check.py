"""The result of one check: what was found and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.text import shortened

MAX_CHARS = 600  # characters; details and hints quote what a box said
CODE = "code"  # what the checks of the code are about, where others name a host or a job
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The result of one check. `hint` says what to do about it; it is empty if there is nothing to do."""

    name: str
    status: Status
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Checked:
    """A check, and the name of the host or job that it is about."""

    about: str
    check: Check


def ok(name: str, detail: str) -> Check:
    """Return a check that passed."""
    return Check(name, "ok", shortened(detail, MAX_CHARS))


def warn(name: str, detail: str, hint: str = "") -> Check:
    """Return a check that found a problem which does not prevent a launch."""
    return Check(name, "warn", shortened(detail, MAX_CHARS), shortened(hint, MAX_CHARS))


def fail(name: str, detail: str, hint: str = "") -> Check:
    """Return a check that failed, which prevents a launch."""
    return Check(name, "fail", shortened(detail, MAX_CHARS), shortened(hint, MAX_CHARS))
