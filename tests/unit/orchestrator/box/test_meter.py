"""How far transfers are: of several parts at once, and as a line."""

from __future__ import annotations

import pytest

from orchestrator.box import meter
from orchestrator.box.meter import Meter, line


def test_parts_are_added_up_and_are_complete_at_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SHOW_EVERY_S", 0.0)
    shown: list[str] = []
    transfer = Meter("downloading", shown.append)
    first, second = {"a": 60, "b": 20}, {"c": 20}
    transfer.expect(first)
    transfer.expect(second)

    with transfer.part(first) as progress, transfer.part(second) as other:
        progress(50, 0)
        other(10, 0)
        progress(70, 1)
        progress(1000, 1000)  # a box may say anything

    assert shown[-1] == f"downloading [{'#' * 20}] 3 of 3 files, 100 B of 100 B"
    counts = [text.partition("] ")[2] for text in shown]
    assert "0 of 3 files, 60 B of 100 B" in counts and "1 of 3 files, 80 B of 100 B" in counts
    assert counts[-3] == "2 of 3 files, 90 B of 100 B"


def test_files_that_were_not_needed_count_as_transferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SHOW_EVERY_S", 0.0)
    shown: list[str] = []
    transfer = Meter("sending", shown.append)
    transfer.expect({"a": 10})
    with transfer.part({"a": 10}):
        pass
    assert shown[-1].endswith("1 of 1 file, 10 B of 10 B")


def test_line_has_rate_and_remaining_time() -> None:
    assert line("sending", 3, 4, 10**9, 2 * 10**9, 50.0) == (
        "sending [##########----------] 3 of 4 files, 1.0 GB of 2.0 GB, 20 MB/s, 50 s left"
    )
    assert line("sending", 1, 2, 0, 0, 5.0) == "sending [##########----------] 1 of 2 files, 0 B of 0 B"
    assert line("sending", 0, 0, 0, 0, 5.0).startswith(f"sending [{'#' * 20}]")
