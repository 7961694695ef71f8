"""Run ids sort by launch, whatever the clock of the launching machine."""

from __future__ import annotations

import time

import pytest

from orchestrator.box.run_ids import MAX_AHEAD_S, is_ahead, is_older, launched_at, new_run_ids, skew_note
from remote.contract.paths import RUN_ID

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20 UTC
TODAY = "20260921T141320"


def test_new_ids_start_with_the_time_and_sort_in_order() -> None:
    ids = new_run_ids(3, NOW)

    assert ids == sorted(ids) and len(set(ids)) == 3
    assert all(RUN_ID.fullmatch(run_id) and run_id.startswith(TODAY) for run_id in ids)


@pytest.mark.parametrize("newest", [f"{TODAY}-ffff", "20260921T141319-ffff", "20260922T141320-ffff", None])
def test_new_id_sorts_after_every_known_one(newest: str | None) -> None:
    for run_id in new_run_ids(2, NOW, newest):
        assert newest is None or run_id > newest


@pytest.mark.parametrize("newest", ["20991231T235959-ffff", "20260931T000000-0000", "99999999T999999-0000"])
def test_implausible_date_is_ignored(newest: str) -> None:
    assert is_ahead(newest, NOW)
    assert new_run_ids(1, NOW, newest)[0].startswith(TODAY)


def test_clock_ahead_and_implausible_date_are_distinguished() -> None:
    assert skew_note(NOW, None) == skew_note(NOW, f"{TODAY}-0000") == ""
    assert "24 h ahead of this machine's clock, so one of the two clocks is wrong" in skew_note(
        NOW, "20260922T141320-0000"
    )
    assert "the ids of new runs ignore this date" in skew_note(NOW, "20991231T235959-ffff")


def test_time_of_an_id_is_utc() -> None:
    assert launched_at(f"{TODAY}-0000") == NOW
    assert launched_at("not an id") is None
    assert is_older(f"{TODAY}-0000", NOW + 61, 60) and not is_older(f"{TODAY}-0000", NOW + 59, 60)
    assert not is_ahead(time.strftime("%Y%m%dT%H%M%S-0000", time.gmtime(NOW + MAX_AHEAD_S)), NOW)
