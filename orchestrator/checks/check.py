"""One thing that was looked at: what was found, in figures, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.text import clean

LONGEST = 600  # characters; what a box says of itself has no bound of its own
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    detail: str
    hint: str = ""


def _line(text: str) -> str:
    """One harmless line: details and hints quote what a box said."""
    line = clean(text)
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", _line(detail))


def warn(name: str, detail: str, hint: str = "") -> Check:
    return Check(name, "warn", _line(detail), _line(hint))


def fail(name: str, detail: str, hint: str = "") -> Check:
    return Check(name, "fail", _line(detail), _line(hint))
