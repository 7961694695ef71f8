"""What the log says before an attempt about why it started."""

from __future__ import annotations

import signal

import pytest

from remote.contract.events import AttemptEnded, Event, RunNote
from remote.supervisor.history import marker

RESTARTED = RunNote(restarted_by="ann@laptop\n\x1b[2J")
CASES: dict[str, tuple[list[AttemptEnded | RunNote], int, str]] = {
    "the first attempt": ([], 1, ""),
    "an exit code": ([AttemptEnded(1, "exit", exit_code=3)], 2, "after exit code 3"),
    "a signal": ([AttemptEnded(1, "signal", exit_code=-signal.SIGSEGV)], 2, "after ended by SIGSEGV"),
    "a stall": ([AttemptEnded(1, "stalled", exit_code=-15)], 2, "after stalled (ended by SIGTERM)"),
    "an end that nobody saw": ([AttemptEnded(1, "lost")], 2, "after lost"),
    "a restart by hand": ([AttemptEnded(1, "exit", exit_code=3), RESTARTED], 2, "after orch restart by ann@laptop[2J"),
    "a restart before the first attempt": ([RESTARTED], 1, "after orch restart by ann@laptop[2J"),
    "a failure after a restart": (
        [RESTARTED, AttemptEnded(2, "gpu_oom", exit_code=1)],
        3,
        "after gpu_oom (exit code 1)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_marker_names_the_reason(case: str) -> None:
    events, number, why = CASES[case]
    found = marker([Event(1.0, what) for what in events], number, 1_769_461_392.0)
    assert found == (f"[orch] --- attempt {number}, 2026-01-26T21:03:12Z, {why} ---" if why else "")
