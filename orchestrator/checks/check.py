"""One thing that was looked at: what was found, in figures, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.text import shortened

LONGEST = 600  # characters; details and hints quote what a box said
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    detail: str
    hint: str = ""


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", shortened(detail, LONGEST))


def warn(name: str, detail: str, hint: str = "") -> Check:
    return Check(name, "warn", shortened(detail, LONGEST), shortened(hint, LONGEST))


def fail(name: str, detail: str, hint: str = "") -> Check:
    return Check(name, "fail", shortened(detail, LONGEST), shortened(hint, LONGEST))
