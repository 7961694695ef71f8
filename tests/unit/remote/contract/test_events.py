"""Read and write events.jsonl of this version and of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.contract.events import AttemptEnded, Event, RunNote, read_event
from remote.contract.protocol import Failed, Queued, Running, Succeeded
from remote.contract.schema import to_json
from tests.support import ROOT

RECORDED = sorted((ROOT / "tests" / "contract").glob("v[0-9]*/**/events.jsonl"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(ROOT / "tests/contract")))
def test_recorded_events_are_read_and_written_unchanged(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        event = read_event(line)
        assert event
        now = to_json(event)
        assert now == {**now, **line}
        assert not any(now[name] for name in now.keys() - line.keys())  # newer keys are empty


@pytest.mark.parametrize(
    "what",
    [
        Queued(1.0, "gpu0"),
        Running(1.0, 2, 3, "4", "5"),
        Failed(1.0, "exit", "x" * 10_000, 3),
        Succeeded(1.0),
        AttemptEnded(2, "exit", "exit code 1: x" * 1000, 1, "ValueError: x", 20, "restarting"),
        AttemptEnded(1),
        RunNote(ending="stalled", detail="nothing moves"),
        RunNote(taken_over=2),
        RunNote(restarted_by=""),
        RunNote(supervisor_error="OSError()"),
        RunNote(restored="state.json", detail="it was not written by the supervisor"),
        RunNote(gpu_memory_held={"7": 100}),
    ],
)
def test_written_event_is_read_back(what: Any) -> None:
    event = Event(5.5, what)
    assert read_event(json.loads(json.dumps(to_json(event)))) == event


def test_note_has_only_the_key_that_is_set() -> None:
    assert to_json(Event(5.5, RunNote(taken_over=2))) == {"time": 5.5, "taken_over": 2}


@pytest.mark.parametrize(
    "line", [{}, {"time": 1.0}, {"state": "asleep"}, {"detail": "x"}, {"taken_over": "x"}, {"of_a_newer_version": 1}]
)
def test_line_that_is_not_an_event_is_none(line: dict[str, Any]) -> None:
    assert read_event(line) is None


def test_malformed_parts_of_an_event_have_their_defaults() -> None:
    line = {"time": "x", "attempt_ended": 2, "reason": 7, "detail": None, "exit_code": "1", "then": "failed"}
    assert read_event(line) == Event(0.0, AttemptEnded(2, then="failed"))
